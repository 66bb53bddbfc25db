"""How much memory one rank needs, by arithmetic: nothing is run, and the model may lie on the meta device.

    python train.py --model FOLDER --data FILE --plan 8       # of each of 8 ranks; FOLDER needs no weights

The rollout, the backward passes and the update come one after the other; each has what stays (weights, masters, moments)
and something of its own, and the largest of the three is what a rank needs.  Tests hold the sums against measured peaks.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from minisoft import data
from minisoft.io import checkpoint, datasets
from minisoft.io.tokenizer import Tokenizer
from minisoft.lab import tables
from minisoft.model import RowCache, Transformer
from minisoft.reinforce import LOGITS_AT_ONCE
from minisoft.rollout import ANSWER_TOKENS, Format
from minisoft.training.world import share


def position_bytes(model: Transformer, stretch: float = 1.0) -> float:
    """Bytes that one position of a row keeps for the backward pass, by measurement; stretch: (prompt + row) / row, because
    every row has the prompt's keys and values beside its own."""
    c, size = model.config, model.E.element_size()
    if model.recompute:
        return c.num_hidden_layers * c.hidden_size * size
    normed = 6.5 if size == 4 else 11.25  # norms keep float32
    heads = (2 * c.num_attention_heads + 2 * stretch * c.num_key_value_heads) * c.head_dim + c.num_attention_heads
    heads += (2 if size == 4 else 4) * c.qk_norm * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim
    return c.num_hidden_layers * (normed * c.hidden_size + 4 * c.intermediate_size + heads) * size


def choose_micro_batch(model: Transformer, positions: int, memory: float, pieces: int, device: str) -> tuple[int, bool]:
    """(rows of `positions` positions that a backward pass may take at once where there are `memory` bytes in all; must
    layers be computed again in the backward pass?).

    They get half of what weights, gradients, float32 masters and AdamW's moments in `pieces` leave; the rest is for logits
    and rollouts.  Where not even one row fits, layers are computed again."""
    free = memory - sum(standing(model, pieces).values()) - gradient_bytes(model, pieces, device)
    rows = int(free / 2 / (positions * position_bytes(model)))
    return min(max(rows, 1), 64 if device == "cuda" else 16), rows < 1  # more gain nothing, and take longer on CPUs


def standing(model: Transformer, pieces: int) -> dict[str, float]:
    """Bytes of what stays as long as the run."""
    N, size = sum(p.numel() for p in model.parameters()), model.E.element_size()
    return {"weights": N * size, "float32 masters": 0 if size == 4 and pieces == 1 else 4 * N / pieces,
            "AdamW's moments": 8 * N / pieces}


def gradient_bytes(model: Transformer, pieces: int, device: str) -> float:
    """Bytes of the sum of this rank's backward passes, of what one of them leaves in the largest matrix, and, in steps that
    measure the shares of answer and CoT, of the collected answer part."""
    N = sum(p.numel() for p in model.parameters())
    return N * (8 if device == "cpu" else 4) + model.E.numel() * model.E.element_size() + 4 * N / pieces


@dataclass(frozen=True)
class Load:
    """One rank's part of a step: rows of so many problems, CoT budget, prefilled and answer tokens, the longest prompt."""

    rows: int
    problems: int
    cot: int
    after: int
    prompt: int
    micro_batch: int
    soft: bool

    @property
    def positions(self) -> int:
        return self.cot + self.after


def rollout_bytes(model: Transformer, load: Load, device: str) -> dict[str, float]:
    """Copies of the matrices in oneDNN's order on CPUs, and of W_d and E^T in float32; caches; numbers for every token of
    the vocabulary, or, if that is more, what the copying of E^T needs."""
    c, size, cpu = model.config, model.E.element_size(), device == "cpu"
    tables = 1 if c.tie_word_embeddings else 2
    layers = sum(p.numel() for p in model.parameters() if p.dim() == 2) - tables * model.E.numel()
    tables = 1 + load.soft if cpu else 0 if size == 4 else 1 if c.tie_word_embeddings else 1 + load.soft
    position = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * (4 if cpu else size)
    N, up = RowCache.round_up(load.rows), RowCache.round_up
    prompts = 1 << (load.problems - 1).bit_length()  # their places are doubled at need
    copying = load.soft * cpu * 4 * model.E.numel() * (1 if size == 4 else 2)
    return {"copies of weights": layers * size * cpu + 4 * model.E.numel() * tables,
            "keys and values": position * (N * up(load.positions) + prompts * up(load.prompt)),
            "vocabulary": max(4 * N * c.vocab_size * 6, copying)}


