"""The six inference settings and pass@k (section 4)."""

from math import comb

from tqdm import tqdm

from minisoft import data
from minisoft.errors import InputError
from minisoft.rollout import ANSWER, COT, Format, Request, rollout
from minisoft.soft import make_kind

SETTINGS = tuple(f"{kind}-{how}" for kind in ("hard", "soft", "fuzzy") for how in ("greedy", "sample"))


def read_settings(text: str) -> list[str]:
    """ "all" or a comma-separated choice of SETTINGS -> list.  Raises InputError for another name."""
    names = list(SETTINGS) if text == "all" else [name.strip() for name in text.split(",")]
    for name in set(names) - set(SETTINGS):
        raise InputError(f"settings: expected all or some of {', '.join(SETTINGS)}, found {name!r}")
    return list(dict.fromkeys(names))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is correct, from n samples of which c are."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k: expected 0 <= c <= n and 1 <= k <= n, found n={n}, c={c}, k={k}")
    return 1 - comb(n - c, k) / comb(n, k)


def evaluate(model, tokenizer, problems: list[data.Problem], setting: str, *, samples: int, batch: int, cot_tokens: int,
             sigma: float, template: str, seed, score, world) -> tuple[dict, list[dict]]:
    """Roll out `samples` of every problem in one of SETTINGS (greedy: one), the answer always greedy.

    batch: rows at once; sigma: noise of the CoT input; seed: any key; score(answer_text, gold) -> 100 | 10 | 0;
    problems are shared out over the ranks of `world`.  Returns (summary, one dict for each generation, ordered by
    problem and sample), the same on every rank.
    """
    name, how = setting.split("-")
    kind, form, greedy = make_kind(name, sigma), Format(tokenizer), how == "greedy"
    group = 1 if greedy else samples
    waiting = [(i, range(first, min(first + batch, group))) for i in range(world.rank, len(problems), world.size)
               for first in range(0, group, batch)]
    found, bar = [], tqdm(total=sum(len(s) for _, s in waiting), desc=setting, unit="row", leave=False,
                          disable=not world.main)
    while waiting:
        taken, rows = [], 0
        while waiting and (not taken or rows + len(waiting[0][1]) <= batch):
            rows += len(waiting[0][1])
            taken.append(waiting.pop(0))
        requests = [Request(tokenizer.encode(data.prompt(problems[i].question, template)), (seed, setting, i), s, group)
                    for i, s in taken]
        for (i, _), record in zip(taken, rollout(model, form, kind, requests, cot_tokens, greedy, True)):
            found += [describe(form, record, row, i, problems[i], score) for row in range(len(record.samples))]
        bar.update(rows)
    bar.close()
    generations = sorted(world.gather_objects(found), key=lambda g: (g["problem"], g["sample"]))
    return summarize(generations, group), generations


def describe(form: Format, record, row: int, number: int, problem: data.Problem, score) -> dict:
    """One row of a Rollout as a readable, scored dict."""
    cot, answer = record.tokens(row, COT), record.tokens(row, ANSWER)
    text = form.answer_text(answer)
    entropies = record.entropy[row, : len(cot)]
    return {"problem": number, "sample": record.samples[row], "question": problem.question,
            "cot": form.tokenizer.decode(cot), "answer": text, "gold": problem.answer,
            "reward": score(text, problem.answer), "cot_tokens": len(cot), "answer_tokens": len(answer),
            "truncated": bool(record.truncated[row]), "entropy": float(entropies.mean())}


def summarize(generations: list[dict], samples: int) -> dict:
    """Generations of one setting -> pass@1, pass@2, pass@4, ... pass@samples (fractions) and the shares of readable
    answers and of spent CoT budgets, mean CoT length in tokens and entropy in nats."""
    right: dict[int, int] = {}
    for g in generations:
        right[g["problem"]] = right.get(g["problem"], 0) + (g["reward"] == 100)
    ks = sorted({2**i for i in range(samples.bit_length())} | {samples})
    mean = lambda values: sum(values) / len(generations)
    return {**{f"pass@{k}": sum(pass_at_k(samples, c, k) for c in right.values()) / len(right) for k in ks},
            "boxed": mean(g["reward"] >= 10 for g in generations),
            "truncated": mean(g["truncated"] for g in generations),
            "cot_length": mean(g["cot_tokens"] for g in generations),
            "entropy": mean(g["entropy"] for g in generations)}
