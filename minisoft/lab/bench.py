"""How fast are rollouts, replays and updates on this machine, and how near to what it could do?

    python -m minisoft.lab.bench --prompts 2 16 --load 2         # the embedded model, idle and busy
    python -m minisoft.lab.bench --part train --load 2           # updates of train.py as you run it
    python -m minisoft.lab.bench --model FOLDER --against transformers --json FILE [--part rollout]
    python -m minisoft.lab.bench --shape llama-3.2-3b --dtype bfloat16 --device cuda

A round is one update of each kind of token, and with transformers the same rollouts and replays, in
turn, and with --load all of it again beside processes that spin; what is told are medians over the
rounds and medians of the rounds' ratios.  All CoTs and answers have their full length, every
advantage is different from 0, and no reward is computed (but for --part train).
"""

import argparse
import gc
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from minisoft import data, engine
from minisoft.data import ANSWER_TOKENS, Format
from minisoft.engine.linear import product
from minisoft.io import WEIGHTS, atomic, checkpoint
from minisoft.kinds import KINDS
from minisoft.lab import bench_train, command
from minisoft.lab.busy import busy, instructions, told
from minisoft.lab.command import seconds
from minisoft.model import Config, Transformer
from minisoft.rollout import Decoding, Request, Rollout
from minisoft.training.metrics import markdown, peak_memory_gib
from minisoft.training.optimizer import Optimizer, Schedule
from minisoft.training.settings import TRAIN_COT, Flags, resolve
from minisoft.training.world import World, as_program, keep_memory

SHAPES = {  # V, d, intermediate, layers, heads, key/value heads, head_dim, tied: of the models
    "llama-3.2-1b": (128256, 2048, 8192, 16, 32, 8, 64, True),
    "llama-3.2-3b": (128256, 3072, 8192, 28, 24, 8, 128, True),
    "llama-3.1-8b": (128256, 4096, 14336, 32, 32, 8, 128, False),
    "smollm2-135m": (49152, 576, 1536, 30, 9, 3, 64, True),
}
SIZES = {"cpu": (2**26, 2048), "cuda": (2**28, 8192)}  # of `machine`: numbers read, matrix side
QUESTIONS = (
    "A train has 14 cars with 36 seats in each of them. On Monday 378 seats are taken. How many "
    "seats are free?",
    "Ana has 3 boxes of 24 pencils and gives 7 pencils to each of her 8 friends. How many pencils "
    "has she left?",
)


@dataclass
class Work:
    """One update: B prompts, G samples of each, and what they are made with; folder: the model's
    minisoft.json."""

    model: Transformer
    form: Format
    prompts: list[list[int]]
    group: int
    cot: int
    micro_batch: int
    folder: dict = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.prompts) * self.group

    @property
    def steps(self) -> int:
        """Positions after the prompt: CoT, prefilled tokens, answer."""
        return self.cot + len(self.form.prefill[1]) + ANSWER_TOKENS

    @property
    def passes(self) -> int:
        """Forward passes after the prompt's in which a loop of transformers does the same: the
        prefilled tokens go through with the last one of the CoT."""
        return self.cot + ANSWER_TOKENS

    def kind(self, name: str):
        return resolve(self.folder, Flags(), TRAIN_COT).for_model(self.model).kind(name)

    def rollout(self, kind, seed: int) -> list[Rollout]:
        requests = [
            Request(ids, (seed, i), range(self.group)) for i, ids in enumerate(self.prompts)
        ]
        return engine.rollout(self.model, self.form, kind, requests, Decoding(self.cot))

    def replay(self, kind, rollouts: list[Rollout]) -> None:
        """Forward and backward passes of one update; advantages 1, -1, 1, ..."""
        one = 1.0 - 2.0 * (torch.arange(self.group, device=self.model.E.device) % 2)
        advantages, rows = [one] * len(rollouts), {"micro_batch": self.micro_batch}
        engine.backward(self.model, kind, rollouts, advantages, 1 / self.rows, **rows)


class FullLength(Format):
    """Nothing ends before its budget is spent."""

    def __init__(self, prefill: list[int]):
        self.prefill = [prefill, prefill]

    def cot_ends(self, ids: list[int]) -> bool:
        return False

    def answer_ends(self, ids: list[int]) -> bool:
        return len(ids) == ANSWER_TOKENS