def backward_bytes(model: Transformer, load: Load, pieces: int, device: str) -> dict[str, float]:
    """Of the second micro-batch and later ones, when all sums exist."""
    rows = min(load.micro_batch, load.rows)
    chunk = min(LOGITS_AT_ONCE, rows * load.cot * model.config.vocab_size)
    kept = rows * load.positions * position_bytes(model, 1 + load.prompt / load.positions)
    kept += load.prompt * position_bytes(model)
    return {"gradient": gradient_bytes(model, pieces, device), "activations": kept, "vocabulary": 3 * 4 * chunk}


def plan(model: Transformer, load: Load, pieces: int, device: str) -> dict[str, dict[str, float]]:
    """{phase: {what: bytes}}; phases: always, rollout, backward, update."""
    N = sum(p.numel() for p in model.parameters())
    one = model.E.numel() * (12 if device == "cpu" else 8)  # of the largest matrix: its sum over ranks, and in float32
    return {"always": standing(model, pieces), "rollout": rollout_bytes(model, load, device),
            "backward": backward_bytes(model, load, pieces, device),
            "update": {"gradient": 4 * N / pieces + one}}


def describe(found: dict[str, dict[str, float]]) -> list[list[str]]:
    """The plan as rows of a table, in GiB."""
    rows = [["when", "what", "GiB"]]
    for phase, parts in found.items():
        rows += [[phase, what, f"{number / 2**30:.2f}"] for what, number in parts.items() if number]
    return [*rows, ["peak", f"always + {max(list(found)[1:], key=lambda phase: sum(found[phase].values()))}",
                    f"{peak(found) / 2**30:.2f}"]]


def peak(found: dict[str, dict[str, float]]) -> float:
    """The bytes of `always` and of the largest phase."""
    sums = {phase: sum(parts.values()) for phase, parts in found.items()}
    return sums.pop("always") + max(sums.values())


def of_run(args, source: Path, pieces: int) -> str:
    """What --plan prints: the memory of the rank with the most problems.  args: the flags of train.py; where `source` has no
    tokenizer, prompts are taken to have 256 tokens, and where there is no GPU, one to have 80 GB."""
    model = checkpoint.outline(source).to(checkpoint.DTYPES[args.dtype])
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    there = device.type == "cpu" or torch.cuda.is_available()
    memory = tables.memory_bytes(device) if there else 80e9
    prompt, after = 256, 16 + ANSWER_TOKENS
    if any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        tokenizer, about = Tokenizer(source), checkpoint.read_about(source)
        template = datasets.read_prompt(args.prompt) if args.prompt else about.get("prompt", data.PAPER_PROMPT)
        longest = max(datasets.load_problems(args.data), key=lambda problem: len(problem.question)).question
        prompt = len(tokenizer.encode(data.prompt(longest, template)))
        after = max(map(len, Format(tokenizer).prefill)) + ANSWER_TOKENS
    problems = max(len(share(rank, args.plan, args.prompts, args.group)) for rank in range(args.plan))
    rows = args.prompts * args.group // args.plan
    micro_batch, model.recompute = choose_micro_batch(model, args.cot + after, memory, pieces, device.type)
    load = Load(rows, problems, args.cot, after, prompt, min(rows, args.micro_batch or micro_batch), args.tokens != "hard")
    return (f"{args.model}: {sum(p.numel() for p in model.parameters()):,} parameters, {args.dtype}, {args.plan} ranks of "
            f"{device.type} with {memory / 2**30:.0f} GiB, masters and moments "
            f"{'in pieces' if pieces > 1 else 'on every rank'}\n"
            f"a rank's part of a step: {rows} rows of {problems} problems, prompts of {prompt} and rows of {load.positions} "
            f"tokens, {load.micro_batch} rows at a time backward{', layers computed twice' * model.recompute}\n"
            f"{tables.table(describe(plan(model, load, pieces, device.type)))}")
