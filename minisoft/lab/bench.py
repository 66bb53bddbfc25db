"""How fast are rollouts, replays and updates on this machine, and how near to what it could do?

    python -m minisoft.lab.bench --prompts 2 16                  # the embedded model
    python -m minisoft.lab.bench --model FOLDER --against transformers --json FILE [--part rollout]
    python -m minisoft.lab.bench --shape llama-3.2-3b --device cuda

A round is one update of each kind of token, and with transformers the same rollouts, in turn; what
is shown are medians over the rounds.  All CoTs and answers have their full length, every advantage
is different from 0, and no reward is computed.
"""

import argparse
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from minisoft import data, engine
from minisoft.data import ANSWER_TOKENS, Format
from minisoft.engine.linear import product
from minisoft.engine.replay import recompute_layers
from minisoft.io import atomic, checkpoint
from minisoft.kinds import KINDS
from minisoft.lab import command
from minisoft.lab.command import WHOLE
from minisoft.model import Config, Transformer
from minisoft.rollout import Request, Rollout
from minisoft.run.metrics import markdown
from minisoft.run.optimizer import Optimizer, Schedule
from minisoft.run.plan import choose_micro_batch, memory_bytes, peak_memory_gib
from minisoft.run.policy import Policy
from minisoft.run.settings import DTYPE, TRAIN_COT, Flags, resolve
from minisoft.run.world import World, as_program, find_device, keep_memory

SHAPES = {  # V, d, intermediate, layers, heads, key/value heads, head_dim, tied: of the models
    "llama-3.2-1b": (128256, 2048, 8192, 16, 32, 8, 64, True),
    "llama-3.2-3b": (128256, 3072, 8192, 28, 24, 8, 128, True),
    "llama-3.1-8b": (128256, 4096, 14336, 32, 32, 8, 128, False),
    "smollm2-135m": (49152, 576, 1536, 30, 9, 3, 64, True),
}
QUESTIONS = (
    "A train has 14 cars with 36 seats in each of them. On Monday 378 seats are taken. How many "
    "seats are free?",
    "Ana has 3 boxes of 24 pencils and gives 7 pencils to each of her 8 friends. How many pencils "
    "has she left?",
)
SIZES = {"cpu": (2**26, 2048), "cuda": (2**28, 8192)}  # of `limits`: numbers read, matrix side
PROMPT = 118  # tokens of the random prompts of --shape
COLUMNS = {  # what is measured or computed -> its head and how it is written
    "rollout": ("rollout, s", "{:.2f}"),
    "tokens_per_s": ("tokens/s", "{:,.0f}"),
    "ms_per_step": ("ms/step", "{:.2f}"),
    "floor_ms": ("floor, ms", "{:.2f}"),
    "decode_share": ("share", "{:.0%}"),
    "replay": ("replay, s", "{:.2f}"),
    "replay_tokens_per_s": ("tokens/s", "{:,.0f}"),
    "replay_share": ("share", "{:.0%}"),
    "optimizer": ("optimizer, s", "{:.2f}"),
    "update": ("update, s", "{:.2f}"),
    "peak_gib": ("peak, GiB", "{:.1f}"),
}


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

    def policy(self, name: str) -> Policy:
        """With a kind of token."""
        settings = resolve(self.folder, Flags(cot=self.cot), TRAIN_COT).for_model(self.model)
        return Policy(self.model, self.form, settings, settings.kind(name))

    def rollout(self, policy: Policy, seed: int) -> list[Rollout]:
        samples = range(self.group)
        return policy.rollout([Request(x, (seed, i), samples) for i, x in enumerate(self.prompts)])

    def replay(self, policy: Policy, rollouts: list[Rollout]) -> None:
        """Forward and backward passes of one update; advantages 1, -1, 1, ..."""
        one = 1.0 - 2.0 * (torch.arange(self.group, device=self.model.E.device) % 2)
        advantages = [one] * len(rollouts)
        policy.backward(rollouts, advantages, 1 / self.rows, micro_batch=self.micro_batch)


class FullLength(Format):
    """Nothing ends before its budget is spent."""

    def __init__(self, prefill: list[int]):
        self.prefill = [prefill, prefill]

    def cot_ends(self, ids: list[int]) -> bool:
        return False

    def answer_ends(self, ids: list[int]) -> bool:
        return len(ids) == ANSWER_TOKENS