def prepare(args: argparse.Namespace) -> Work:
    """The model of --model or --shape, and the prompts of the largest size."""
    device, dtype = torch.device(args.device), checkpoint.DTYPES[args.dtype]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    sizes, most = (args.group, args.cot, args.micro_batch), max(args.prompts)
    if args.shape:
        model = engine.accelerate(random_model(SHAPES[args.shape], device, dtype))
        lengths = [9, *[args.prompt_tokens] * most]
        prefill, *prompts = (torch.randint(model.config.vocab_size, (n,)).tolist() for n in lengths)
        return Work(model, FullLength(prefill), prompts, *sizes)
    folder = checkpoint.find(args.model)
    model, tokenizer = checkpoint.load(folder, device, dtype)
    about = checkpoint.read_about(folder)
    template = resolve(about, Flags(), TRAIN_COT).template
    asked = [data.prompt(QUESTIONS[i % 2], template) for i in range(most)]
    form = FullLength(Format(tokenizer).prefill[1])
    prompts = [tokenizer.encode(text) for text in asked]
    return Work(engine.accelerate(model), form, prompts, *sizes, about)


def random_model(shape: tuple, device: torch.device, dtype: torch.dtype) -> Transformer:
    *sizes, tied = shape
    with torch.device("meta"):
        no_bias = (False, False, False, False)
        model = Transformer(Config(*sizes, 1e-5, 500000.0, {}, tied, *no_bias))
    model = model.to(dtype).to_empty(device=device)
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, 0, 0.02) if p.dim() > 1 else torch.nn.init.ones_(p)
    return model


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the machine can do: bytes/s read from memory, floating-point operations/s of a large
    matrix product."""
    numbers, n = SIZES[device.type]
    large = torch.ones(numbers, device=device)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

    def best(function) -> float:
        return min(seconds(function, device)[0] for _ in range(5))

    with torch.no_grad():
        bandwidth = large.nbytes / best(large.sum)
        fastest = min(best(lambda: product(a, b)), best(lambda: a @ b))
    return {"bandwidth": bandwidth, "throughput": 2 * n**3 / fastest}


def floor(work: Work, name: str, can: dict[str, float]) -> dict[str, float]:
    """Seconds that a decoding step (mean over the rollout) and a replay need at least.

    Decoding reads every weight that is multiplied, each prompt's keys and values once and each
    row's own ones; a replay multiplies by every weight once forward and twice backward.
    Attention's own operations are left out.
    """
    c, model, positions = work.model.config, work.model, work.rows * work.steps
    table = model.E.numel()
    tables = 1 if c.tie_word_embeddings else 2
    body = sum(p.numel() for p in model.parameters()) - table * tables
    mixed = work.cot / work.steps if work.kind(name).mixes else 0  # share that needs p E too
    cached = sum(map(len, work.prompts)) + work.rows * work.steps / 2
    weights = body + table * (1 + mixed)
    numbers = weights + cached * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
    read = model.E.element_size() * numbers / can["bandwidth"]
    scored = (work.cot + ANSWER_TOKENS) / work.steps  # share whose logits a replay needs
    replay = 3 * positions * 2 * (body + table * (scored + mixed))
    decode = max(read, work.rows * 2 * weights / can["throughput"])
    return {"decode": decode, "replay": replay / can["throughput"]}


def update(work: Work, optimizer: Optimizer, name: str, part: str, seed: int) -> dict[str, float]:
    """Seconds of the parts of one update."""
    device, kind = work.model.E.device, work.kind(name)
    took, rollouts = seconds(lambda: work.rollout(kind, seed), device)
    if part == "rollout":
        return {"rollout": took}
    with optimizer.summing():
        took_replay, _ = seconds(lambda: work.replay(kind, rollouts), device)
    took_step, _ = seconds(lambda: optimizer.update(0, optimizer.collect()), device)
    total = took + took_replay + took_step
    return {"rollout": took, "replay": took_replay, "optimizer": took_step, "step": total}


def peak_bytes(function, device: torch.device) -> int:
    """The most memory that function() holds beyond what was there before, in bytes of tensors."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()  # what nobody needs any more is not to be freed in between
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def measure(work: Work, args: argparse.Namespace) -> list[dict]:
    """The results of each size of --prompts.  After Ctrl-C: those that have a complete round."""
    can = machine(work.model.E.device, work.model.E.dtype)
    sizes = []
    try:
        for prompts in args.prompts:
            sized = replace(work, prompts=work.prompts[:prompts])
            sizes.append(results(sized, args, can, compare(sized, args, can)))
            if sizes[-1]["repeats"] < args.repeats:
                break
    except KeyboardInterrupt:
        if not sizes:
            raise
    return sizes


