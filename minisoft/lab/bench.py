"""How fast are rollouts, replays and updates on this machine, and how near to what it could do?

    python -m minisoft.lab.bench                                       # the embedded model, hard and soft
    python -m minisoft.lab.bench --model FOLDER --against transformers --json FILE [--part rollout]
    python -m minisoft.lab.bench --shape llama-3.2-3b --dtype bfloat16 --device cuda
    python -m minisoft.lab.bench --shape llama-3.2-1b --part memory    # peak memory of a replay

A round is one update of each kind of token, and with transformers the same rollouts and replays, in turn; what is told are
medians over the rounds and medians of the rounds' ratios.  All CoTs and answers have their full length, every
advantage is different from 0, and no reward is computed.
"""

import argparse
import gc
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from minisoft import data
from minisoft.engine.linear import product
from minisoft.errors import InputError
from minisoft.io import WEIGHTS, atomic, checkpoint
from minisoft.lab import tables
from minisoft.model import Config, Transformer
from minisoft.reinforce import Mismatch, backward
from minisoft.rollout import ANSWER_TOKENS, Format, Request, Rollout, rollout
from minisoft.soft import GAMMA, KINDS, make_kind, noise_scale
from minisoft.training.optimizer import Optimizer
from minisoft.training.world import World, keep_memory

SHAPES = {  # (V, d, intermediate, layers, heads, key/value heads, head_dim, tied), from the models' config.json
    "llama-3.2-1b": (128256, 2048, 8192, 16, 32, 8, 64, True), "llama-3.2-3b": (128256, 3072, 8192, 28, 24, 8, 128, True),
    "llama-3.1-8b": (128256, 4096, 14336, 32, 32, 8, 128, False), "smollm2-135m": (49152, 576, 1536, 30, 9, 3, 64, True)}
QUESTIONS = ["A train has 14 cars with 36 seats in each of them. On Monday 378 seats are taken. How many seats are free?",
             "Ana has 3 boxes of 24 pencils and gives 7 pencils to each of her 8 friends. How many pencils has she left?"]


@dataclass
class Work:
    """One update: B prompts, G samples of each, and what they are made with."""

    model: Transformer
    form: Format
    prompts: list[list[int]]
    group: int
    cot: int
    micro_batch: int

    @property
    def rows(self) -> int:
        return len(self.prompts) * self.group

    @property
    def steps(self) -> int:
        """Positions after the prompt: CoT, prefilled tokens, answer."""
        return self.cot + len(self.form.prefill[1]) + ANSWER_TOKENS

    def requests(self, seed: int) -> list[Request]:
        return [Request(ids, (seed, i), range(self.group)) for i, ids in enumerate(self.prompts)]

    def kind(self, name: str):
        return make_kind(name, GAMMA * noise_scale(self.model, "embedding"))


class FullLength(Format):
    """Nothing ends before its budget is spent."""

    def __init__(self, prefill: list[int]):
        self.prefill = [prefill, prefill]

    def cot_ends(self, ids: list[int]) -> bool:
        return False

    def answer_ends(self, ids: list[int]) -> bool:
        return len(ids) == ANSWER_TOKENS


def prepare(args) -> Work:
    """The model of --model or --shape, and the prompts."""
    device, dtype = torch.device(args.device), checkpoint.DTYPES[args.dtype]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if args.shape:
        V, d, inner, layers, heads, kv_heads, D, tied = SHAPES[args.shape]
        config = Config(V, d, inner, layers, heads, kv_heads, D, 1e-5, 500000.0, {}, tied, False, False, False, False)
        with torch.device("meta"):
            model = Transformer(config)
        model = model.to(dtype).to_empty(device=device)
        torch.manual_seed(0)
        for p in model.parameters():
            torch.nn.init.normal_(p, 0, 0.02) if p.dim() > 1 else torch.nn.init.ones_(p)
        ids = lambda n: torch.randint(V, (n,)).tolist()
        return Work(model, FullLength(ids(9)), [ids(args.prompt_tokens) for _ in range(args.prompts)], args.group, args.cot,
                    args.micro_batch)
    folder = checkpoint.find(args.model)
    model, tokenizer = checkpoint.load(folder, device, dtype)
    template = checkpoint.read_about(folder).get("prompt", data.PAPER_PROMPT)
    prompts = [tokenizer.encode(data.prompt(QUESTIONS[i % 2], template)) for i in range(args.prompts)]
    return Work(model, FullLength(Format(tokenizer).prefill[1]), prompts, args.group, args.cot, args.micro_batch)