def prepare(args: argparse.Namespace, device: torch.device) -> Work:
    """The model of --model or --shape, and the prompts of the largest size; rows of a backward pass
    as train.py chooses them."""
    dtype, most, folder = checkpoint.DTYPES[args.dtype], max(args.prompts), {}
    if args.shape:
        model = random_model(SHAPES[args.shape], device, dtype)
        lengths = [9, *[PROMPT] * most]
        prefill, *prompts = (torch.randint(model.config.vocab_size, (n,)).tolist() for n in lengths)
    else:
        path = checkpoint.find(args.model)
        model, tokenizer = checkpoint.load(path, device, dtype)
        folder = checkpoint.read_about(path)
        template = resolve(folder, Flags(), TRAIN_COT).template
        asked = [data.prompt(QUESTIONS[i % 2], template) for i in range(most)]
        prompts = [tokenizer.encode(text) for text in asked]
        prefill = Format(tokenizer).prefill[1]
    engine.accelerate(model)
    work = Work(model, FullLength(prefill), prompts, args.group, args.cot, 1, folder)
    rows, again = choose_micro_batch(model, work.steps, memory_bytes(device), device.type)
    if again:
        recompute_layers(model)
    return replace(work, micro_batch=rows)


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


def seconds(function, device: torch.device) -> tuple:
    """(how long function() takes on the device, what it returns)"""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


