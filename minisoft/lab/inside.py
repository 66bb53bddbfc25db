"""A look inside one chain of thought: what every step was fed (`figures.chain` draws it).

Dimensions: C CoT steps, d width, V vocabulary.
"""

from dataclasses import dataclass
from statistics import fmean

import torch

from minisoft.evaluation import SOFT, Setting
from minisoft.rollout import COT, Format, Rollout
from minisoft.soft import Hard, measure, rms

TOP = 5  # tokens of a mixture that are named


@dataclass(frozen=True)
class Step:
    """One CoT step.

    mixture: the TOP heaviest tokens and their weights in what was fed (of hard tokens: in what the
    token was drawn from); entropies in nats, of these weights and of the next token at temperature
    1; nearest: the token whose embedding is nearest to the input, and how far that is; support: so
    many tokens the input carries, and the largest weight (`soft.measure`).
    """

    shadow: str
    mixture: list[tuple[str, float]]
    mixture_entropy: float
    entropy: float
    nearest: str
    distance: float
    support: float = 1.0
    largest: float = 1.0


@dataclass(frozen=True)
class Chain:
    """A chain of thought: its scored generation (`evaluation.describe`), whether its kind of token
    mixes embeddings, at which tau, and the typical length |E_v| of an embedding."""

    setting: Setting
    generation: dict
    mixes: bool
    tau: float
    length: float
    steps: list[Step]


@torch.no_grad()
def look(model, form: Format, kind, rollout: Rollout, setting: Setting, generation: dict) -> Chain:
    """Describe the CoT steps of row 0 of a Rollout, by one teacher-forced pass."""
    C = len(rollout.tokens(0, COT))
    actions = rollout.taken(COT)[:C]
    prompt = model.embed(torch.tensor([rollout.prompt], device=model.E.device))  # (1, P, d)
    inputs = kind.embed(model, actions)  # (C, d)
    hidden = model(torch.cat((prompt, inputs[None, :-1]), 1))[0, -C:]  # (C, d)
    logits = model.logits(hidden)  # (C, V)
    weights, ids = kind.weights(model, actions, logits)  # (C, m)
    measured = measure(logits, weights)  # (C, 3)
    mixes = not isinstance(kind, Hard)
    if not mixes:
        weights, ids = (logits / kind.tau).softmax(-1), None
    weight, token = weights.topk(min(TOP, weights.shape[-1]))  # (C, TOP)
    token = token if ids is None else ids.gather(-1, token)
    mixed = torch.special.entr(weights).sum(-1)  # (C,)
    distance, nearest = torch.cdist(inputs.float(), model.E.float()).min(-1)  # (C,)

    def names(ids: list[int]) -> list[str]:
        return [form.tokenizer.decode([i]) or f"<{i}>" for i in ids]

    steps = []
    shadows, nearest = names(rollout.tokens(0, COT)), names(nearest.tolist())
    numbers = torch.stack((mixed, measured[:, 0], distance, *measured.T[1:]), 1).tolist()
    for t, (mixed, free, far, *carries) in enumerate(numbers):
        mixture = list(zip(names(token[t].tolist()), weight[t].tolist(), strict=True))
        steps.append(Step(shadows[t], mixture, mixed, free, nearest[t], far, *carries))
    length = rms(model.E) * model.config.hidden_size**0.5
    return Chain(setting, generation, mixes, kind.tau, length, steps)


def as_text(chain: Chain) -> str:
    """One line a step, for the terminal."""
    g, support = chain.generation, [s.support for s in chain.steps]
    lines = [
        f"\n{chain.setting}, tau {chain.tau:g}: {len(chain.steps)} steps; distances beside a "
        f"typical |E_v| of {chain.length:.2f}",
        f"question: {g['question']}",
        f"the input carries {_mean(support):.2f} tokens (effective support 1 / sum p^2, mean; "
        f"{_mean(x > SOFT for x in support):.0%} of steps above {SOFT}), its largest weight is "
        f"{_mean(s.largest for s in chain.steps):.3f}",
        f"{'step':>4}  {'fed as':<12} {'tokens':>6} {'H(mix)':>6} {'H':>6} {'nearest':<12} "
        f"{'dist':>5}  weights",
    ]
    for t, s in enumerate(chain.steps):
        weights = "  ".join(f"{token!r} {w:.3f}" for token, w in s.mixture if w >= 0.0005)
        lines.append(
            f"{t:>4}  {s.shadow!r:<12} {s.support:6.2f} {s.mixture_entropy:6.2f} {s.entropy:6.2f} "
            f"{s.nearest!r:<12} {s.distance:5.2f}  {weights}"
        )
    return "\n".join([*lines, f"answer: {g['answer']}   gold: {g['gold']}   reward: {g['reward']}"])


def _mean(values) -> float:
    return fmean(map(float, values))
