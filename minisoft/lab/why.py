"""Why some kinds of token learn and others do not: the noise of their scores (not in the paper).

    python -m minisoft.lab.why --out why.json       # and why.md
    python -m minisoft.lab.why --model FOLDER --data FILE.jsonl --chains 4 --cot 24

From the logits z at the CoT positions of hard chains, for each kind, at all positions, where the
model hesitates (p_max < 0.9 at tau = 1), and elsewhere:

    score variance   E|d log pi(action) / dz|^2: the trace of the score's covariance, in closed form
    displacement     how far the noise moves the next input along E_i - E_j of the two best tokens,
                     in units of |E_i - E_j| (a standard deviation, by draws)

The variance of a batch's gradient (`minisoft.lab.gradient`) should be as these, x squared
advantage x CoT length, at the positions of the kind's own chains, and more in E, which is also what
is mixed.

Dimensions: P positions, V vocabulary, d width of E, n draws.
"""

import argparse
from pathlib import Path

import torch

from minisoft import reinforce
from minisoft.draws import Draws
from minisoft.draws import key as draw_key
from minisoft.kinds.covariance import Covariance
from minisoft.kinds.gumbel import GumbelSoftmax
from minisoft.kinds.multiplex import Multiplex
from minisoft.kinds.noise import TopLogitNoise
from minisoft.kinds.options import COUNT, Option
from minisoft.lab import command, gradient
from minisoft.lab.trainings import TRAININGS
from minisoft.rollout import COT
from minisoft.run.metrics import markdown
from minisoft.run.world import as_program
from minisoft.soft import Hard, Mixture

SAMPLES = 4  # chains of a problem
HESITATES = 0.9  # where p_max is below it
DRAWN = 64  # draws a position
AT_ONCE = 2**24  # numbers


