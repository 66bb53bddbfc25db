"""How much memory a rank needs and how long an update takes, by arithmetic (`train.py --plan
RANKS`); the model may lie on `meta`.  Rollout, backward passes and update follow each other; a rank
needs what stays and the largest of the three.  Tests hold both to measured ones."""

import math
import os
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minisoft import data
from minisoft.data import ANSWER_TOKENS, Format
from minisoft.engine.cache import FusedCache, RowCache
from minisoft.engine.replay import LOGITS_AT_ONCE, ON_GPU
from minisoft.io import checkpoint, datasets
from minisoft.io.tokenizer import Tokenizer
from minisoft.kinds.options import COUNT
from minisoft.model import Transformer
from minisoft.run.metrics import markdown
from minisoft.run.settings import Settings
from minisoft.run.world import from_launcher, read_device, share

CGROUP = Path("/sys/fs/cgroup")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them is there
SHARDED_ABOVE = 4e9  # parameters from which on masters and moments are kept in pieces
RANKS = (1, 2, 4, 8, 16, 32, 64)  # whose seconds are printed
GAIN = 0.1  # of an update's seconds: twice as many ranks that save less do not help
SUMS = {"cpu": 8, "cuda": 4}  # bytes of a number in the sum of a rank's backward passes
RATES = {  # bytes/s read, FLOP/s of products, seconds of a position besides, bytes/s to other ranks
    # of an H100's 3.35 TB/s, 989 TFLOP/s (bfloat16, dense), NVLink 450 GB/s; NCCL was never run
    "cuda": (0.70 * 3.35e12, 0.35 * 989e12, 1.35e-3, 0.5 * 450e9),
    "cpu": (16e9, 46e9, 3.7e-3, 1e9),
}
MEASURED = {  # minisoft/engine/README.md
    "cuda": "one H100, with 1B and 3B in bfloat16, 2 x 32 rows; never several GPUs",
    "cpu": "one core of an AMD EPYC with AVX512, with the embedded model, 2 x 32 and 16 x 32 rows",
}


@dataclass(frozen=True)
class Load:
    """One rank's part of a step: `rows` rows of so many `problems`, with a CoT budget, prefilled
    and answer tokens `after` it, the longest prompt, rows a backward pass takes at once, whether
    tokens mix all of E, whether layers are computed again in backward passes, bytes of an action of
    the CoT, "cpu" or "cuda", and how many ranks masters and moments are shared out over."""

    rows: int
    problems: int
    cot: int
    after: int
    prompt: int
    micro_batch: int
    mixes: bool
    recompute: bool = False
    action: int = 0
    device: str = "cpu"
    pieces: int = 1

    @property
    def positions(self) -> int:
        return self.cot + self.after


def memory_bytes(device: torch.device) -> float:
    """All the memory there is, free or not, so that a run always meets the same."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(ram, container_limit("memory.max")) / from_launcher("LOCAL_WORLD_SIZE", 1, COUNT)


def container_limit(name: str) -> float:
    """Bytes of a container's memory.max, cores of its cpu.max (cgroup v2); infinite without one."""
    with suppress(OSError, ValueError):  # none is called max
        quota, *period = (CGROUP / name).read_text().split()
        return float(quota) / float(*period or [1])
    return math.inf


def action_bytes(model: Transformer, kind) -> int:
    """Of one action of the CoT; the model lies on `meta`."""
    sizes = (model.config.hidden_size, model.config.vocab_size)
    hidden, logits = (torch.empty(1, size, device="meta") for size in sizes)
    action = kind.distribution(model, hidden, logits).mode()
    return action.numel() * action.element_size()


def parameters(model: Transformer) -> int:
    return sum(p.numel() for p in model.parameters())


def in_pieces(shard: str, model: Transformer) -> bool:
    """Are float32 masters and AdamW's moments kept in pieces?  shard: auto, yes or no."""
    return shard == "yes" or (shard == "auto" and parameters(model) > SHARDED_ABOVE)


def position_bytes(model: Transformer, stretch: float = 1.0, recompute: bool = False) -> float:
    """Bytes that one position of a row keeps for the backward pass, by measurement; stretch:
    (prompt + row) / row, since every row has the prompt's keys and values beside its own."""
    c, size = model.config, model.E.element_size()
    if recompute:
        return c.num_hidden_layers * c.hidden_size * size
    normed = 6.5 if size == 4 else 11.25  # norms keep float32
    kept = (2 * c.num_attention_heads + 2 * stretch * c.num_key_value_heads) * c.head_dim
    kept += c.num_attention_heads
    if c.qk_norm:
        heads = c.num_attention_heads + c.num_key_value_heads
        kept += (2 if size == 4 else 4) * heads * c.head_dim
    kept += normed * c.hidden_size + 4 * c.intermediate_size
    return c.num_hidden_layers * kept * size


