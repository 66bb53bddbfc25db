"""A look inside one chain of thought: what every step was fed, as text and as a page that needs nothing else.

Dimensions: C CoT steps, d width, V vocabulary.
"""

from dataclasses import dataclass
from html import escape

import torch

from minisoft.model import PromptCache
from minisoft.reinforce import encodings
from minisoft.rollout import COT, Format, Rollout
from minisoft.soft import entropy, rms

TOP = 5  # tokens of a mixture that are named


@dataclass(frozen=True)
class Step:
    """One CoT step.  mixture: the TOP most likely tokens and their weights in what was fed (of hard tokens: in what the
    token was drawn from); entropies in nats, of the mixture's weights and of the next token at temperature 1; nearest: the
    token whose embedding is nearest to the input, and the Euclidean distance."""

    shadow: str
    mixture: list[tuple[str, float]]
    mixture_entropy: float
    entropy: float
    nearest: str
    distance: float


@dataclass(frozen=True)
class Chain:
    """A chain of thought: its setting, the scored generation (`evaluation.describe`), tau, the typical length
    |E_v| of an embedding, and the steps."""

    setting: str
    generation: dict
    tau: float
    length: float
    steps: list[Step]


@torch.no_grad()
def look(model, form: Format, kind, record: Rollout, setting: str, generation: dict) -> Chain:
    """Replay row 0 of a Rollout and describe its CoT steps."""
    hidden, cache = model.prefill(torch.tensor([record.prompt], device=model.E.device))
    row = torch.zeros(1, dtype=torch.long, device=model.E.device)
    prompt = PromptCache(keys=cache.keys, values=cache.values)
    C = len(record.tokens(0, COT))
    logits = model.logits(encodings(model, kind, record, row, prompt, hidden[:, -1])[0, :C])  # (C, V)
    actions, E = record.actions[0, :C], model.E.float()
    fed = kind.fed(model, actions, logits) / kind.tau  # (C, V)
    weight, token = fed.softmax(-1).topk(min(TOP, fed.shape[-1]))  # (C, TOP)
    distance, nearest = torch.cdist(kind.embed(model, actions).float(), E).min(-1)  # (C,)
    name = lambda ids: [form.tokenizer.decode([i]) or f"<{i}>" for i in ids]
    steps = [Step(*step) for step in zip(
        name(record.tokens(0, COT)), [list(zip(name(t), w)) for t, w in zip(token.tolist(), weight.tolist())],
        entropy((fed - fed.amax(-1, keepdim=True)).clamp(min=-1e30)).tolist(), entropy(logits).tolist(), name(nearest.tolist()),
        distance.tolist())]
    return Chain(setting, generation, kind.tau, rms(E) * E.shape[1] ** 0.5, steps)


def as_text(chain: Chain) -> str:
    """One line a step, for the terminal."""
    g = chain.generation
    lines = [f"\n{chain.setting}, tau {chain.tau:g}: {len(chain.steps)} steps; distances beside a typical |E_v| of "
             f"{chain.length:.2f}", f"question: {g['question']}",
             f"{'step':>4}  {'fed as':<12} {'H(mix)':>6} {'H':>6} {'nearest':<12} {'dist':>5}  weights"]
    for t, s in enumerate(chain.steps):
        weights = "  ".join(f"{token!r} {weight:.3f}" for token, weight in s.mixture if weight >= 0.0005)
        lines.append(f"{t:>4}  {s.shadow!r:<12} {s.mixture_entropy:6.2f} {s.entropy:6.2f} {s.nearest!r:<12} "
                     f"{s.distance:5.2f}  {weights}")
    return "\n".join([*lines, f"answer: {g['answer']}   gold: {g['gold']}   reward: {g['reward']}"])


STYLE = """body{font:15px/1.4 sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#111}
table{border-collapse:collapse;width:100%}td,th{padding:.15em .5em;text-align:left;border-bottom:1px solid #ddd}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}code{background:#eee;padding:0 .2em;white-space:pre}
.mix{width:45%;min-width:14em}.bar{display:flex;height:1.4em;border:1px solid #888;font:12px/1.4em monospace}
.bar span{overflow:hidden;white-space:pre;text-align:center;border-right:1px solid #888;box-sizing:border-box}
.bar span:nth-child(1){background:#bbb}.bar span:nth-child(2){background:#ddd}.bar span:nth-child(3){background:#eee}"""
EXPLANATION = """Each line is one step of the chain of thought. The bar is the mixture of embeddings that was fed (for hard
tokens: the probabilities that the token was drawn from), its pieces as wide as the weights, white for all other tokens.
H(mixture) is the entropy of these weights, H that of the next token at temperature 1, both in nats. The last columns say
which token's embedding lies nearest to the input after noise, and how far away it is."""


def as_page(title: str, chains: list[Chain]) -> str:
    """Chains of thought as one HTML page without scripts or links; all text of the model is escaped."""
    body = "".join(_section(chain) for chain in chains)
    return (f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
            f"<h1>{escape(title)}</h1><p>{EXPLANATION}</p>{body}</html>\n")


def _section(chain: Chain) -> str:
    g = chain.generation
    rows = "".join(_line(t, step) for t, step in enumerate(chain.steps))
    return (f"<h2>{escape(chain.setting)}, &tau; = {chain.tau:g}</h2><p>{escape(g['question'])}</p>"
            f'<table><tr><th class="n">step<th>shadow token<th class="mix">mixture<th class="n">H(mixture)<th class="n">H'
            f'<th>nearest<th class="n">distance</tr>{rows}</table><p>Answer <code>{escape(g["answer"])}</code>, gold '
            f"<code>{escape(g['gold'])}</code>, reward {g['reward']}. A typical embedding has length {chain.length:.2f}.</p>")


def _line(t: int, s: Step) -> str:
    bar = "".join(f'<span style="width:{100 * weight:.2f}%" title="{escape(repr(token))} {weight:.4f}">'
                  f'{escape(token)}</span>' for token, weight in s.mixture if weight >= 0.005)
    return (f'<tr><td class="n">{t}<td><code>{escape(s.shadow)}</code><td class="mix"><div class="bar">{bar}</div>'
            f'<td class="n">{s.mixture_entropy:.2f}<td class="n">{s.entropy:.2f}<td><code>{escape(s.nearest)}</code>'
            f'<td class="n">{s.distance:.2f}</tr>')