def seconds(function, device: torch.device):
    """(how long function() takes on the device, what it returns)"""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    result = function()
    wait()
    return time.perf_counter() - start, result


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the machine can do: bytes/s read from memory, floating-point operations/s of a large matrix product."""
    large = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = lambda f: min(seconds(f, device)[0] for _ in range(5))
    with torch.no_grad():
        return {"bandwidth": large.nbytes / best(large.sum),
                "throughput": 2 * n**3 / min(best(lambda: product(a, b)), best(lambda: a @ b))}


def floor(work: Work, name: str, can: dict[str, float]) -> dict[str, float]:
    """Seconds that a decoding step (mean over the rollout) and a replay need at least.

    Decoding reads every weight that is multiplied, each prompt's keys and values once and each row's own ones; a replay
    multiplies by every weight once forward and twice backward.  Attention's own operations are left out.
    """
    c, model, positions = work.model.config, work.model, work.rows * work.steps
    table = model.E.numel()
    body = sum(p.numel() for p in model.parameters()) - table * (1 if c.tie_word_embeddings else 2)
    thinks = 0 if name == "hard" else work.cot / work.steps  # share of positions that need p E too
    size = model.E.element_size()
    cached = sum(map(len, work.prompts)) + work.rows * work.steps / 2
    weights = body + table * (1 + thinks)
    read = size * (weights + cached * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim)
    scored = (work.cot + ANSWER_TOKENS) / work.steps  # share of positions whose logits a replay needs
    return {"decode": max(read / can["bandwidth"], work.rows * 2 * weights / can["throughput"]),
            "replay": 3 * positions * 2 * (body + table * (scored + thinks)) / can["throughput"]}


def update(work: Work, optimizer: Optimizer, name: str, seed: int, part: str) -> dict[str, float]:
    """Seconds of the parts of one update."""
    device, kind = work.model.E.device, work.kind(name)
    took, records = seconds(lambda: rollout(work.model, work.form, kind, work.requests(seed), work.cot), device)
    if part == "rollout":
        return {"rollout": took}
    took_replay, _ = seconds(lambda: replay(work, kind, records), device)
    took_step, _ = seconds(lambda: optimizer.step(0, optimizer.collect()), device)
    return {"rollout": took, "replay": took_replay, "optimizer": took_step, "step": took + took_replay + took_step}


def replay(work: Work, kind, records: list[Rollout]) -> None:
    """Forward and backward passes of one update; advantages 1, -1, 1, ..."""
    advantages = 1.0 - 2.0 * (torch.arange(work.group, device=work.model.E.device) % 2)
    for record in records:
        backward(work.model, kind, record, advantages, 1 / work.rows, work.micro_batch, Mismatch())


def peak_bytes(function, device: torch.device) -> int:
    """The most memory that function() holds beyond what was there before, in bytes of tensors."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()  # what nobody needs any more is not to be freed in between
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    held = most = 0
    for event in sorted((e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"),
                        key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def memory(work: Work, names: list[str]) -> list[dict]:
    """Peak memory of a replay beyond weights, gradients and optimizer state, for growing rows and lengths."""
    found, size = [], work.model.E.element_size()
    for name in names:
        for share, shorter in ((4, 4), (4, 1), (1, 1)):
            part = Work(work.model, work.form, work.prompts[:1], max(2, work.group // share),
                        max(1, work.cot // shorter), work.micro_batch)
            records = rollout(part.model, part.form, part.kind(name), part.requests(0), part.cot)
            replay(part, part.kind(name), records)  # now the gradients exist
            numbers = min(part.rows, part.micro_batch) * part.steps
            peak = peak_bytes(lambda: replay(part, part.kind(name), records), work.model.E.device)
            found.append({"tokens": name, "rows": min(part.rows, part.micro_batch), "steps": part.steps, "bytes": peak,
                          "d": numbers * work.model.config.hidden_size * size,
                          "V": numbers * work.model.config.vocab_size * 4})
    return found


def compare(work: Work, args, can: dict[str, float]) -> dict:
    """{contender: {part: [seconds of each round]}}; contenders are kinds of token and ways of transformers.  After Ctrl-C:
    the rounds that were complete."""
    world = World(str(work.model.E.device))
    optimizer = Optimizer(work.model, 1e-9, 10, 0, (0.9, 0.95), 0.0, 1.0, world)  # so small a step leaves rollouts alike
    rivals = {}
    if args.against:
        from minisoft.lab.rivals import Rivals
        rivals = Rivals(work, args).chosen(args.tokens, args.part)
    short = Work(work.model, work.form, work.prompts, work.group, 8, work.micro_batch)
    for name in args.tokens:  # warm-up
        update(short, optimizer, name, 0, args.part)
    times: dict[str, dict[str, list[float]]] = {}
    ours = {name: lambda seed, name=name: update(work, optimizer, name, seed, args.part) for name in args.tokens}
    contenders = {**ours, **rivals}
    with tqdm(total=args.repeats * len(contenders), unit="run", file=sys.stderr) as bar:
        for seed in range(args.repeats):
            found = {}
            for label, run in contenders.items():
                bar.set_postfix_str(label)
                try:
                    found[label] = run(seed)
                except KeyboardInterrupt:
                    if times:
                        return times  # whole rounds only
                    raise
                bar.update()
            for label, part, took in ((label, *item) for label, parts in found.items() for item in parts.items()):
                times.setdefault(label, {}).setdefault(part, []).append(took)
            now = machine(work.model.E.device, work.model.E.dtype)
            can.update({what: max(can[what], now[what]) for what in can})
    return times


def results(work: Work, args, can: dict[str, float], times: dict) -> dict:
    """Everything that --json writes."""
    ratio = lambda a, b, part: median(x / y for x, y in zip(times[a][part], times[b][part]))
    found = {"model": args.shape or str(args.model), "dtype": args.dtype, "device": str(work.model.E.device),
             "threads": torch.get_num_threads(), "torch": torch.__version__, "prompts": len(work.prompts),
             "group": work.group, "cot": work.cot, "steps": work.steps, "repeats": len(times[args.tokens[0]]["rollout"]), **can,
             "seconds": times, "kinds": {}}
    for name in args.tokens:
        least, took = floor(work, name, can), {part: median(values) for part, values in times[name].items()}
        found["kinds"][name] = {
            **took, "tokens_per_s": work.rows * work.steps / took["rollout"],
            "ms_per_step": 1e3 * took["rollout"] / work.steps,
            "floor_ms": 1e3 * least["decode"], "decode_share": least["decode"] * work.steps / took["rollout"]}
        if "replay" in took:
            found["kinds"][name].update({"replay_tokens_per_s": work.rows * work.steps / took["replay"],
                                         "replay_share": least["replay"] / took["replay"]})
        for part in ("rollout", "replay"):
            rivals = [label for label in times if label.startswith(f"transformers {name}") and part in times[label]]
            if rivals:
                found[f"{part}_ratios"] = {**found.get(f"{part}_ratios", {}), **{r: ratio(r, name, part) for r in rivals}}
                best = min(rivals, key=lambda label: median(times[label][part]))
                found[f"{part}_ratio" + ("" if name == "hard" else f"_{name}")] = ratio(best, name, part)
    for name in args.tokens:
        if "hard" in args.tokens and name != "hard":
            found.update({f"{name}_over_hard_{part}": ratio(name, "hard", part) for part in ("rollout", "replay", "step")
                          if part in times[name]})
    found["memory_gib"] = tables.peak_memory_gib(work.model.E.device)
    return found


def describe(found: dict) -> str:
    """The results as tables."""
    columns = {"rollout": "rollout, s", "tokens_per_s": "tokens/s", "ms_per_step": "ms/step", "floor_ms": "floor, ms",
               "decode_share": "share", "replay": "replay, s", "replay_tokens_per_s": "tokens/s", "replay_share": "share",
               "optimizer": "optimizer, s", "step": "update, s"}
    columns = {field: title for field, title in columns.items() if all(field in k for k in found["kinds"].values())}
    show = lambda field, x: f"{x:.0%}" if "share" in field else f"{x:,.0f}" if "tokens" in field else f"{x:.2f}"
    rows = [["tokens", *columns.values()], *([name, *(show(field, k[field]) for field in columns)]
                                             for name, k in found["kinds"].items())]
    text = [f"{found['model']}, {found['dtype']}, {found['device']}, {found['threads']} threads, torch {found['torch']}: "
            f"{found['prompts']} x {found['group']} rows, {found['cot']} CoT tokens, {found['steps']} steps; "
            f"medians of {found['repeats']} rounds",
            f"this machine: {found['bandwidth'] / 1e9:.1f} GB/s read, {found['throughput'] / 1e9:,.0f} GFLOP/s; "
            f"peak memory of the process {found['memory_gib']:.2f} GiB", tables.table(rows)]
    for part in ("rollout", "replay"):
        for label, value in found.get(f"{part}_ratios", {}).items():
            text.append(f"{part}: {label} takes {value:.2f} times as long")
    text += [f"{key.replace('_', ' ')}: {found[key]:.3f}" for key in found if "_over_hard_" in key]
    return "\n".join(text)


def read_flags(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m minisoft.lab.bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = lambda group, name, default, text, **kw: group.add_argument(
        name, default=default, help=text + (f" (default {default})" if default is not None else ""), **kw)
    group = parser.add_argument_group("work")
    add(group, "--model", WEIGHTS / "tiny", "folder, or hub id owner/name", type=str)
    add(group, "--shape", None, "random weights of this shape instead", choices=SHAPES)
    add(group, "--prompt-tokens", 118, "length of the random prompts of --shape; a model gets the paper's prompt", type=int)
    add(group, "--tokens", ["hard", "soft"], "kinds of CoT token", nargs="+", choices=KINDS)
    add(group, "--prompts", 2, "B, problems", type=int)
    add(group, "--group", 32, "G, samples of each problem", type=int)
    add(group, "--cot", 128, f"CoT tokens; {ANSWER_TOKENS} answer tokens follow", type=int)
    add(group, "--micro-batch", 16, "rows per backward pass", type=int)
    group = parser.add_argument_group("measurement")
    add(group, "--part", "update", "whole updates, or only their rollouts, or the peak memory of replays",
        choices=["update", "rollout", "memory"])
    add(group, "--repeats", 3, "rounds", type=int)
    add(group, "--against", None, "do the same work with transformers too (needs the extra `test`)",
        choices=["transformers"])
    add(group, "--json", None, "file for all results, times of every round included", type=Path)
    add(group, "--device", "cuda" if torch.cuda.is_available() else "cpu", "cpu or cuda")
    add(group, "--dtype", "float32", "of the transformer", choices=list(checkpoint.DTYPES))
    args = parser.parse_args(argv)
    for name in ("prompts", "group", "cot", "micro_batch", "repeats", "prompt_tokens"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}: expected at least 1, found {getattr(args, name)}")
    if args.against and args.shape:
        raise InputError("--against: expected a model folder (--model), found --shape")
    if args.json and not args.json.parent.is_dir():
        raise InputError(f"--json: expected a file in a folder that exists, found {args.json}")
    return args


def main(argv=None) -> None:
    try:
        args = read_flags(argv)
        keep_memory()
        work = prepare(args)
        if args.part == "memory":
            found = {"model": args.shape or str(args.model), "dtype": args.dtype, "V": work.model.config.vocab_size,
                     "memory": memory(work, args.tokens)}
            mib = lambda n: f"{n / 2**20:,.1f}"
            print(tables.table([["tokens", "rows", "steps", "peak MiB", "rows x steps x d, MiB", "rows x steps x V, MiB"],
                                *([m["tokens"], str(m["rows"]), str(m["steps"]), mib(m["bytes"]), mib(m["d"]), mib(m["V"])]
                                  for m in found["memory"])]))
        else:
            can = machine(work.model.E.device, work.model.E.dtype)
            found = results(work, args, can, compare(work, args, can))
            print(describe(found))
        if args.json:
            atomic.write_json(args.json, found)
    except (InputError, OSError, ImportError) as error:
        sys.exit(f"bench: error: {error}")
    except KeyboardInterrupt:
        sys.exit("bench: interrupted")


if __name__ == "__main__":
    main()
