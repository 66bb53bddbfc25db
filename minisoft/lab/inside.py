"""A look inside one chain of thought: what every step was fed (`figures.chain` draws it).

Dimensions: C CoT steps, d width, V vocabulary.
"""

from dataclasses import dataclass

import torch

from minisoft.evaluation import Setting
from minisoft.rollout import COT, Format, Rollout
from minisoft.soft import entropy, rms

TOP = 5  # tokens of a mixture that are named


@dataclass(frozen=True)
class Step:
    """One CoT step.

    mixture: the TOP most likely tokens and their weights in what was fed (of hard tokens: in what
    the token was drawn from); entropies in nats, of the mixture's weights and of the next token at
    temperature 1; nearest: the token whose embedding is nearest to the input, and how far that is.
    """

    shadow: str
    mixture: list[tuple[str, float]]
    mixture_entropy: float
    entropy: float
    nearest: str
    distance: float


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
    fed = kind.fed(model, actions, logits) / kind.tau  # (C, V)
    fed = (fed - fed.amax(-1, keepdim=True)).clamp(min=-1e30)  # an entropy needs finite numbers
    weight, token = fed.softmax(-1).topk(min(TOP, fed.shape[-1]))  # (C, TOP)
    distance, nearest = torch.cdist(inputs.float(), model.E.float()).min(-1)  # (C,)

    def names(ids: list[int]) -> list[str]:
        return [form.tokenizer.decode([i]) or f"<{i}>" for i in ids]

    steps = []
    shadows, nearest = names(rollout.tokens(0, COT)), names(nearest.tolist())
    numbers = torch.stack((entropy(fed), entropy(logits), distance), 1).tolist()
    for t, (mixed, free, far) in enumerate(numbers):
        mixture = list(zip(names(token[t].tolist()), weight[t].tolist(), strict=True))
        steps.append(Step(shadows[t], mixture, mixed, free, nearest[t], far))
    length = rms(model.E) * model.config.hidden_size**0.5
    return Chain(setting, generation, kind.mixes, kind.tau, length, steps)


def as_text(chain: Chain) -> str:
    """One line a step, for the terminal."""
    g = chain.generation
    lines = [
        f"\n{chain.setting}, tau {chain.tau:g}: {len(chain.steps)} steps; distances beside a "
        f"typical |E_v| of {chain.length:.2f}",
        f"question: {g['question']}",
        f"{'step':>4}  {'fed as':<12} {'H(mix)':>6} {'H':>6} {'nearest':<12} {'dist':>5}  weights",
    ]
    for t, s in enumerate(chain.steps):
        weights = "  ".join(f"{token!r} {w:.3f}" for token, w in s.mixture if w >= 0.0005)
        lines.append(
            f"{t:>4}  {s.shadow!r:<12} {s.mixture_entropy:6.2f} {s.entropy:6.2f} {s.nearest!r:<12} "
            f"{s.distance:5.2f}  {weights}"
        )
    return "\n".join([*lines, f"answer: {g['answer']}   gold: {g['gold']}   reward: {g['reward']}"])
