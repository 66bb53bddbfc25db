"""How much memory one rank needs, by arithmetic: nothing is run, the model may lie on `meta`.

The rollout, the backward passes and the update come one after the other; each has what stays
(weights, masters, moments) and memory of that phase; the largest of the three is what a rank
needs.  Tests hold the sums against measured peaks.
"""

from dataclasses import dataclass

import torch

from minisoft.engine.cache import FusedCache, RowCache
from minisoft.engine.replay import LOGITS_AT_ONCE, ON_GPU
from minisoft.model import Transformer


@dataclass(frozen=True)
class Machine:
    """Where a rank runs: "cpu" or "cuda"; over how many ranks masters and moments are shared out
    (1: each has all of them)."""

    device: str
    pieces: int = 1

    @property
    def is_cpu(self) -> bool:
        return self.device == "cpu"


@dataclass(frozen=True)
class Load:
    """One rank's part of a step: `rows` rows of so many `problems`, with a CoT budget, prefilled
    and answer tokens `after` it, the longest prompt, rows a backward pass takes at once, whether
    tokens mix all of E, whether layers are computed again in backward passes, and the bytes of an
    action of the CoT."""

    rows: int
    problems: int
    cot: int
    after: int
    prompt: int
    micro_batch: int
    mixes: bool
    recompute: bool = False
    action: int = 0

    @property
    def positions(self) -> int:
        return self.cot + self.after


def action_bytes(model: Transformer, kind) -> int:
    """Of one action of the CoT; the model lies on `meta`."""
    hidden = torch.empty(1, model.config.hidden_size, device="meta")
    logits = torch.empty(1, model.config.vocab_size, device="meta")
    action = kind.distribution(model, hidden, logits).mode()
    return action.numel() * action.element_size()


def parameters(model: Transformer) -> int:
    return sum(p.numel() for p in model.parameters())


def position_bytes(model: Transformer, stretch: float = 1.0, recompute: bool = False) -> float:
    """Bytes that one position of a row keeps for the backward pass, by measurement.

    stretch: (prompt + row) / row, since every row has the prompt's keys and values beside its own.
    """
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


def choose_micro_batch(
    model: Transformer, positions: int, memory: float, machine: Machine
) -> tuple[int, bool]:
    """(rows of `positions` positions that a backward pass may take at once where there are
    `memory` bytes in all; must layers be computed again in the backward pass?).

    They get half of what weights, gradients, masters and moments leave; the rest is for logits and
    rollouts.  Where not even one row fits, layers are computed again.
    """
    standing_bytes = sum(standing(model, machine).values())
    free = memory - standing_bytes - gradient_bytes(model, machine)
    rows = int(free / 2 / (positions * position_bytes(model)))
    most = 16 if machine.is_cpu else 64  # more gain nothing, and take longer on CPUs
    return min(max(rows, 1), most), rows < 1


def standing(model: Transformer, machine: Machine) -> dict[str, float]:
    """Bytes of what stays as long as the run."""
    N, size = parameters(model), model.E.element_size()
    own_masters = size == 4 and machine.pieces == 1  # float32 weights are their own masters
    return {
        "weights": N * size,
        "float32 masters": 0 if own_masters else 4 * N / machine.pieces,
        "AdamW's moments": 8 * N / machine.pieces,
    }


def gradient_bytes(model: Transformer, machine: Machine) -> float:
    """Bytes of the sum of this rank's backward passes, and of what one leaves in E."""
    a_sum = 8 if machine.is_cpu else 4
    return parameters(model) * a_sum + model.E.numel() * model.E.element_size()


def rollout_bytes(model: Transformer, load: Load, machine: Machine) -> dict[str, float]:
    """On CPUs copies of the matrices in oneDNN's order, and of W_d and E^T in float32; keys and
    values; numbers for every token of the vocabulary, or, if that is more, what copying E^T needs.
    """
    c, size = model.config, model.E.element_size()
    table = model.E.numel()
    stored = 1 if c.tie_word_embeddings else 2
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2) - stored * table
    used = 2 if load.mixes else 1  # W_d, and E^T for mixtures
    copies = matrices * size + 4 * table * used if machine.is_cpu else 0
    copying = 0
    if load.mixes and machine.is_cpu:
        copying = 4 * table * (1 if size == 4 else 2)
    vocabulary = max(4 * RowCache.round_up(load.rows) * c.vocab_size * 6, copying)
    recorded = 2 * load.rows * load.cot * load.action  # by place, and by problem
    parts = {"copies of weights": copies, "vocabulary": vocabulary, "actions": recorded}
    return parts | (cache_bytes(model, load, machine) if machine.is_cpu else {})


def cache_bytes(model: Transformer, load: Load, machine: Machine) -> dict[str, float]:
    """Keys and values, float32 on CPUs.  On GPUs each row has a copy of its prompt, and they stay
    from rollout to rollout."""
    c, size = model.config, 4 if machine.is_cpu else model.E.element_size()
    position = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * size
    N, up = RowCache.round_up(load.rows), RowCache.round_up
    if machine.is_cpu:
        positions = N * up(load.positions) + 2 * load.problems * up(load.prompt)  # and stacked
    else:
        length = -(-(load.positions + load.prompt) // FusedCache.WIDER) * FusedCache.WIDER
        positions = N * length + load.problems * load.prompt
    return {"keys and values": position * positions}


def backward_bytes(model: Transformer, load: Load, machine: Machine) -> dict[str, float]:
    """Of the second micro-batch and later ones, when all sums exist."""
    rows = min(load.micro_batch, load.rows)
    most = LOGITS_AT_ONCE * (1 if machine.is_cpu else ON_GPU)
    chunk = min(most, rows * load.cot * model.config.vocab_size)
    stretch = 1 + load.prompt / load.positions
    kept = rows * load.positions * position_bytes(model, stretch, load.recompute)
    kept += load.prompt * position_bytes(model, recompute=load.recompute)
    return {
        "gradient": gradient_bytes(model, machine),
        "activations": kept,
        "vocabulary": 3 * 4 * chunk,
        "actions": load.rows * load.cot * load.action * (1 if machine.is_cpu else 2),
    }


def plan(model: Transformer, load: Load, machine: Machine) -> dict[str, dict[str, float]]:
    """{phase: {what: bytes}}; phases: always, rollout, backward, update."""
    whole = 12 if machine.is_cpu else 8  # of E: its sum over ranks, and in float32
    update = 4 * parameters(model) / machine.pieces + model.E.numel() * whole
    return {
        "always": standing(model, machine)
        | ({} if machine.is_cpu else cache_bytes(model, load, machine)),
        "rollout": rollout_bytes(model, load, machine),
        "backward": backward_bytes(model, load, machine),
        "update": {"gradient": update},
    }


def largest_phase(phases: dict[str, dict[str, float]]) -> str:
    """The phase after `always` that needs the most."""
    return max(list(phases)[1:], key=lambda phase: sum(phases[phase].values()))


def peak(phases: dict[str, dict[str, float]]) -> float:
    """The bytes of `always` and of the largest phase."""
    return sum(phases["always"].values()) + sum(phases[largest_phase(phases)].values())


def table(phases: dict[str, dict[str, float]]) -> list[list[str]]:
    """The plan as rows of a table, in GiB."""
    rows = [["when", "what", "GiB"]]
    for phase, parts in phases.items():
        rows += [[phase, what, f"{size / 2**30:.2f}"] for what, size in parts.items() if size]
    return [*rows, ["peak", f"always + {largest_phase(phases)}", f"{peak(phases) / 2**30:.2f}"]]
