"""Why some kinds of token learn and others do not: the noise of their scores (not in the paper).

    python -m minisoft.lab.why --gradients runs/why --out why.json       # also why.md and why.png
    python -m minisoft.lab.why --model FOLDER --data FILE.jsonl          # the formulas alone

From the logits z at the CoT positions of hard chains alone, for each kind:

    score variance   E|d log pi(action) / dz|^2: the trace of the score's covariance, in closed form
    displacement     how far the noise moves the next input along E_i - E_j of the two best tokens,
                     in units of |E_i - E_j| (a standard deviation, by draws)
    signal           |d E[input] / dz|^2: what the gradient of the expected reward in z would be,
                     squared, were the reward linear in the input, its slope alike for all kinds

at positions where the model hesitates (p_max < 0.9 at tau = 1), elsewhere, and at all.  Beside what
`minisoft.lab.gradient` measures (its results FOLDER/CASE.json are used where they exist, and made
where they do not) stand

    noise            variance of a batch's gradient, in units of hard tokens': score variance, at
                     the positions of the case's own chains, x squared advantage x CoT length; in E
                     with what the score has through the mixture itself
    predicted SNR    for the same signal: hard's measured one x hard's score variance / the case's
    linear SNR       that x the case's signal / hard's

Nothing is predicted of a case without a signal, as of fuzzy tokens: what score they have is that of
a few near ties.

Dimensions: P positions, V vocabulary, d width of E, n draws, k tokens of a sparse action.
"""

import argparse
import os
from pathlib import Path

import torch

from minisoft import reinforce
from minisoft.draws import Draws
from minisoft.draws import key as draw_key
from minisoft.errors import InputError
from minisoft.io.atomic import read_json, write_json
from minisoft.kinds.covariance import Covariance
from minisoft.kinds.gumbel import GumbelSoftmax
from minisoft.kinds.multiplex import Multiplex
from minisoft.kinds.noise import Sparse, TopLogitNoise
from minisoft.lab import command, figures, gradient
from minisoft.rollout import COT
from minisoft.run.metrics import markdown
from minisoft.run.world import as_program, keep_memory
from minisoft.soft import Hard, Mixture, rms
from minisoft.verifier.process import WORKERS, Verifier

CASES = {  # flags of minisoft.lab.gradient
    "hard": "--tokens hard",
    "multiplex": "--tokens multiplex",
    "covariance": "--tokens covariance",
    "gumbel": "--tokens gumbel",
    "gumbel-all-5": "--tokens gumbel --top-p 1",
    "top-5": "--tokens soft --noise logits --top-k 5",
    "soft": "--tokens soft",
    "soft-0.66": "--tokens soft --gamma 0.66",
    "soft-1": "--tokens soft --gamma 1",
    "fuzzy": "--tokens fuzzy",
}
BATCHES = "--prompts 8 --group 32 --batches 16 --device cpu"  # the same
SAMPLES = 4  # chains of a problem
HESITATES = 0.9  # where p_max is below it
PARTS = {"E": "E", "body": "the rest"}
SAME = 0.01  # of hard's signal: nothing is predicted of a case with less
DRAWN = 64  # draws a position
AT_ONCE = 2**24  # numbers
MEASURED = "prompts group batches seed reward informative advantage_square cot_length".split()


def token_variance(p: torch.Tensor) -> torch.Tensor:
    """p (P, V) -> trace (P,) of C = diag(p) - p p^T, the covariance of a token's one-hot vector."""
    return 1 - p.square().sum(-1)