def mean_slope(E: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """|C E|^2 (P,), C = diag(p) - p p^T: row i of C E is p_i (E_i - p E), the derivative of p E by
    the logit i.

    Where one token b has nearly all of p, E_b - p E is what the others move it by; the square
    written out would round that away.
    """
    mean = p @ E  # (P, d)
    square = E.square().sum(-1) - 2 * mean @ E.T + mean.square().sum(-1, keepdim=True)
    best = p.argmax(-1, keepdim=True)  # (P, 1)
    others = p.scatter(-1, best, 0.0)
    moved = others @ E - others.sum(-1, keepdim=True) * E[best[:, 0]]  # p E - E_b
    square = square.scatter(-1, best, moved.square().sum(-1, keepdim=True))
    return (p.square() * square.clamp(min=0)).sum(-1)


def score_variance(kind, E: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """E|d log pi / d logits|^2 (P,) of logits (P, V), E (V, d), by the score s of each kind.

    hard         s = (onehot - p) / tau
    multiplex    s = sum of K such
    covariance   s = (w - p) / (sigma^2 tau), Cov(w) = sigma^2 C, sigma^2 = 1 / K: as multiplex
    soft, fuzzy  s = C E epsilon / (tau sigma)
    top logits   s = epsilon / sigma, of the k that have noise
    gumbel       s = f - p sum f, f = 1 - exp(-x) of the n that are kept: Cov(f) = I, since exp(-x)
                 is exponential, so tr (I - p 1^T)(I - 1 p^T) = n - 2 + n sum p^2
    """
    E, logits = E.double(), logits.double()
    p = (logits / kind.tau).softmax(-1)
    match kind:
        case Hard() | Multiplex() | Covariance():
            return getattr(kind, "width", 1) * (1 - p.square().sum(-1)) / kind.tau**2  # K tr C
        case TopLogitNoise():
            return torch.full_like(p[:, 0], kind.top_k / kind.sigma**2)
        case GumbelSoftmax():
            kept = kind.distribution(None, None, logits.float()).mode()[..., 1].double().exp()
            n = (kept > 0).sum(-1)
            return n - 2 + n * kept.square().sum(-1)
        case _ if type(kind) is Mixture:
            return mean_slope(E, p) / (kind.tau * kind.sigma) ** 2
    raise ValueError(f"score_variance: expected a kind with a known formula, found {kind}")


def displacement(model, kind, logits: torch.Tensor, draws: Draws, n: int) -> torch.Tensor:
    """Variance (P,) of the next input along E_i - E_j of the two best tokens, in units of
    |E_i - E_j|, over n draws a position; draws: of P n rows."""
    best = model.E[logits.topk(2).indices]  # (P, 2, d)
    along = best[:, 0] - best[:, 1]
    along = along / along.square().sum(-1, keepdim=True)
    many = logits.repeat_interleave(n, 0)
    action = kind.distribution(model, None, many).sample(draws)
    x = kind.embed(model, action).view(len(logits), n, -1)
    return torch.einsum("pnd,pd->pn", x, along).double().var(-1)


@torch.no_grad()
def chains(of: gradient.Measurement, number: int) -> torch.Tensor:
    """Logits (P, V) at the CoT positions of a case's chains of a number of problems."""
    policy = of.policy
    _, rollouts = of.rollouts(("why", of.args.seed), 0, number, SAMPLES)
    hidden = [reinforce.encodings(policy.model, policy.kind, x)[x.role == COT] for x in rollouts]
    return policy.model.logits(torch.cat(hidden))


def load(name: str, args: argparse.Namespace) -> gradient.Measurement:
    """A case as minisoft.lab.gradient measures it."""
    case = gradient.read_flags([*TRAININGS[name].flags, "--device", "cpu"])
    for row in command.MODEL:
        setattr(case, row.name, getattr(args, row.name))
    return gradient.Measurement(case)


def average(values: torch.Tensor, logits: torch.Tensor) -> dict[str, float]:
    """Means (P,) over positions: all, where the model hesitates, elsewhere."""
    hesitates = logits.softmax(-1).amax(-1) < HESITATES
    places = {"all": values, "hesitates": values[hesitates], "elsewhere": values[~hesitates]}
    return {place: some.mean().item() for place, some in places.items() if len(some)}


@torch.no_grad()
def formulas(of: gradient.Measurement, logits: torch.Tensor) -> dict:
    """What the logits (P, V) of hard chains give of a case: means over positions."""
    model, kind = of.policy.model, of.policy.kind
    moved, start = [], draw_key("why", of.args.seed)
    for z in logits.split(max(1, AT_ONCE // (DRAWN * logits.shape[1]))):
        keys = torch.arange(len(z) * DRAWN) + start
        start = keys[-1].item() + 1
        moved.append(displacement(model, kind, z, Draws(keys, torch.zeros_like(keys)), DRAWN))
    moved = average(torch.cat(moved), logits)
    return {
        "score_variance": average(score_variance(kind, model.E, logits), logits),
        "displacement": {place: value**0.5 for place, value in moved.items()},
        "tau": kind.tau,
        "sigma": of.policy.settings.sigma,
    }


def study(args: argparse.Namespace) -> dict:
    """All that the command writes."""
    logits = chains(load("hard", args), args.chains)
    return {
        "model": Path(args.model).name,
        "positions": len(logits),
        "hesitates": (logits.softmax(-1).amax(-1) < HESITATES).double().mean().item(),
        "cases": {name: formulas(load(name, args), logits) for name in TRAININGS},
    }


def table(found: dict) -> str:
    rows = [["score variance", "a position", "p_max < 0.9", "elsewhere", "displacement"]]
    for name, row in found["cases"].items():
        shown = [row["score_variance"].get(x, 0.0) for x in ("all", "hesitates", "elsewhere")]
        shown.append(row["displacement"].get("hesitates", 0.0))
        rows.append([name, *(f"{x:.3g}" for x in shown)])
    return (
        f"{found['model']}: {found['positions']} positions of hard chains, "
        f"{100 * found['hesitates']:.1f} % with p_max < 0.9; displacement: there."
        f"\n\n{markdown(rows)}"
    )


CHAINS = f"problems whose {SAMPLES} hard chains give the logits"
FLAGS = [*command.MODEL, Option("chains", COUNT, CHAINS, 32), command.OUT]


def main(argv=None) -> None:
    command.measure("why", __doc__, FLAGS, argv, study, table)


if __name__ == "__main__":
    as_program(main)