def compare(work: Work, args: argparse.Namespace, can: dict[str, float]) -> dict[int, dict]:
    """{processes that spin: {contender: {part: [seconds of each round]}}}; contenders are kinds of
    token and ways of transformers.  After Ctrl-C: the rounds that were complete."""
    contenders = contenders_of(work, args)
    loads = [0, args.load] if args.load else [0]
    rounds = []
    try:
        total = args.repeats * len(loads) * len(contenders)
        with tqdm(total=total, unit="run", file=sys.stderr) as bar:
            for seed in range(args.repeats):
                rounds.append({load: timed(contenders, load, seed, bar) for load in loads})
                for what, now in machine(work.model.E.device, work.model.E.dtype).items():
                    can[what] = max(can[what], now)
    except KeyboardInterrupt:
        if not rounds:
            raise
    return {
        load: {
            label: {part: [took[load][label][part] for took in rounds] for part in parts}
            for label, parts in rounds[0][load].items()
        }
        for load in loads
    }


def contenders_of(work: Work, args: argparse.Namespace) -> dict:
    """{contender: function of a seed -> {part: seconds}}, each warmed up."""
    schedule = Schedule(1e-9, 10, 0)  # so small a step leaves rollouts alike
    optimizer = Optimizer(work.model, schedule, World(str(work.model.E.device)))
    contenders = {}
    for name in args.tokens:
        update(replace(work, cot=8), optimizer, name, args.part, 0)  # warm-up
        contenders[name] = partial(update, work, optimizer, name, args.part)
    if args.against:
        from minisoft.lab.rivals import Rivals  # here, since nothing else needs transformers

        contenders |= Rivals(work, args).contenders(args.tokens, args.part)
    return contenders


def timed(contenders: dict, load: int, seed: int, bar) -> dict[str, dict[str, float]]:
    """{contender: {part: seconds}} beside `load` processes that spin."""
    took = {}
    with busy(load):
        for label, run in contenders.items():
            bar.set_postfix_str(f"{label} beside {load}" if load else label)
            took[label] = run(seed)
            bar.update()
    return took


def results(work: Work, args: argparse.Namespace, can: dict[str, float], times: dict) -> dict:
    """Everything that --json writes of one size: idle, and what was measured `loaded`."""
    found = {name: getattr(work, name) for name in ("group", "cot", "steps")}
    found |= {"model": args.shape or args.model, "dtype": args.dtype, "prompts": len(work.prompts)}
    found |= {"device": str(work.model.E.device), "torch": torch.__version__, **can}
    found |= {"threads": torch.get_num_threads(), "cpu": instructions(), "load": args.load}
    found["repeats"] = len(times[0][args.tokens[0]]["rollout"])
    found |= summary(work, args, can, times[0])
    if args.load:
        idle, loaded = times[0], times[args.load]
        found["loaded"] = summary(work, args, can, loaded)
        found["loaded_over_idle"] = {
            label: {part: quotient(loaded[label][part], idle[label][part]) for part in parts}
            for label, parts in idle.items()
        }
    found["memory_gib"] = peak_memory_gib(work.model.E.device)
    return found


