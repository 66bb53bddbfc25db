"""The six inference settings, pass@k with intervals, entropy by position; multiple choice.

Dimensions: P problems, m numbers of each, C CoT positions, S scored tokens, V vocabulary.
"""

from collections import Counter
from dataclasses import dataclass
from math import comb

import torch

from minisoft.data import Choice, Format, Problem
from minisoft.errors import expect
from minisoft.reward import BOXED, RIGHT
from minisoft.rollout import ANSWER, COT, Rollout
from minisoft.soft import PAPER, Categorical

RESAMPLES = 2000  # of the bootstrap
SOFT = 1.5  # effective support from which on a position is called soft
SOFTNESS = ("support", "largest_weight", "share_soft")  # of a generation
MEASURES = ("entropy", *SOFTNESS)


@dataclass(frozen=True)
class Setting:
    """A kind of CoT token, greedy (the mode, no noise) or sampled; the answer is always greedy."""

    kind: str
    greedy: bool

    @classmethod
    def parse(cls, text: str, kinds) -> "Setting":
        """ "soft-greedy" or "soft-sample", of one of the kinds.  Raises InputError for another."""
        kind, _, end = text.strip().rpartition("-")
        names = ", ".join(kinds)
        expected = f"all, or KIND-greedy or KIND-sample with KIND one of {names}"
        expect(kind in kinds and end in ("greedy", "sample"), "settings", expected, text)
        return cls(kind, end == "greedy")

    def __str__(self) -> str:
        return f"{self.kind}-{'greedy' if self.greedy else 'sample'}"


SETTINGS = tuple(str(Setting(kind, greedy)) for kind in PAPER for greedy in (True, False))


def read_settings(text: str, kinds) -> list[Setting]:
    """ "all", the paper's six, or a comma-separated choice of settings of these kinds.  Raises
    InputError for another name."""
    names = SETTINGS if text == "all" else text.split(",")
    return list(dict.fromkeys(Setting.parse(name, kinds) for name in names))


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
    CoT fed, as means over positions (`soft.measure`)."""
    rollout = rollout.on_host()  # a GPU would be asked thousands of times
    rows = range(len(rollout.samples))
    answers = [rollout.tokens(row, ANSWER) for row in rows]
    texts = [form.answer_text(answer) for answer in answers]
    rewards = verifier.score_all([(text, problem.answer) for text in texts])  # eq. 11
    generations = []
    for row in rows:
        cot = rollout.tokens(row, COT)
        entropies, support, largest = rollout.measures[row, : len(cot)].double().T  # each (C,)
        entropies = [round(e, 4) for e in entropies.tolist()]
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


def verified(generation: dict) -> int:
    """The verifier's reward (eq. 11) of a generation, whose own may be another: `--reward`."""
    return generation.get("verified", generation["reward"])


def summarize(generations: list[dict], samples: int) -> dict:
    """Generations of one setting -> pass@1 ... pass@samples (fractions) with 95 % intervals over
    problems, the shares of readable answers and of spent CoT budgets, mean CoT length in tokens,
    entropy in nats: the mean over generations of their mean, and by CoT position over the
    generations that reach it (`rows_by_position`); how soft the CoTs were (SOFTNESS); the mean of
    a reward of one's own."""
    right = Counter({g["problem"]: 0 for g in generations})
    right.update(g["problem"] for g in generations if verified(g) == RIGHT)
    ks = range(1, samples + 1)
    passed = [[pass_at_k(samples, c, k) for k in ks] for c in right.values()]  # (P, samples)
    names = [f"pass@{k}" for k in ks]
    means = {name: _mean(column) for name, column in zip(names, zip(*passed), strict=True)}
    longest = max(g["cot_tokens"] for g in generations)
    own = [g["reward"] for g in generations if "verified" in g]
    at = [[g["entropies"][t] for g in generations if t < g["cot_tokens"]] for t in range(longest)]
    return {
        **means,
        "ci95": dict(zip(names, intervals(passed), strict=True)),
        "boxed": _mean([verified(g) >= BOXED for g in generations]),
        "truncated": _mean([g["truncated"] for g in generations]),
        "cot_length": _mean([g["cot_tokens"] for g in generations]),
        "entropy": _mean([g["entropy"] for g in generations]),
        "entropy_by_position": [round(_mean(e), 6) for e in at],
        "rows_by_position": [len(e) for e in at],
        **{x: _mean([g[x] for g in generations]) for x in SOFTNESS if x in generations[0]},
        **({"reward": _mean(own)} if own else {}),
    }


