"""The six inference settings, pass@k with intervals, entropy by position (section 4).

Dimensions: P problems, m numbers of each, n rows of one problem.
"""

from collections import Counter
from dataclasses import dataclass
from math import comb

import torch

from minisoft.data import Format, Problem
from minisoft.errors import InputError
from minisoft.kinds import KINDS, PAPER
from minisoft.reward import BOXED, RIGHT
from minisoft.rollout import ANSWER, COT, Rollout

RESAMPLES = 2000  # of the bootstrap
SOFT = 1.5  # effective support from which on a position is called soft
SOFTNESS = ("support", "largest_weight", "share_soft")  # of a generation


@dataclass(frozen=True)
class Setting:
    """A kind of CoT token, greedy (the mode, no noise) or sampled; the answer is always greedy."""

    kind: str
    greedy: bool

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """ "soft-greedy" or "soft-sample", of any kind.  Raises InputError for another text."""
        kind, _, how = text.strip().rpartition("-")
        if kind not in KINDS or how not in ("greedy", "sample"):
            names = ", ".join(KINDS)
            raise InputError(
                f"settings: expected all, or KIND-greedy or KIND-sample with KIND one of {names}, "
                f"found {text!r}"
            )
        return cls(kind, how == "greedy")

    def __str__(self) -> str:
        return f"{self.kind}-{'greedy' if self.greedy else 'sample'}"


SETTINGS = tuple(str(Setting(kind, greedy)) for kind in PAPER for greedy in (True, False))


def read_settings(text: str) -> list[Setting]:
    """ "all", the paper's six, or a comma-separated choice.  Raises InputError for another name."""
    names = SETTINGS if text == "all" else text.split(",")
    return list(dict.fromkeys(Setting.parse(name) for name in names))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from n of which c are."""
    if not 0 <= c <= n or not 1 <= k <= n:
        expected = "0 <= c <= n and 1 <= k <= n"
        raise ValueError(f"pass_at_k: expected {expected}, found n={n}, c={c}, k={k}")
    return 1 - comb(n - c, k) / comb(n, k)


def intervals(values: list[list[float]]) -> list[list[float]]:
    """Numbers (P, m) -> for each of the m means over problems its 95 % interval [low, high], by
    the percentile bootstrap (2,000 resamples, always the same ones), rounded to 6 digits."""
    x = torch.tensor(values, dtype=torch.float64)  # (P, m)
    generator = torch.Generator().manual_seed(0)
    means = []
    for _ in range(0, RESAMPLES, 100):
        picks = torch.randint(len(x), (100, len(x)), generator=generator)
        once = torch.ones_like(picks, dtype=torch.float64)
        times = torch.zeros_like(once).scatter_add_(1, picks, once)  # each problem was picked
        means.append(times @ x / len(x))  # (100, m)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    bounds = torch.cat(means).quantile(ends, dim=0)  # (2, m)
    return [[round(low, 6), round(high, 6)] for low, high in bounds.T.tolist()]


def describe(form: Format, rollout: Rollout, number: int, problem: Problem, verifier) -> list[dict]:
    """The rows of a Rollout as readable, scored dicts; entropies in nats, by CoT position; what its
    CoT fed, as means over positions (`soft.softness`)."""
    rollout = rollout.on_host()  # a GPU would be asked thousands of times
    rows = range(len(rollout.samples))
    answers = [rollout.tokens(row, ANSWER) for row in rows]
    texts = [form.answer_text(answer) for answer in answers]
    rewards = verifier.score_all([(text, problem.answer) for text in texts])  # eq. 11
    generations = []
    for row in rows:
        cot = rollout.tokens(row, COT)
        entropies = [round(e, 4) for e in rollout.entropy[row, : len(cot)].tolist()]
        support, largest = rollout.softness[row, : len(cot)].double().T  # each (C,)
        generations.append(
            {
                "problem": number,
                "sample": rollout.samples[row],
                "question": problem.question,
                "cot": form.tokenizer.decode(cot),
                "answer": texts[row],
                "gold": problem.answer,
                "reward": rewards[row],
                "cot_tokens": len(cot),
                "answer_tokens": len(answers[row]),
                "truncated": bool(rollout.truncated[row]),
                "entropy": sum(entropies) / len(entropies),
                "entropies": entropies,
                "support": round(support.mean().item(), 6),
                "largest_weight": round(largest.mean().item(), 6),
                "share_soft": round((support > SOFT).double().mean().item(), 6),
            }
        )
    return generations


def summarize(generations: list[dict], samples: int) -> dict:
    """Generations of one setting -> pass@1 ... pass@samples (fractions) with 95 % intervals over
    problems, the shares of readable answers and of spent CoT budgets, mean CoT length in tokens,
    entropy in nats: the mean over generations of their mean, and by CoT position over the
    generations that reach it (`rows_by_position`); and how soft the CoTs were (SOFTNESS)."""
    right = Counter({g["problem"]: 0 for g in generations})
    right.update(g["problem"] for g in generations if g["reward"] == RIGHT)
    ks = range(1, samples + 1)
    passed = [[pass_at_k(samples, c, k) for k in ks] for c in right.values()]  # (P, samples)
    names = [f"pass@{k}" for k in ks]
    means = {name: _mean(column) for name, column in zip(names, zip(*passed), strict=True)}
    longest = max(g["cot_tokens"] for g in generations)
    at = [[g["entropies"][t] for g in generations if t < g["cot_tokens"]] for t in range(longest)]
    return {
        **means,
        "ci95": dict(zip(names, intervals(passed), strict=True)),
        "boxed": _mean([g["reward"] >= BOXED for g in generations]),
        "truncated": _mean([g["truncated"] for g in generations]),
        "cot_length": _mean([g["cot_tokens"] for g in generations]),
        "entropy": _mean([g["entropy"] for g in generations]),
        "entropy_by_position": [round(_mean(e), 6) for e in at],
        "rows_by_position": [len(e) for e in at],
        **{x: _mean([g[x] for g in generations]) for x in SOFTNESS if x in generations[0]},
    }


def _mean(values) -> float:
    return sum(values) / len(values)


def summarize_choices(records: list[dict]) -> dict:
    """Records of `minisoft.engine.choices.score` -> accuracy, accuracy_norm (fractions) and NLL of
    the right option (nats a token), with 95 % intervals over questions."""
    columns = {
        "accuracy": [r["picked"] == r["answer"] for r in records],
        "accuracy_norm": [r["picked_norm"] == r["answer"] for r in records],
        "nll": [r["nll"] for r in records],
    }
    ends = intervals([list(row) for row in zip(*columns.values(), strict=True)])
    means = {name: _mean(column) for name, column in columns.items()}
    return {**means, "ci95": dict(zip(columns, ends, strict=True))}