def summary(work: Work, args: argparse.Namespace, can: dict[str, float], times: dict) -> dict:
    """Speeds and ratios from {contender: {part: [seconds of each round]}}."""
    found = {"seconds": times}
    found["kinds"] = {name: speeds(work, name, can, times[name]) for name in args.tokens}
    for name, part in [(name, part) for name in args.tokens for part in ("rollout", "replay")]:
        rivals = [x for x in times if x.startswith(f"transformers {name}") and part in times[x]]
        if rivals:
            ratios = {rival: ratio(times, rival, name, part) for rival in rivals}
            found.setdefault(f"{part}_ratios", {}).update(ratios)
            best = min(rivals, key=lambda rival: median(times[rival][part]))
            found[f"{part}_ratio" + ("" if name == "hard" else f"_{name}")] = ratios[best]
    of_pass = work.steps / work.passes
    if "rollout_ratios" in found:
        found["pass_ratios"] = {x: r * of_pass for x, r in found["rollout_ratios"].items()}
    for name in args.tokens if "hard" in args.tokens else []:
        for part in ("rollout", "replay", "step"):
            if name != "hard" and part in times[name]:
                found[f"{name}_over_hard_{part}"] = ratio(times, name, "hard", part)
    return found


def ratio(times: dict, a: str, b: str, part: str) -> float:
    """Median over rounds of how many times as long a takes as b."""
    return quotient(times[a][part], times[b][part])


def quotient(a: list[float], b: list[float]) -> float:
    return median(x / y for x, y in zip(a, b, strict=True))


def speeds(work: Work, name: str, can: dict, times: dict[str, list[float]]) -> dict[str, float]:
    """Median seconds of the parts of an update, tokens/s, and the share of what could be."""
    least, took = floor(work, name, can), {part: median(of) for part, of in times.items()}
    tokens = work.rows * work.steps
    speed = {
        **took,
        "tokens_per_s": tokens / took["rollout"],
        "ms_per_step": 1e3 * took["rollout"] / work.steps,
        "floor_ms": 1e3 * least["decode"],
        "decode_share": least["decode"] * work.steps / took["rollout"],
    }
    if "replay" in took:
        speed["replay_tokens_per_s"] = tokens / took["replay"]
        speed["replay_share"] = least["replay"] / took["replay"]
    return speed


COLUMNS = {  # field -> head
    "rollout": "rollout, s",
    "tokens_per_s": "tokens/s",
    "ms_per_step": "ms/step",
    "floor_ms": "floor, ms",
    "decode_share": "share",
    "replay": "replay, s",
    "replay_tokens_per_s": "tokens/s",
    "replay_share": "share",
    "optimizer": "optimizer, s",
    "step": "update, s",
}


def shown(field: str, value: float) -> str:
    if field.endswith("share"):
        return f"{value:.0%}"
    return f"{value:,.0f}" if field.endswith("tokens_per_s") else f"{value:.2f}"


def describe(sizes: list[dict]) -> str:
    """The results as tables."""
    first = sizes[0]
    measured = next(iter(first["kinds"].values()))
    columns = [field for field in COLUMNS if field in measured]
    rows = [["rows", "beside", "tokens", *(COLUMNS[field] for field in columns), "times idle"]]
    for found, beside, of_state in states(sizes):
        for name, speed in of_state["kinds"].items():
            cells = [shown(field, speed[field]) for field in columns]
            part = "step" if "step" in speed else "rollout"
            times = f"{found['loaded_over_idle'][name][part]:.2f}" if beside else "1"
            rows.append([size_of(found), str(beside), name, *cells, times])
    if not first["load"]:
        rows = [[row[0], *row[2:-1]] for row in rows]
    lines = [
        "{model}, {dtype}, {device}, {threads} threads, torch {torch}: {cot} CoT tokens, {steps} "
        "steps; medians of ".format(**first)
        + f"{' and '.join(str(found['repeats']) for found in sizes)} rounds",
        told(first["cpu"]),
        f"floor and share are of this machine: {first['bandwidth'] / 1e9:.1f} GB/s read, "
        f"{first['throughput'] / 1e9:,.0f} GFLOP/s by {first['threads']} threads; "
        f"peak memory of the process {sizes[-1]['memory_gib']:.2f} GiB",
        markdown(rows),
    ]
    if "rollout_ratios" in first:
        lines += ["", *describe_rivals(sizes)]
    for found, beside, of_state in states(sizes):
        where = f"{size_of(found)} rows, beside {beside}: "
        for key, value in of_state.items():
            if "_over_hard_" in key:
                lines.append(f"{where}{key.replace('_', ' ')}: {value:.3f}")
    return "\n".join(lines)


