"""How fast are rollouts, replays and updates on this machine, and how near to what it could do?

    python -m minisoft.lab.bench --prompts 2 16                  # the embedded model
    python -m minisoft.lab.bench --model FOLDER --against transformers --out FILE [--part rollout]
    python -m minisoft.lab.bench --shape llama-3.2-3b --device cuda

A round is one update of each kind of token, and with transformers the same rollouts, in turn; what
is shown are medians over the rounds.  All CoTs and answers have their full length, every advantage
is different from 0, and no reward is computed.
"""

import argparse
import inspect
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from minisoft import engine, soft
from minisoft.data import ANSWER_TOKENS
from minisoft.engine.linear import product
from minisoft.engine.replay import recompute_layers
from minisoft.errors import expect
from minisoft.io import checkpoint
from minisoft.kinds import KINDS
from minisoft.kinds.options import COUNT, DEVICE, Option
from minisoft.lab import command
from minisoft.model import Config, Transformer
from minisoft.rollout import Request, Rollout
from minisoft.run.metrics import clock, markdown, peak_memory_gib
from minisoft.run.optimizer import Optimizer, Schedule
from minisoft.run.plan import choose_micro_batch, key_bytes, matrices, memory_bytes
from minisoft.run.policy import Policy
from minisoft.run.settings import DTYPE, DTYPE_ON, TRAIN_COT, Flags, resolve
from minisoft.run.world import World, as_program, bar, find_device

SHAPES = {  # V, d, intermediate, layers, heads, key/value heads, head_dim, tied: of the models
    "llama-3.2-1b": (128256, 2048, 8192, 16, 32, 8, 64, True),
    "llama-3.2-3b": (128256, 3072, 8192, 28, 24, 8, 128, True),
    "llama-3.1-8b": (128256, 4096, 14336, 32, 32, 8, 128, False),
    "smollm2-135m": (49152, 576, 1536, 30, 9, 3, 64, True),
}
SIZES = {"cpu": (2**26, 2048), "cuda": (2**28, 8192)}  # of `limits`: numbers read, matrix side
PROMPT, PREFILL = 118, 9  # tokens, at random


@dataclass
class Work:
    """One update: B prompts, G samples of each, and what they are made with."""

    policy: Policy
    prompts: list[list[int]]
    group: int
    micro_batch: int

    @property
    def rows(self) -> int:
        return len(self.prompts) * self.group

    @property
    def steps(self) -> int:
        """Positions after the prompt: CoT, prefilled tokens, answer."""
        return self.policy.settings.cot + len(self.policy.form.prefill[1]) + ANSWER_TOKENS

    def rollout(self, policy: Policy, seed: int) -> list[Rollout]:
        samples = range(self.group)
        return policy.rollout([Request(x, (seed, i), samples) for i, x in enumerate(self.prompts)])

    def replay(self, policy: Policy, rollouts: list[Rollout]) -> None:
        """Forward and backward passes of one update; advantages 1, -1, 1, ..."""
        one = 1.0 - 2.0 * (torch.arange(self.group, device=policy.model.E.device) % 2)
        advantages = [one] * len(rollouts)
        policy.backward(rollouts, advantages, 1 / self.rows, micro_batch=self.micro_batch)


class FullLength:
    """A `data.Format` in which nothing ends before its budget is spent."""

    def __init__(self, prefill: list[int]):
        self.prefill = [prefill, prefill]

    def cot_ends(self, ids: list[int]) -> bool:
        return False

    def answer_ends(self, ids: list[int]) -> bool:
        return len(ids) == ANSWER_TOKENS


def prepare(args: argparse.Namespace, device: torch.device) -> Work:
    """The model of --model or --shape, and the prompts of the largest size; rows of a backward pass
    as train.py chooses them."""
    dtype, folder = checkpoint.DTYPES[args.dtype], {}
    if args.shape:
        model = random_model(SHAPES[args.shape], device, dtype)
    else:
        path = checkpoint.find(args.model)
        model, folder = checkpoint.load_model(path, device, dtype), checkpoint.read_about(path)
    lengths = [PREFILL, *[PROMPT] * max(args.prompts)]
    prefill, *prompts = (torch.randint(model.config.vocab_size, (n,)).tolist() for n in lengths)
    settings = resolve(folder, Flags(cot=args.cot), TRAIN_COT).for_model(model)
    kind = settings.kind(args.tokens[0])
    policy = Policy(engine.accelerate(model), FullLength(prefill), settings, kind)
    work = Work(policy, prompts, args.group, 1)
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