def choose_micro_batch(model: Transformer, positions: int, memory: float, device: str, pieces=1):
    """(rows of `positions` positions that a backward pass may take at once where there are `memory`
    bytes in all; must layers be computed again, as not even one row fits?).  They get half of what
    weights, gradients, masters and moments leave; the rest is for logits and rollouts."""
    free = memory - sum(standing(model, pieces).values()) - gradient_bytes(model, device)
    rows = int(free / 2 / (positions * position_bytes(model)))
    most = 16 if device == "cpu" else 64  # more gain nothing, and take longer on CPUs
    return min(max(rows, 1), most), rows < 1


def standing(model: Transformer, pieces: int = 1) -> dict[str, float]:
    """Bytes of what stays as long as the run."""
    N, size = parameters(model), model.E.element_size()
    own_masters = size == 4 and pieces == 1  # float32 weights are their own masters
    return {
        "weights": N * size,
        "float32 masters": 0 if own_masters else 4 * N / pieces,
        "AdamW's moments": 8 * N / pieces,
    }


def gradient_bytes(model: Transformer, device: str) -> float:
    """Bytes of the sum of this rank's backward passes, and of what one leaves in E."""
    return parameters(model) * SUMS[device] + model.E.numel() * model.E.element_size()


def matrices(model: Transformer) -> int:
    """Numbers of the layers' matrices."""
    tables = (1 if model.config.tie_word_embeddings else 2) * model.E.numel()
    return sum(p.numel() for p in model.parameters() if p.dim() == 2) - tables


def key_bytes(model: Transformer, device: str) -> int:
    """Of the keys and values of a position: float32 on CPUs."""
    c, size = model.config, 4 if device == "cpu" else model.E.element_size()
    return 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * size