def states(sizes: list[dict]) -> list[tuple[dict, int, dict]]:
    """(results of a size, processes beside it, what was measured there), idle and loaded."""
    found = []
    for size in sizes:
        found.append((size, 0, size))
        if size["load"]:
            found.append((size, size["load"], size["loaded"]))
    return found


def size_of(found: dict) -> str:
    return f"{found['prompts']} x {found['group']}"


def describe_rivals(sizes: list[dict]) -> list[str]:
    """How many times as long transformers takes, for the same work and for each of its passes."""
    rows = [["rows", "beside", "times as long as ours", "rollout", "a pass", "replay"]]
    for found, beside, of_state in states(sizes):
        for label, value in of_state["rollout_ratios"].items():
            replay = of_state.get("replay_ratios", {}).get(label)
            cells = [f"{value:.2f}", f"{of_state['pass_ratios'][label]:.2f}"]
            cells.append("" if replay is None else f"{replay:.2f}")
            rows.append([size_of(found), str(beside), label, *cells])
    passes = sizes[0]["cot"] + ANSWER_TOKENS
    why = f"The same rollout is {sizes[0]['steps']} passes here and {passes} in transformers, where"
    return [markdown(rows), f"{why} the prefilled tokens go through in one."]


WHOLE = {"type": int}
SIZE = {**WHOLE, "nargs": "+", "metavar": "B"}
FLAGS = {
    "work": {
        "--model": (str(WEIGHTS / "tiny"), "folder, or hub id owner/name"),
        "--shape": (None, "random weights of this shape instead", {"choices": SHAPES}),
        "--prompt-tokens": (118, "length of the random prompts of --shape", WHOLE),
        "--tokens": (["hard", "soft"], "kinds of CoT token", {"nargs": "+", "choices": KINDS}),
        "--prompts": ([2], "B, problems; several sizes: one after the other", SIZE),
        "--group": (32, "G, samples of each problem", WHOLE),
        "--cot": (128, f"CoT tokens; {ANSWER_TOKENS} answer tokens follow", WHOLE),
        "--micro-batch": (16, "rows per backward pass", WHOLE),
    },
    "measurement": {
        "--part": (
            "update",
            "or only rollouts, or updates of train.py as a user runs it, with its own sizes",
            {"choices": ["update", "rollout", "train"]},
        ),
        "--repeats": (3, "rounds", WHOLE),
        "--load": (0, "each round also beside N processes that spin", {**WHOLE, "metavar": "N"}),
        "--against": (None, "the same work with it too", {"choices": ["transformers"]}),
        "--json": (None, "file for all results, times of every round included", {"type": Path}),
        "--device": ("cuda" if torch.cuda.is_available() else "cpu", "cpu or cuda"),
        "--dtype": ("float32", "of the weights", {"choices": [*checkpoint.DTYPES]}),
    },
}


def read_flags(argv=None) -> argparse.Namespace:
    parser = command.parser("bench", __doc__)
    command.add_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    sizes = ("prompts", "group", "cot", "micro_batch", "prompt_tokens")
    command.expect_least(parser, args, **dict.fromkeys((*sizes, "repeats"), 1), load=0)
    if args.against and args.shape:
        parser.error("--against: expected a model folder (--model), found --shape")
    if args.part == "train":
        for name in (*sizes, "shape", "against"):
            if getattr(args, name) != parser.get_default(name):
                flag = name.replace("_", "-")
                parser.error(
                    f"--{flag}: expected none with --part train, found {getattr(args, name)}"
                )
    command.expect_folder(parser, "--json", args.json)
    return args


def main(argv=None) -> None:
    args = read_flags(argv)
    with command.one_line("bench"):
        if args.part == "train":
            found = bench_train.measure(args)
            print(bench_train.describe(found))
        else:
            keep_memory()
            found, *others = sizes = measure(prepare(args), args)
            print(describe(sizes))
            if others:
                found["others"] = others  # the further sizes
        if args.json:
            atomic.write_json(args.json, found)


if __name__ == "__main__":
    as_program(main)