@torch.no_grad()
def limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes/s read from memory, floating-point operations/s of a large matrix product."""
    numbers, n = SIZES[device.type]
    large = torch.ones(numbers, device=device)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

    def best(function) -> float:
        took = {}
        for number in range(5):
            with clock(took, number):
                function()
        return min(took.values())

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
    """Seconds that a rollout and a replay need at least.

    Decoding reads every weight that is multiplied, each prompt's keys and values once and each
    row's own ones; a replay multiplies by every weight once forward and twice backward.
    Attention's own operations are left out.
    """
    policy, model = work.policy.of_kind(name), work.policy.model
    cot, layers, table = policy.settings.cot, matrices(model), model.E.numel()
    mixed = cot / work.steps if policy.kind.mixes else 0  # share that needs p E too
    weights = layers + table * (1 + mixed)
    cached = sum(map(len, work.prompts)) + work.rows * work.steps / 2  # positions
    read = weights * model.E.element_size() + cached * key_bytes(model, model.E.device.type)
    scored = (cot + ANSWER_TOKENS) / work.steps  # share whose logits a replay needs
    replay = 3 * work.rows * work.steps * 2 * (layers + table * (scored + mixed))
    step = max(read / can["bandwidth"], work.rows * 2 * weights / can["throughput"])
    return {"rollout": work.steps * step, "replay": replay / can["throughput"]}


def update(work: Work, optimizer: Optimizer, name: str, part: str, seed: int) -> dict[str, float]:
    """Seconds of the parts of one update."""
    policy, took = work.policy.of_kind(name), {}
    with clock(took, "rollout"):
        rollouts = work.rollout(policy, seed)
    if part == "rollout":
        return took
    with optimizer.summing(), clock(took, "replay"):
        work.replay(policy, rollouts)
    with clock(took, "optimizer"):
        optimizer.update(0, optimizer.collect())
    return {**took, "update": sum(took.values())}


class Rival:
    """The rollout of the same Work written with transformers: a loop over the forward pass of its
    model of the same folder, with fused attention, a growing cache, each prompt run once.
    (`generate`, eager attention and a static cache were slower wherever they were tried.)

    Dimensions: T positions at once, V vocabulary, d width.
    """

    def __init__(self, work, args):
        from transformers import AutoModelForCausalLM

        self.work, device = work, work.policy.model.E.device
        how = {"dtype": checkpoint.DTYPES[args.dtype], "attn_implementation": "sdpa"}
        model = AutoModelForCausalLM.from_pretrained(checkpoint.find(args.model), **how)
        self.model = model.to(device).eval()
        self.embed = self.model.get_input_embeddings()
        self.noise = soft.GAMMA * soft.rms(self.embed.weight)
        names = inspect.signature(model.forward).parameters
        self.cache = "cache" if "cache" in names else "past_key_values"  # as the version calls it
        self.prompts = torch.tensor(work.prompts, device=device)  # (B, T)
        forced = torch.tensor([work.policy.form.prefill[1]], device=device)
        self.forced = forced.expand(work.rows, -1)  # the prefilled tokens of each row

    def time(self, name: str, seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        policy, took = self.work.policy.of_kind(name), {}
        with clock(took, "rollout"):
            self.loop(policy.kind, policy.settings.cot, ANSWER_TOKENS)
        return took

    def forward(self, x: torch.Tensor, past):
        """Embeddings (., T, d) after what the cache holds -> logits (., V)."""
        how = {self.cache: past, "use_cache": True, "logits_to_keep": 1}
        return self.model(inputs_embeds=x, **how).logits[:, -1].float()

    @torch.no_grad()
    def loop(self, kind, cot: int, answer: int) -> None:
        """CoT, the prefilled tokens at once, answer."""
        from transformers import DynamicCache

        past, group = DynamicCache(), self.work.group
        logits = self.forward(self.embed(self.prompts), past).repeat_interleave(group, 0)
        past.batch_repeat_interleave(group)
        for t in range(cot + answer):
            p = (logits / kind.tau).softmax(-1)
            soft.measure(logits, p)
            if kind.mixes and t < cot:
                mean = p.to(self.embed.weight.dtype) @ self.embed.weight
                x = (mean + self.noise * torch.randn_like(mean))[:, None]
            else:
                x = self.embed(torch.multinomial(p, 1))
            if t == cot - 1:  # the prefilled tokens follow the CoT in the same pass
                x = torch.cat((x, self.embed(self.forced)), 1)
            logits = self.forward(x, past)


def contenders(args: argparse.Namespace, work: Work) -> dict:
    """{name: function of a seed -> {part: seconds}}, each warmed up: kinds of token, and with
    transformers."""
    schedule = Schedule(1e-9, 10, 0)  # so small a step leaves rollouts alike
    optimizer = Optimizer(work.policy.model, schedule, World(str(work.policy.model.E.device)))
    short, found = replace(work, policy=work.policy.of_kind(args.tokens[0], cot=8)), {}
    for name in args.tokens:
        update(short, optimizer, name, args.part, 0)  # warm-up
        found[name] = partial(update, work, optimizer, name, args.part)
    rival = Rival(work, args) if args.against else None
    for name in args.tokens if rival else ():
        rival.loop(work.policy.of_kind(name).kind, 2, 2)  # warm-up
        found[f"transformers {name} loop"] = partial(rival.time, name)
    return found


def rounds(contenders: dict, repeats: int, device: torch.device) -> dict:
    """{contender: {part: [seconds of each round]}}, and the peak of memory so far, on a GPU of the
    round, in GiB."""
    found = {name: {} for name in contenders}
    for seed in bar(range(repeats), unit="round"):
        for name, run in contenders.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            for part, value in {**run(seed), "peak_gib": peak_memory_gib(device)}.items():
                found[name].setdefault(part, []).append(value)
    return found


def speeds(work: Work, name: str, can: dict, took: dict[str, float]) -> dict[str, float]:
    """Tokens/s and, of a kind of token, the share of what could be, from the median seconds."""
    least, found = floor(work, name, can) if name in KINDS else {}, {}
    for part in [x for x in ("rollout", "replay") if x in took]:
        found[f"{part}_tokens_per_s"] = work.rows * work.steps / took[part]
        if least:
            found[f"{part}_share"] = least[part] / took[part]
    return {**found, "ms_per_step": 1e3 * took["rollout"] / work.steps}


def measure(args: argparse.Namespace) -> dict:
    """Everything that --out writes; a record of each size and contender.  Raises InputError."""
    alike = not (args.against and args.shape)
    expect(alike, "--against", "a model folder (--model)", "--shape")
    device, records = find_device(args.device, 0), []
    args.dtype = args.dtype or DTYPE_ON[device.type]
    can, work = limits(device, checkpoint.DTYPES[args.dtype]), prepare(args, device)
    for prompts in args.prompts:
        sized = replace(work, prompts=work.prompts[:prompts])
        for name, took in rounds(contenders(args, sized), args.repeats, device).items():
            middle = {part: median(of) for part, of in took.items()}
            record = {"rows": f"{prompts} x {args.group}", "tokens": name, **middle}
            records.append({**record, **speeds(sized, name, can, middle), "all": took})
    return {
        "records": records,
        **can,
        **{name: getattr(args, name) for name in ("model", "shape", "dtype", "cot")},
        **{name: getattr(work, name) for name in ("steps", "micro_batch")},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": processor(device),
    }


def table(found: dict) -> str:
    """A row for each record."""
    columns = dict.fromkeys(x for record in found["records"] for x in record if x != "all")
    rows = [[x.replace("_", " ") for x in columns]]
    for record in found["records"]:
        values = [record.get(x, "") for x in columns]
        rows.append([x if isinstance(x, str) else f"{x:,.{0 if x >= 100 else 2}f}" for x in values])
    return (
        f"{found['shape'] or found['model']}, {found['dtype']}, {found['processor']}, "
        f"{found['threads']} threads, torch {found['torch']}\n"
        f"{found['bandwidth'] / 1e9:.1f} GB/s read, {found['throughput'] / 1e9:,.0f} GFLOP/s: of "
        f"these are shares; {found['cot']} CoT tokens, {found['steps']} steps, "
        f"{found['micro_batch']} rows a backward pass; parts of an update in seconds\n\n"
        f"{markdown(rows)}"
    )


FLAGS = [
    command.MODEL[0],
    Option("shape", str, "random weights of this shape instead", choices=SHAPES),
    Option("tokens", str, "kinds of CoT token", ["hard", "soft"], choices=KINDS, nargs="+"),
    Option("prompts", COUNT, "B, problems; several sizes: in turn", [2], nargs="+", metavar="B"),
    Option("group", COUNT, "G, samples of each problem", 32),
    Option("cot", COUNT, f"CoT tokens; {ANSWER_TOKENS} answer tokens follow", 128),
    Option("part", str, "or only rollouts", "update", ("update", "rollout")),
    Option("repeats", COUNT, "rounds", 3),
    Option("against", str, "the same work with it too", choices=("transformers",)),
    command.OUT,
    DEVICE,
    DTYPE,
]


def main(argv=None) -> None:
    command.measure("bench", __doc__, FLAGS, argv, measure, table)


if __name__ == "__main__":
    as_program(main)