@torch.no_grad()
def limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes/s read from memory, floating-point operations/s of a large matrix product."""
    numbers, n = SIZES[device.type]
    large = torch.ones(numbers, device=device)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

    def best(function) -> float:
        return min(seconds(function, device)[0] for _ in range(5))

    fastest = min(best(lambda: product(a, b)), best(lambda: a @ b))
    return {"bandwidth": large.nbytes / best(large.sum), "throughput": 2 * n**3 / fastest}


def processor(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What it is called; of a CPU also the instructions that PyTorch uses here."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"{named[0] if named else 'CPU unknown'}, {kernels} kernels"


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
    mixed = work.cot / work.steps if work.policy(name).kind.mixes else 0  # share that needs p E too
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
    device, policy = work.model.E.device, work.policy(name)
    took, rollouts = seconds(lambda: work.rollout(policy, seed), device)
    if part == "rollout":
        return {"rollout": took}
    with optimizer.summing():
        took_replay, _ = seconds(lambda: work.replay(policy, rollouts), device)
    took_step, _ = seconds(lambda: optimizer.update(0, optimizer.collect()), device)
    total = took + took_replay + took_step
    return {"rollout": took, "replay": took_replay, "optimizer": took_step, "update": total}


def contenders(args: argparse.Namespace, work: Work) -> dict:
    """{name: function of a seed -> {part: seconds}}, each warmed up: kinds of token, and with
    transformers."""
    schedule = Schedule(1e-9, 10, 0)  # so small a step leaves rollouts alike
    optimizer = Optimizer(work.model, schedule, World(str(work.model.E.device)))
    found = {}
    for name in args.tokens:
        update(replace(work, cot=8), optimizer, name, args.part, 0)  # warm-up
        found[name] = partial(update, work, optimizer, name, args.part)
    if args.against:
        from minisoft.lab.rivals import Rivals  # here, since nothing else needs transformers

        found |= Rivals(work, args).contenders(args.tokens)
    return found


def rounds(contenders: dict, repeats: int, device: torch.device) -> dict:
    """{contender: {part: [seconds of each round]}}; on a GPU also the peak of its memory, GiB."""
    found = {name: {} for name in contenders}
    for seed in tqdm(range(repeats), unit="round"):
        for name, run in contenders.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            took = run(seed)
            if device.type == "cuda":
                took["peak_gib"] = peak_memory_gib(device)
            for part, value in took.items():
                found[name].setdefault(part, []).append(value)
    return found


def speeds(work: Work, name: str, can: dict, took: dict[str, float]) -> dict[str, float]:
    """Tokens/s and, of a kind of token, the share of what could be, from the median seconds."""
    tokens = work.rows * work.steps
    found = {"tokens_per_s": tokens / took["rollout"]}
    found["ms_per_step"] = 1e3 * took["rollout"] / work.steps
    if "replay" in took:
        found["replay_tokens_per_s"] = tokens / took["replay"]
    if name in KINDS:
        least = floor(work, name, can)
        found["floor_ms"] = 1e3 * least["decode"]
        found["decode_share"] = least["decode"] * work.steps / took["rollout"]
        if "replay" in took:
            found["replay_share"] = least["replay"] / took["replay"]
    return found


def measure(args: argparse.Namespace) -> dict:
    """Everything that --json writes."""
    device, sizes = find_device(args.device, 0), []
    args.dtype = args.dtype or DTYPE[device.type]
    can = limits(device, checkpoint.DTYPES[args.dtype])
    work = prepare(args, device)
    for prompts in args.prompts:
        sized = replace(work, prompts=work.prompts[:prompts])
        times = rounds(contenders(args, sized), args.repeats, device)
        table = []
        for name, took in times.items():
            middle = {part: median(of) for part, of in took.items()}
            row = {"tokens": name, "seconds": took, **middle}
            table.append(row | speeds(sized, name, can, middle))
        sizes.append({"rows": f"{prompts} x {args.group}", "table": table})
    return {
        "sizes": sizes,
        **can,
        **{name: getattr(args, name) for name in ("model", "shape", "dtype")},
        **{name: getattr(work, name) for name in ("cot", "steps", "micro_batch")},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": processor(device),
        "memory_gib": peak_memory_gib(device),
    }


def describe(found: dict) -> str:
    """The results as a table for each size."""
    lines = [
        f"{found['shape'] or found['model']}, {found['dtype']}, {found['processor']}, "
        f"{found['threads']} threads, torch {found['torch']}\n"
        f"{found['bandwidth'] / 1e9:.1f} GB/s read, {found['throughput'] / 1e9:,.0f} GFLOP/s: "
        f"floor and share are of these; peak memory of the process {found['memory_gib']:.2f} GiB",
        f"{found['cot']} CoT tokens, {found['steps']} steps, "
        f"{found['micro_batch']} rows a backward pass",
    ]
    for size in found["sizes"]:
        columns = [x for x in COLUMNS if any(x in of for of in size["table"])]
        rows = [["rows", "tokens", *(COLUMNS[x][0] for x in columns)]]
        for of in size["table"]:
            cells = [COLUMNS[x][1].format(of[x]) if x in of else "" for x in columns]
            rows.append([size["rows"], of["tokens"], *cells])
        lines += ["", markdown(rows)]
    return "\n".join(lines)


SIZE = {**WHOLE, "nargs": "+", "metavar": "B"}
PARTS = {"choices": ["update", "rollout"]}
OF_DTYPE = "of the weights (default bfloat16 on a GPU, float32 on CPUs)"
FLAGS = {
    "--model": command.MODEL["--model"],
    "--shape": (None, "random weights of this shape instead", {"choices": SHAPES}),
    "--tokens": (["hard", "soft"], "kinds of CoT token", {"nargs": "+", "choices": KINDS}),
    "--prompts": ([2], "B, problems; several sizes: one after the other", SIZE),
    "--group": (32, "G, samples of each problem", WHOLE),
    "--cot": (128, f"CoT tokens; {ANSWER_TOKENS} answer tokens follow", WHOLE),
    "--part": ("update", "or only rollouts", PARTS),
    "--repeats": (3, "rounds", WHOLE),
    "--against": (None, "the same work with it too", {"choices": ["transformers"]}),
    "--json": (None, "file for all results, times of every round included", command.FILE),
    "--device": (None, "cpu or cuda (default cuda where there is one)"),
    "--dtype": (None, OF_DTYPE, {"choices": [*checkpoint.DTYPES]}),
}


def read_flags(argv=None) -> argparse.Namespace:
    parser = command.parser("bench", __doc__)
    sizes = ("prompts", "group", "cot", "repeats")
    args = command.read(parser, FLAGS, argv, **dict.fromkeys(sizes, 1))
    if args.against and args.shape:
        parser.error("--against: expected a model folder (--model), found --shape")
    return args


def main(argv=None) -> None:
    args = read_flags(argv)
    with command.one_line("bench"):
        keep_memory()
        found = measure(args)
        print(describe(found))
        if args.json:
            atomic.write_json(args.json, found)


if __name__ == "__main__":
    as_program(main)