def cache_bytes(model: Transformer, load: Load) -> int:
    """Keys and values.  On GPUs each row has a copy of its prompt, and they stay."""
    N, up = RowCache.round_up(load.rows), RowCache.round_up
    if load.device == "cpu":
        positions = N * up(load.positions) + 2 * load.problems * up(load.prompt)  # and stacked
    else:
        length = -(-(load.positions + load.prompt) // FusedCache.WIDER) * FusedCache.WIDER
        positions = N * length + load.problems * load.prompt
    return key_bytes(model, load.device) * positions


def memory(model: Transformer, load: Load) -> dict[str, dict[str, float]]:
    """{phase: {what: bytes}}; phases: always, rollout, backward, update.

    A rollout has on CPUs copies of the matrices in oneDNN's order, and of W_d and E^T in float32;
    numbers for every token of the vocabulary, or, if that is more, what copying E^T needs.  The
    backward passes are the second micro-batch and later ones, when all sums exist.
    """
    size, table, on_cpu = model.E.element_size(), model.E.numel(), load.device == "cpu"
    V, always, rollout = model.config.vocab_size, standing(model, load.pieces), {}
    used = 2 if load.mixes else 1  # W_d, and E^T for mixtures
    copying = 4 * table * (1 if size == 4 else 2) if load.mixes and on_cpu else 0
    rollout["copies of weights"] = matrices(model) * size + 4 * table * used if on_cpu else 0
    rollout["vocabulary"] = max(4 * RowCache.round_up(load.rows) * V * 6, copying)
    actions = load.rows * load.cot * load.action
    rollout["actions"] = 2 * actions  # by place, and by problem
    cached = rollout if on_cpu else always
    cached["keys and values"] = cache_bytes(model, load)
    rows = min(load.micro_batch, load.rows)
    most = LOGITS_AT_ONCE * (1 if on_cpu else ON_GPU)
    stretch = 1 + load.prompt / load.positions
    kept = rows * load.positions * position_bytes(model, stretch, load.recompute)
    kept += load.prompt * position_bytes(model, recompute=load.recompute)
    backward = {
        "gradient": gradient_bytes(model, load.device),
        "activations": kept,
        "vocabulary": 3 * 4 * min(most, rows * load.cot * V),
        "actions": actions * (1 if on_cpu else 2),
    }
    whole = 12 if on_cpu else 8  # of E: its sum over ranks, and in float32
    update = {"gradient": 4 * parameters(model) / load.pieces + table * whole}
    return {"always": always, "rollout": rollout, "backward": backward, "update": update}


def peak(phases: dict[str, dict[str, float]]) -> tuple[str, float]:
    """(the phase after `always` that needs the most, bytes of both)"""
    sums = {phase: sum(parts.values()) for phase, parts in phases.items()}
    always = sums.pop("always")
    largest = max(sums, key=sums.get)
    return largest, always + sums[largest]


def seconds(model: Transformer, load: Load, ranks: int) -> dict[str, float]:
    """Of the parts of an update in which no row ends before its budget, without rewards.  A
    position of a rollout reads the weights, or multiplies by them if that is slower, and the rows'
    keys and values; a replay multiplies by every weight once forward, or twice, and twice backward.
    """
    read, multiply, position, link = RATES[load.device]
    N, size, summed = parameters(model), model.E.element_size(), SUMS[load.device]
    mixed = load.cot / load.positions if load.mixes else 0  # share of positions that need p E too
    scored = (load.cot + ANSWER_TOKENS) / load.positions  # whose logits a replay needs
    used = matrices(model) + model.E.numel() * (1 + mixed)
    weights = max(size * used / read, 2 * load.rows * used / multiply)
    keys = load.rows * (load.prompt + load.positions / 2) * key_bytes(model, load.device)
    replayed = matrices(model) + model.E.numel() * (scored + mixed)
    products = 2 * load.rows * load.positions * replayed * (4 if load.recompute else 3)
    passes = max(load.problems, -(-load.rows // load.micro_batch))
    sent = N * (2 * summed + (size if load.pieces > 1 else 0)) * (ranks - 1) / ranks
    return {
        "rollout": load.positions * (weights + keys / read + position),
        "replay": products / multiply + passes * N * (size + 2 * summed) / read,
        "exchange": sent / link,
        "optimizer": N * (40 / load.pieces + 16) / read,  # what it reads and writes
    }


def text(args: Namespace, source: Path, settings: Settings) -> str:
    """What --plan prints.  args: the filled flags of train.py.  Without a tokenizer prompts are
    taken to have 256 tokens, without a GPU one to have 80 GB."""
    model = checkpoint.outline(source).to(checkpoint.DTYPES[args.dtype])
    device = read_device(args.device).type  # which need not be there
    exists = device == "cpu" or torch.cuda.is_available()
    there = memory_bytes(torch.device(device)) if exists else 80e9
    prompt, after = _lengths(args.data, source, settings.template)
    kind = replace(settings, sigma=1.0).kind(args.tokens)
    action = action_bytes(model, kind)
    whole = Load(0, 0, args.cot, after, prompt, 0, kind.mixes, False, action, device)
    ranks = {n for n in RANKS if args.prompts * args.group % n == 0} | {args.plan}
    loads = {n: of_rank(model, args, whole, n, there) for n in sorted(ranks)}
    load = loads[args.plan]
    rows, phases = [["when", "what", "GiB"]], memory(model, load)
    for phase, parts in phases.items():
        rows += [[phase, what, f"{size / 2**30:.2f}"] for what, size in parts.items() if size]
    largest, most = peak(phases)
    rows.append(["peak", f"always + {largest}", f"{most / 2**30:.2f}"])
    return (
        f"{args.model}: {parameters(model):,} parameters, {args.dtype}, {args.plan} ranks of "
        f"{device} with {there / 2**30:.0f} GiB, masters and moments "
        f"{'in pieces' if load.pieces > 1 else 'on every rank'}\n"
        f"a rank's part of a step: {load.rows} rows of {load.problems} problems, prompts of "
        f"{prompt} and rows of {load.positions} tokens, {load.micro_batch} rows at a time backward"
        f"{', layers computed twice' if load.recompute else ''}\n"
        f"{time_table(model, loads, args.steps)}\n\n{markdown(rows)}"
    )


def of_rank(model: Transformer, args: Namespace, whole: Load, ranks: int, there: float) -> Load:
    """The part of the rank of `ranks` that has the most problems; there: its bytes of memory."""
    shares = [share(rank, ranks, args.prompts, args.group) for rank in range(ranks)]
    rows = args.prompts * args.group // ranks
    pieces = ranks if in_pieces(args.shard, model) else 1
    chosen, again = choose_micro_batch(model, whole.positions, there, whole.device, pieces)
    micro_batch = min(rows, args.micro_batch or chosen)
    part = replace(whole, rows=rows, problems=max(map(len, shares)), micro_batch=micro_batch)
    return replace(part, recompute=again, pieces=pieces)


def time_table(model: Transformer, loads: dict[int, Load], steps: int) -> str:
    """Of each number of ranks the seconds of an update, and from which on more do not help."""
    rows, updates = [], {}
    for ranks, load in loads.items():
        parts = seconds(model, load, ranks)
        updates[ranks] = sum(parts.values())
        numbers = [*parts.values(), updates[ranks], steps * updates[ranks] / 3600]
        _, most = peak(memory(model, load))
        rows.append([f"{ranks}", *(f"{x:.3g}" for x in numbers), f"{most / 2**30:.1f}"])
    head = ["ranks", *parts, "update, s", f"{steps} updates, h", "GiB a rank"]
    saved = {n: 1 - updates[2 * n] / s for n, s in updates.items() if 2 * n in updates}
    last = min((n for n, gain in saved.items() if gain < GAIN), default=max(updates))
    why = f"twice as many save {saved[last]:.0%}" if last in saved else "the largest planned"
    return (
        "estimated seconds of an update whose rows all spend their budget, without rewards and "
        f"validation\n(measured on {MEASURED[load.device]})\n{markdown([head, *rows])}\n"
        f"more ranks help up to {last}: {why}"
    )


def _lengths(source_of_data: str, source: Path, template: str) -> tuple[int, int]:
    """Tokens of the longest prompt, and most tokens after a CoT."""
    if not any((source / name).is_file() for name in VOCABULARIES):
        return 256, 16 + ANSWER_TOKENS
    tokenizer = Tokenizer(source)
    problems = datasets.load_problems(source_of_data)
    longest = max(problems, key=lambda problem: len(problem.question)).question
    prompt = tokenizer.encode(data.prompt(longest, template))
    return len(prompt), max(map(len, Format(tokenizer).prefill)) + ANSWER_TOKENS
