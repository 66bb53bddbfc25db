"""The six inference settings, pass@k with intervals, entropy by position, multiple choice (section 4)."""

from math import comb

import torch
from tqdm import tqdm

from minisoft import data
from minisoft.engine import choices
from minisoft.errors import InputError
from minisoft.rollout import ANSWER, COT, Format, Request, stream
from minisoft.soft import KINDS

SETTINGS = tuple(f"{kind}-{how}" for kind in KINDS for how in ("greedy", "sample"))
RESAMPLES = 2000  # of the bootstrap


def read_settings(text: str) -> list[str]:
    """ "all" or a comma-separated choice of SETTINGS -> list.  Raises InputError for another name."""
    names = list(SETTINGS) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SETTINGS:
            raise InputError(f"settings: expected all or some of {', '.join(SETTINGS)}, found {name!r}")
    return list(dict.fromkeys(names))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is correct, from n samples of which c are."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k: expected 0 <= c <= n and 1 <= k <= n, found n={n}, c={c}, k={k}")
    return 1 - comb(n - c, k) / comb(n, k)


def intervals(values: list[list[float]]) -> list[list[float]]:
    """One row of m numbers for each problem, (P, m) -> for each of the m means its 95 % interval [low, high], by the
    percentile bootstrap over problems (2,000 resamples, always the same ones), rounded to 6 digits."""
    x, generator = torch.tensor(values, dtype=torch.float64), torch.Generator().manual_seed(0)  # (P, m)
    means = []
    for _ in range(0, RESAMPLES, 100):
        picks = torch.randint(len(x), (100, len(x)), generator=generator)
        one = torch.ones_like(picks, dtype=torch.float64)
        count = torch.zeros_like(one).scatter_add_(1, picks, one)  # (100, P), how often each problem was picked
        means.append(count @ x / len(x))  # (100, m)
    bounds = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)  # (2, m)
    return [[round(low, 6), round(high, 6)] for low, high in bounds.T.tolist()]


def evaluate(model, tokenizer, problems: list[data.Problem], setting: str, kind, *, samples: int, batch: int,
             cot_tokens: int, template: str, seed, verifier, world, journal, run=0) -> tuple[dict, list[dict]]:
    """Roll out `samples` of every problem in one of SETTINGS (greedy: one), the answer always greedy.

    kind: the setting's kind of CoT token; batch: rows at once; seed: any key; verifier: see minisoft.reward; problems are
    shared out over the ranks of `world`; those that `journal` knows under [run, setting, problem] are not done again.
    Returns (summary, one dict for each generation, ordered by problem and sample); ranks but the main one get
    no generations.
    """
    form, greedy = Format(tokenizer), setting.endswith("greedy")
    group = 1 if greedy else samples
    requests = [Request(tokenizer.encode(data.prompt(p.question, template)), (seed, setting, i), range(group))
                for i, p in enumerate(problems)]
    longest_first = sorted(range(len(problems)), key=lambda i: -len(requests[i].prompt))  # so memory peaks at once
    mine = [i for i in longest_first if [run, setting, i] not in journal][world.rank:: world.size]
    with tqdm(total=len(mine) * group, desc=setting, unit="row", leave=False, disable=not world.main) as bar:
        for n, record in stream(model, form, kind, [requests[i] for i in mine], cot_tokens, greedy, True, batch, False):
            journal.add([run, setting, mine[n]], describe(form, record, mine[n], problems[mine[n]], verifier))
            bar.update(group)
    journal.collect()
    generations = [g for i in range(len(problems)) for g in journal.take([run, setting, i])] if world.main else []
    return world.from_main(lambda: summarize(generations, group)), generations


def describe(form: Format, record, number: int, problem: data.Problem, verifier) -> list[dict]:
    """The rows of a Rollout as readable, scored dicts; entropies in nats, by CoT position."""
    answers = [record.tokens(row, ANSWER) for row in range(len(record.samples))]
    texts = [form.answer_text(answer) for answer in answers]
    found = []
    for row, reward in enumerate(verifier.score_all([(text, problem.answer) for text in texts])):
        cot = record.tokens(row, COT)
        entropies = [round(e, 4) for e in record.entropy[row, : len(cot)].tolist()]
        found.append({"problem": number, "sample": record.samples[row], "question": problem.question,
                      "cot": form.tokenizer.decode(cot), "answer": texts[row], "gold": problem.answer, "reward": reward,
                      "cot_tokens": len(cot), "answer_tokens": len(answers[row]), "truncated": bool(record.truncated[row]),
                      "entropy": sum(entropies) / len(entropies), "entropies": entropies})
    return found


def summarize(generations: list[dict], samples: int) -> dict:
    """Generations of one setting -> pass@1 ... pass@samples (fractions) with 95 % intervals over problems, the shares of
    readable answers and of spent CoT budgets, mean CoT length in tokens, and entropy in nats: the mean over generations of
    their mean, and by CoT position over the generations that reach it (`rows_by_position`)."""
    right: dict[int, int] = {}
    for g in generations:
        right[g["problem"]] = right.get(g["problem"], 0) + (g["reward"] == 100)
    names = [f"pass@{k}" for k in range(1, samples + 1)]
    passed = [[pass_at_k(samples, c, k) for k in range(1, samples + 1)] for c in right.values()]  # (P, samples)
    at = [[] for _ in range(max(g["cot_tokens"] for g in generations))]
    for g in generations:
        for t, e in enumerate(g["entropies"]):
            at[t].append(e)
    mean = lambda values: sum(values) / len(generations)
    return {**{name: sum(column) / len(passed) for name, column in zip(names, zip(*passed))},
            "ci95": dict(zip(names, intervals(passed))),
            "boxed": mean(g["reward"] >= 10 for g in generations),
            "truncated": mean(g["truncated"] for g in generations),
            "cot_length": mean(g["cot_tokens"] for g in generations),
            "entropy": mean(g["entropy"] for g in generations),
            "entropy_by_position": [round(sum(e) / len(e), 6) for e in at], "rows_by_position": [len(e) for e in at]}


def evaluate_choices(model, tokenizer, questions: list[data.Choice], *, batch: int, world, journal, run=0
                     ) -> tuple[dict, list[dict]]:
    """Multiple choice: accuracy and NLL per token of the correct answer (nats); arguments and results as above."""
    mine = [i for i in range(len(questions)) if [run, "choices", i] not in journal][world.rank:: world.size]
    with tqdm(total=len(mine), desc="choices", unit="question", leave=False, disable=not world.main) as bar:
        for i, record in choices.score(model, tokenizer, [(i, questions[i]) for i in mine], batch):
            journal.add([run, "choices", i], record)
            bar.update()
    journal.collect()
    records = [journal.take([run, "choices", i]) for i in range(len(questions))] if world.main else []
    return world.from_main(lambda: summarize_choices(records)), records


def summarize_choices(records: list[dict]) -> dict:
    """Records of `choices.score` -> accuracy, accuracy_norm (fractions) and NLL (nats a token), with 95 % intervals."""
    per_question = [[r["picked"] == r["answer"], r["picked_norm"] == r["answer"], r["nll"]] for r in records]
    return {**choices.summarize(records), "ci95": dict(zip(("accuracy", "accuracy_norm", "nll"), intervals(per_question)))}