def mean_slope(E: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """|C E|^2 (P,): row i of C E is p_i (E_i - p E), the derivative of p E by the logit i.

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
        case Hard():
            return token_variance(p) / kind.tau**2
        case Multiplex() | Covariance():
            return kind.width * token_variance(p) / kind.tau**2
        case TopLogitNoise():
            return torch.full_like(p[:, 0], kind.top / kind.sigma**2)
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


def linear_signal(model, kind, logits: torch.Tensor, draws: Draws, n: int) -> torch.Tensor:
    """|d E[input] / d logits|^2 (P,); of softmax of noisy numbers the mean over n draws."""
    if not isinstance(kind, Sparse):
        p = (logits.double() / kind.tau).softmax(-1)
        return mean_slope(model.E.double(), p) / kind.tau**2
    many = logits.repeat_interleave(n, 0)
    action = kind.distribution(model, None, many).sample(draws)
    w, ids = kind.weights(model, action, many)  # (P n, k)
    slope = (torch.diag_embed(w) - w[:, :, None] * w[:, None, :]) / kind.tau
    slope = slope.view(len(logits), n, *slope.shape[1:]).mean(1)  # (P, k, k)
    return (slope @ model.E[ids[::n]]).double().square().sum((-2, -1))


def through_mixture(kind, hidden: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """What the score's variance in E has besides that through the logits, in units of |hL|^2 (P,).

    The row i of E scores s_i hL, as the head, and p_i epsilon / sigma, as a part of the mixture, if
    that is what is noisy: |s|^2 |hL|^2 + d sum p^2 / sigma^2 + 2 sum_i p_i <J_i, hL> / sigma^2,
    J_i = p_i (E_i - p E) / tau, on average.  hidden (P, d); the head is E.
    """
    if type(kind) is not Mixture:
        return torch.zeros(len(logits), dtype=torch.float64)
    z, square = logits.double(), hidden.double().square().sum(-1)
    p = (z / kind.tau).softmax(-1)
    direct = hidden.shape[1] * p.square().sum(-1)
    off = z - torch.linalg.vecdot(p, z)[:, None]  # <E_i - p E, hL>
    both = 2 * (p.square() * off).sum(-1) / kind.tau
    return (direct + both) / kind.sigma**2 / square


@torch.no_grad()
def chains(of: gradient.Measurement, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodings (P, d) and logits (P, V) at the CoT positions of a case's chains of a number of
    problems."""
    policy = of.policy
    _, rollouts = of.rollouts(("why", of.args.seed), 0, number, SAMPLES)
    hidden = [reinforce.encodings(policy.model, policy.kind, x)[x.role == COT] for x in rollouts]
    return torch.cat(hidden), policy.model.logits(torch.cat(hidden))


def load(name: str, args: argparse.Namespace) -> gradient.Measurement:
    """A case as minisoft.lab.gradient measures it."""
    words = [*CASES[name].split(), *BATCHES.split()]
    for flag in ("model", "data", "template", "cot"):
        if getattr(args, flag) is not None:
            words += [f"--{flag}", str(getattr(args, flag))]
    return gradient.Measurement(gradient.read_flags(words), None)


def sure(logits: torch.Tensor) -> torch.Tensor:
    """p_max (P,) of logits (P, V)."""
    return logits.softmax(-1).amax(-1)


def average(values: torch.Tensor, hesitates: torch.Tensor) -> dict[str, float]:
    """Means over positions: all, where the model hesitates, elsewhere."""
    places = {"all": values, "hesitates": values[hesitates], "elsewhere": values[~hesitates]}
    return {place: some.mean().item() for place, some in places.items() if len(some)}


@torch.no_grad()
def formulas(of: gradient.Measurement, hidden, logits: torch.Tensor) -> dict:
    """What the encodings (P, d) and logits (P, V) alone give of a case."""
    model, kind = of.policy.model, of.policy.kind
    columns, start = [], draw_key("why", of.args.seed)
    size = max(1, AT_ONCE // (DRAWN * logits.shape[1]))
    for h, z in zip(hidden.split(size), logits.split(size), strict=True):
        keys = torch.arange(len(z) * DRAWN) + start
        start = keys[-1].item() + 1
        draws = Draws(keys, torch.zeros_like(keys))
        moved = displacement(model, kind, z, draws, DRAWN)
        signal = linear_signal(model, kind, z, draws, DRAWN)
        variance = score_variance(kind, model.E, z)
        columns.append(torch.stack((variance, through_mixture(kind, h, z), moved, signal)))
    variance, mixture, moved, signal = torch.cat(columns, 1)
    hesitates = sure(logits) < HESITATES
    return {
        "score_variance": average(variance, hesitates),
        "through_mixture": average(mixture, hesitates),
        "displacement": {x: value**0.5 for x, value in average(moved, hesitates).items()},
        "signal": average(signal, hesitates),
        "tau": kind.tau,
        "sigma": of.policy.settings.sigma,
    }


@torch.no_grad()
def own_chains(of: gradient.Measurement, number: int) -> dict[str, float]:
    """Score variance, through logits and through the mixture, at the positions of a case's own
    chains, and how many of these hesitate."""
    (hidden, logits), kind = chains(of, number), of.policy.kind
    return {
        "score_variance": score_variance(kind, of.policy.model.E, logits).mean().item(),
        "through_mixture": through_mixture(kind, hidden, logits).mean().item(),
        "hesitates": (sure(logits) < HESITATES).double().mean().item(),
    }


def distances(E: torch.Tensor, logits: torch.Tensor) -> dict:
    """How far apart the two best tokens' embeddings are where the model hesitates (None if it
    nowhere does), beside what independent rows of E would have."""
    best = logits[sure(logits) < HESITATES].topk(2).indices  # (P, 2)
    apart = (E[best[:, 0]] - E[best[:, 1]]).double().square().sum(-1)
    independent = (2 * E.shape[1]) ** 0.5 * rms(E)
    best_two = apart.mean().sqrt().item() if len(apart) else None
    return {"width": E.shape[1], "best_two": best_two, "independent": independent}


def predict(rows: dict[str, dict]) -> None:
    """Adds "predicted" and "linear" SNR and "noise" to each {case: row}, each {part: number}; None
    where the case has less than SAME of hard's signal."""
    hard = rows["hard"]
    for row in rows.values():
        fewer = hard["score_variance"]["all"] / max(row["score_variance"]["all"], 1e-30)
        more = row["signal"]["all"] / hard["signal"]["all"]
        same = more >= SAME
        snr = {part: hard["measured"][part]["snr"] * fewer if same else None for part in PARTS}
        row["predicted"] = snr
        row["linear"] = {part: x and x * more for part, x in snr.items()}
        row["noise"] = {part: noise(row, hard, part) for part in PARTS}
        for of_part in row["noise"].values():
            of_part["predicted"] = of_part["predicted"] if same else None


def noise(row: dict, hard: dict, part: str) -> dict[str, float]:
    """Variance of a batch's gradient in units of hard's: predicted, by score variance x squared
    advantage x CoT length, and measured, with the relative standard error of both together."""
    predicted, measured, squares = [], [], []
    for one in (row, hard):
        m, variance = one["measured"], one["own_chains"]["score_variance"]
        if part == "E":
            variance += one["own_chains"]["through_mixture"]
        predicted.append(variance * m["advantage_square"] * m["cot_length"])
        measured.append(m[part]["variance"])
        squares.append((m[part]["variance_error"] / m[part]["variance"]) ** 2)
    return {
        "predicted": predicted[0] / predicted[1],
        "measured": measured[0] / measured[1],
        "relative_error": 0.0 if row is hard else sum(squares) ** 0.5,
    }


def measured(of: gradient.Measurement, path: Path, verifier) -> dict:
    """What minisoft.lab.gradient measures of a case's CoT terms, kept in a file.  Raises InputError
    where the file is of something else."""
    found = read_json(path)
    if not found:
        found = gradient.measure(of.args, verifier)
        write_json(path, found)
    for name, wanted in of.about().items():
        if found.get(name) != wanted:
            what = f"{name}: expected {wanted}, found {found.get(name)}; move the file away"
            raise InputError(f"{path}: {what}")
    return {**{x: found[x] for x in MEASURED}, **{x: found["signal"]["cot"][x] for x in PARTS}}


def study(args: argparse.Namespace, verifier) -> dict:
    """All that the command writes."""
    of = load("hard", args)
    if args.gradients and not of.policy.model.config.tie_word_embeddings:
        what = "expected a model whose head is E, found one whose head is not"
        raise InputError(f"{args.model}: tie_word_embeddings: {what}; leave --gradients out")
    E, (hidden, logits) = of.policy.model.E.detach(), chains(of, args.chains)
    rows = {}
    for name in args.cases:
        print(name, flush=True)
        of = load(name, args)
        rows[name] = formulas(of, hidden, logits)
        if args.gradients:
            rows[name]["own_chains"] = own_chains(of, args.chains)
            rows[name]["measured"] = measured(of, args.gradients / f"{name}.json", verifier)
    if args.gradients:
        predict(rows)
    return {
        "model": Path(args.model).name,
        "positions": len(logits),
        "hesitates": (sure(logits) < HESITATES).double().mean().item(),
        "distance": distances(E, logits),
        "cases": rows,
    }


def number(x: float | None, digits: int = 2) -> str:
    """So many significant digits; a dash for None."""
    if x is None:
        return "–"
    if x == 0:
        return "0"
    text = f"{float(f'{x:.{digits}g}'):.10f}".rstrip("0").rstrip(".")
    return text if 1e-4 <= abs(x) < 1e5 else f"{x:.1e}"


def table(found: dict) -> str:
    """Markdown: score variance and displacement; noise; signal to noise."""
    places = ("all", "hesitates", "elsewhere")
    rows = [["score variance", "a position", "p_max < 0.9", "elsewhere", "displacement", "signal"]]
    cases = found["cases"]
    for name, row in cases.items():
        variance = [number(row["score_variance"].get(x, 0.0)) for x in places]
        moved = number(row["displacement"].get("hesitates", 0.0))
        signal = number(row["signal"]["all"] / cases["hard"]["signal"]["all"])
        rows.append([name, *variance, moved, signal])
    both = measured_rows(cases) if "measured" in cases["hard"] else ()
    d, p = found["distance"], found["hesitates"]
    text = (
        f"{found['model']}: {found['positions']} positions of hard chains, {100 * p:.1f} % with "
        f"p_max < 0.9; d = {d['width']}.\nThe two best tokens' embeddings are "
        f"{number(d['best_two'], 3)} apart there; independent ones would be "
        f"{number(d['independent'], 3)}.\nDisplacement: where "
        "p_max < 0.9; signal, and all noise: in units of hard tokens'."
    )
    return "\n\n".join([text, *map(markdown, (rows, *both))])


def measured_rows(cases: dict) -> list[list]:
    """Rows of the tables of noise and, for each part, of signal to noise."""
    heads = (f"{what} in {x}" for x in PARTS.values() for what in ("predicted", "measured"))
    tables = [[["noise", *heads]]]
    for part, title in PARTS.items():
        tables.append([[f"SNR in {title}", "same signal", "linear reward", "measured"]])
        for name, row in cases.items():
            one = row["measured"][part]
            cells = [number(row["predicted"][part]), number(row["linear"][part])]
            cells.append(f"{number(one['snr'])} ± {number(one['snr_error'])}")
            tables[-1].append([name, *cells])
    for name, row in cases.items():
        cells = []
        for one in row["noise"].values():
            error = one["measured"] * one["relative_error"]
            shown = f"{number(one['measured'])} ± {number(error)}" if error else "1"
            cells += [number(one["predicted"]), shown]
        tables[0].append([name, *cells])
    return tables


FLAGS = {
    **command.MODEL,
    "--cases": ([*CASES], "hard, and some of the others", {"nargs": "+", "choices": CASES}),
    "--chains": (32, f"problems whose {SAMPLES} hard chains give the logits", command.WHOLE),
    "--gradients": (None, "folder for CASE.json (default: formulas only)", command.PATH),
    **command.OUT,
}


def read_flags(argv=None) -> argparse.Namespace:
    parser = command.parser("why", __doc__)
    command.add_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    command.expect_least(parser, args, chains=1, cot=1)
    command.expect_folder(parser, "--out", args.out)
    if "hard" not in args.cases:
        parser.error(f"--cases: expected hard among them, found {' '.join(args.cases)}")
    return args


def main(argv=None) -> None:
    args = read_flags(argv)
    with command.one_line("why", resumes=bool(args.gradients)):
        if args.gradients:
            os.makedirs(args.gradients, exist_ok=True)
        keep_memory()
        with Verifier(workers=WORKERS) as verifier:
            found = study(args, verifier)
        command.show(found, table(found), args.out)
        if args.out and args.gradients:
            figures.why(found["cases"], PARTS).savefig(args.out.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    as_program(main)