def _mean(values) -> float:
    return sum(values) / len(values)


def encode_choice(tokenizer, number: int, choice: Choice) -> tuple[list[int], list[list[int]]]:
    """The tokens of the context alone, its spaces at the end left to the options, and of context +
    " " + option for each option; with BOS where the tokenizer adds one.  Raises InputError for a
    context or an option without tokens."""
    context = tokenizer.encode(choice.context.rstrip())
    options = [tokenizer.encode(f"{choice.context} {option}") for option in choice.options]
    expected = "a context and options of at least one token each"
    texts = (choice.context, *choice.options)
    expect(context and min(map(len, options)) > 1, f"problem {number}", expected, texts)
    return context, options


@torch.no_grad()
def score_choice(model, tokenizer, number: int, choice: Choice) -> dict:
    """The record of a question, each option scored alone as the continuation of its context.

    Scored are the tokens of context + " " + option beyond as many as the context has alone, but at
    least the last: tokens and normalisation are those of lm-evaluation-harness.
    """
    context, options = encode_choice(tokenizer, number, choice)
    scores, likeliest = [], []
    for tokens in options:
        start = min(len(context), len(tokens) - 1)
        ids = torch.tensor(tokens, device=model.E.device)
        hidden = model(model.embed(ids[None, :-1]))[0, start - 1 :]  # predicts the scored tokens
        logits = model.logits(hidden)  # (S, V)
        scores.append(Categorical(logits).log_prob(ids[start:]).tolist())
        likeliest.append((logits.argmax(-1) == ids[start:]).tolist())
    return describe_choice(number, choice, scores, likeliest)


def describe_choice(number: int, choice: Choice, scores: list, likeliest: list) -> dict:
    """For each option the log-probabilities of its tokens, and whether each is the most likely ->
    a record: `log_probs`, in nats, `greedy`, whether greedy decoding would have written it, and
    `tokens` of each option; the option `picked` by log-probability, and `picked_norm` by
    log-probability per character of its text (the harness's acc_norm); `answer`, the right option;
    `nll` of it, nats per token."""
    sums = [sum(option) for option in scores]  # float64
    per_character = [total / len(text) for total, text in zip(sums, choice.options, strict=True)]
    return {
        "problem": number,
        "log_probs": sums,
        "greedy": [all(option) for option in likeliest],
        "tokens": [len(option) for option in scores],
        "picked": sums.index(max(sums)),
        "picked_norm": per_character.index(max(per_character)),
        "answer": choice.answer,
        "nll": -sums[choice.answer] / len(scores[choice.answer]),
    }


def summarize_choices(records: list[dict]) -> dict:
    """Records of `score_choice` -> accuracy, accuracy_norm (fractions) and NLL of
    the right option (nats a token), with 95 % intervals over questions."""
    columns = {
        "accuracy": [r["picked"] == r["answer"] for r in records],
        "accuracy_norm": [r["picked_norm"] == r["answer"] for r in records],
        "nll": [r["nll"] for r in records],
    }
    ends = intervals([list(row) for row in zip(*columns.values(), strict=True)])
    means = {name: _mean(column) for name, column in columns.items()}
    return {**means, "ci95": dict(zip(columns, ends, strict=True))}
