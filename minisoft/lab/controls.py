"""Controls of claims about continuous thoughts (not in the paper).

    python -m minisoft.lab.controls noise --out noise.json      # the base: does noise alone help?
    python -m minisoft.lab.controls thought --model RUN/best ... --out thought.json
    python -m minisoft.lab.controls selection --model RUN ... --out selection.json

noise       pass@k of a model with hard tokens at several temperatures and soft ones with several
            amounts of noise, beside the entropy of their CoTs' next tokens (at temperature 1) and
            how many of a problem's CoTs differ in their (shadow) text; and what soft tokens have
            more than hard ones at the same entropy, and at as many different CoTs
thought     accuracy of the greedy answer after the greedy (--sampled: a drawn) CoT of the model's
            own kind, after none, after the embeddings of its shadow tokens, and after the CoT of
            another problem (also: how often the answer is then the other problem's)
selection   of runs: what the checkpoints chosen by greedy accuracy of the own kind and by
            hard-greedy accuracy have in both, on the validation problems that choose them

The answer is always greedy.
Dimensions: C CoT positions, d width, T positions so far.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from tqdm import tqdm

from minisoft import evaluation
from minisoft.data import Problem
from minisoft.errors import InputError
from minisoft.evaluation import Setting, pass_at_k
from minisoft.io import WEIGHTS, checkpoint, datasets
from minisoft.io.journal import Journal
from minisoft.kinds import KINDS
from minisoft.lab import command
from minisoft.lab.command import NUMBER, WHOLE
from minisoft.lab.figures import read_run
from minisoft.reward import RIGHT
from minisoft.rollout import ANSWER, COT, Request
from minisoft.run import policy
from minisoft.run.evaluate import Evaluator
from minisoft.run.metrics import markdown
from minisoft.run.policy import Policy
from minisoft.run.settings import EVAL_COT, Flags, Settings
from minisoft.run.world import World, as_program, keep_memory
from minisoft.verifier.process import WORKERS, Verifier

BATCH = 512  # rows at once
THOUGHTS = {
    "own": "its own",
    "none": "none",
    "shadow": "its shadow tokens",
    "other": "another problem's",
}


def load(folder: str, cot: int | None) -> Policy:
    """With the kind of token that the model was trained with."""
    path = checkpoint.find(folder)
    tokens = checkpoint.read_about(path).get("tokens", "hard")
    return Policy.load(path, tokens, policy.settings(path, [tokens], Flags(cot=cot), EVAL_COT))


# ------------------------------------------------------------------------------- noise alone


def inferences(settings: Settings, taus: list[float], gammas: list[float]) -> dict:
    """{name: (setting, the model's settings with that temperature of hard tokens, or gamma)}."""
    found = {f"{kind}-greedy": (Setting(kind, True), settings) for kind in ("hard", "soft")}
    for tau in taus:
        changed = replace(settings, tau={**settings.tau, "hard": tau})
        found[f"hard-sample, tau {tau:g}"] = Setting("hard", False), changed
    for gamma in gammas:
        changed = replace(settings, sigma=settings.sigma * (gamma / settings.gamma))
        found[f"soft-sample, gamma {gamma:g}"] = Setting("soft", False), changed
    return found


def noise(args: argparse.Namespace, world: World, verifier) -> dict:
    """{data: {name: numbers}}."""
    if len(args.model) > 1:
        raise InputError(f"--model: expected one, found {len(args.model)}")
    of, results = load(args.model[0], args.cot), {}
    for source in args.data:
        problems, rows = datasets.load_problems(source)[: args.limit], {}
        for name, (setting, settings) in inferences(of.settings, args.tau, args.gamma).items():
            print(f"{source}: {name}", flush=True)
            changed = replace(of, settings=settings)
            evaluator = Evaluator(changed, verifier, world, Journal(None, {}, world), BATCH)
            _, made = evaluator.problems(problems, setting, args.samples, 0)
            rows[name] = numbers(made, 1 if setting.greedy else args.samples)
        match(rows)
        results[source] = rows
    return {"model": short(args.model[0]), "samples": args.samples, "data": results}


def numbers(generations: list[dict], samples: int) -> dict:
    """pass@k with 95 % intervals over problems; mean entropy (nats) and its interval; how many of
    the CoTs of a problem differ, as a share of the samples."""
    of_problem: dict[int, list[dict]] = {}
    for g in generations:
        of_problem.setdefault(g["problem"], []).append(g)
    ks = sorted({k for k in (1, 2, 4, 8, 16, 32) if k < samples} | {samples})
    names, values = [*(f"pass@{k}" for k in ks), "entropy", "different"], []
    for some in of_problem.values():
        right = sum(g["reward"] == RIGHT for g in some)
        passed = [pass_at_k(samples, right, k) for k in ks]
        different = len({g["cot"] for g in some}) / samples
        values.append([*passed, fmean(g["entropy"] for g in some), different])
    means = [fmean(column) for column in zip(*values, strict=True)]
    ends = evaluation.intervals(values)
    return {
        **dict(zip(names, means, strict=True)),
        "ci95": dict(zip(names, ends, strict=True)),
        "by_problem": [[round(x, 6) for x in row] for row in values],
    }


def match(rows: dict[str, dict]) -> None:
    """Adds to each soft row the difference to what hard sampling has at the same entropy, and at
    the same share of different CoTs, between two of its temperatures: {"pass@k": [mean, low, high]}
    over problems, {} outside hard's range.  Numbers of single problems are dropped."""
    hard = [row for name, row in rows.items() if name.startswith("hard-sample")]
    for name, row in rows.items():
        if name.startswith("soft-sample"):
            for by in ("entropy", "different"):
                row[f"more_at_{by}"] = beyond(row, hard, by)
    for row in rows.values():
        del row["by_problem"]


def beyond(row: dict, points: list[dict], by: str) -> dict[str, list[float]]:
    """How much more a row has than the points where their field `by` is as the row's: on the line
    between the two around it, with the paired bootstrap over problems."""
    points = sorted(points, key=lambda point: point[by])
    for low, high in zip(points, points[1:]):
        if low[by] <= row[by] <= high[by] and low[by] < high[by]:
            share = (row[by] - low[by]) / (high[by] - low[by])
            own, *two = (torch.tensor(x["by_problem"]).double() for x in (row, low, high))
            more = own - torch.lerp(*two, share)  # (P, fields)
            ends = evaluation.intervals(more.tolist())
            columns = zip(row["ci95"], more.mean(0).tolist(), ends, strict=True)
            return {x: [mean, *pair] for x, mean, pair in columns if x.startswith("pass@")}
    return {}


def noise_table(found: dict) -> str:
    most = f"pass@{found['samples']}"
    texts = [
        f"In %, entropy in nats; ± the larger half of the 95 % interval over problems.  Last two: "
        f"{most}\nless that of hard tokens of the same entropy, and with as many different CoTs."
    ]
    for source, rows in found["data"].items():
        lines = [[source, "pass@1", most, "entropy", "differ", "at its entropy", "at its CoTs"]]
        for name, row in rows.items():
            cells = [within(row[x], row["ci95"][x]) if x in row else "" for x in ("pass@1", most)]
            differ = "" if "greedy" in name else f"{100 * row['different']:.1f}"
            cells += [f"{row['entropy']:.3f}", differ]
            for by in ("entropy", "different"):
                more = row.get(f"more_at_{by}")
                cells.append("outside" if more == {} else "")
                if more:
                    cells[-1] = within(more[most][0], more[most][1:], "+")
            lines.append([name.replace("-sample", ""), *cells])
        texts.append(markdown(lines))
    return "\n\n".join(texts)


def within(mean: float, ends: list[float], sign: str = "") -> str:
    """In %: the mean ± the larger half of its interval."""
    half = max(ends[1] - mean, mean - ends[0], 0)
    return f"{100 * mean:{sign}.1f} ± {100 * half:.1f}"


# ----------------------------------------------------------------------------- is it used?


@torch.no_grad()
def answer(of: Policy, request: Request, thought: torch.Tensor, stopped: bool) -> str:
    """The greedy answer after a prompt, a thought (C, d) and the prefill, by the definition: the
    text so far is run again at every position.  stopped: did the thought end with the stop
    phrase?"""
    form, model, ids = of.form, of.model, []
    forced = form.prefill[0 if stopped else 1]
    while not ids or not form.answer_ends(ids):
        before, after = (model.embed(torch.tensor(x)) for x in (request.prompt, [*forced, *ids]))
        x = torch.cat((before, thought.to(before.dtype), after))
        hidden = model(x[None])[:, -1]
        ids.append(model.logits(hidden)[0].argmax().item())
    return form.answer_text(ids)


def request(of: Policy, i: int, problem: Problem) -> Request:
    return of.request(problem, ("thought", i), range(1))


def thoughts(of: Policy, sampled: bool, problems: list[Problem]) -> list[tuple]:
    """The CoT for each problem, greedy or drawn: (inputs (C, d), the shadow tokens' embeddings
    (C, d), did it stop?, the greedy answer that follows)."""
    found = []
    requests = [request(of, i, problem) for i, problem in enumerate(problems)]
    for first in range(0, len(requests), BATCH):
        some = requests[first : first + BATCH]
        for one in of.rollout(some, greedy=not sampled, greedy_answer=True):
            inputs = of.kind.embed(of.model, one.taken(COT))
            shadow = of.model.embed(one.ids[one.role == COT])
            text = of.form.answer_text(one.tokens(0, ANSWER))
            found.append((inputs, shadow, not one.truncated[0], text))
    return found


def thought(args: argparse.Namespace, _, verifier) -> dict:
    """{"sampled", "models": {model: {data: numbers}}}."""
    found = {}
    for folder, name in names(args.model).items():
        of = load(folder, args.cot)
        for tokens in args.tokens or [None]:
            kind = tokens or of.settings.base.get("tokens", "hard")
            of = of.of_kind(kind)
            row = found[f"{name}, {tokens}" if tokens else name] = {"tokens": kind, "data": {}}
            for source in args.data:
                problems = datasets.load_problems(source)[: args.limit]
                made = thoughts(of, args.sampled, problems)
                row["data"][source] = use(of, made, problems, verifier)
    return {"sampled": args.sampled, "models": found}


def use(of: Policy, made: list[tuple], problems: list[Problem], verifier) -> dict:
    """Accuracy after each of THOUGHTS, with 95 % intervals over problems; of the answers after
    another problem's CoT also the share that are the other's right answer.  made: `thoughts`."""
    texts = {name: [] for name in THOUGHTS}
    for i, problem in enumerate(tqdm(problems, disable=None)):
        (inputs, shadow, stopped, _), other = made[i], made[another(problems, i)]
        for name, (thought, ends) in {
            "own": (inputs, stopped),
            "none": (inputs[:0], False),
            "shadow": (shadow, stopped),
            "other": (other[0], other[2]),
        }.items():
            texts[name].append(answer(of, request(of, i, problem), thought, ends))
    golds = {name: [problem.answer for problem in problems] for name in THOUGHTS}
    golds["theirs"] = [problems[another(problems, i)].answer for i in range(len(problems))]
    texts["theirs"] = texts["other"]
    right = {
        name: [float(r == RIGHT) for r in verifier.score_all(list(zip(texts[name], gold)))]
        for name, gold in golds.items()
    }
    ends = evaluation.intervals([list(row) for row in zip(*right.values(), strict=True)])
    return {
        "problems": len(problems),
        "same_as_rollout": fmean(a == b for a, (*_, b) in zip(texts["own"], made, strict=True)),
        **{name: fmean(column) for name, column in right.items()},
        "ci95": dict(zip(right, ends, strict=True)),
    }


def another(problems: list[Problem], i: int) -> int:
    """The next problem whose answer is not that of problem i; i itself if all are alike."""
    n = len(problems)
    others = ((i + step) % n for step in range(1, n))
    return next((j for j in others if problems[j].answer != problems[i].answer), i)


def thought_table(found: dict) -> str:
    head = ", ".join(f"{name}: {text}" for name, text in THOUGHTS.items())
    how = "sampled" if found["sampled"] else "greedy"
    texts = [
        f"Accuracy of the greedy answer in % after a {how} CoT;\n"
        "± the larger half of the 95 % interval over problems.\n"
        f"{head};\ntheirs: after that one, the share of answers that are the other problem's."
    ]
    fields = (*THOUGHTS, "theirs")
    for source in next(iter(found["models"].values()))["data"]:
        rows = [[source, *fields]]
        for name, of_model in found["models"].items():
            of = of_model["data"][source]
            rows.append([name, *(within(of[field], of["ci95"][field]) for field in fields)])
        texts.append(markdown(rows))
    return "\n\n".join(texts)


def short(path: str) -> str:
    """RUN of RUN/best, else the folder's name."""
    parts = Path(path).parts
    return parts[-2] if parts[-1] in ("best", "last") and len(parts) > 1 else parts[-1]


def names(paths: list[str]) -> dict[str, str]:
    """{path: its short name}; all stay whole if two would become the same."""
    found = {path: short(path) for path in paths}
    return found if len(set(found.values())) == len(found) else {path: path for path in found}


# ------------------------------------------------------------------- what chooses a checkpoint


def selection(args: argparse.Namespace, *_) -> dict:
    """{run: {chosen by: {"step", "own", "hard"}}} of runs whose kind is not hard."""
    found = {}
    for folder, name in names(args.model).items():
        config, rows = read_run(Path(folder))
        fields = {"own": "validation", "hard": "validation_hard"}
        rows = [row for row in rows if all(field in row for field in fields.values())]
        if not rows or config["tokens"] == "hard":
            continue
        best = {}
        for by, field in fields.items():
            row = max(rows, key=lambda row: (row[field], -row["step"]))  # the first of equals
            best[by] = {"step": row["step"], **{x: row[of] for x, of in fields.items()}}
        of = {x: config.get(x) for x in ("tokens", "seed", "noise", "top_k", "dtype")}
        found[name] = {**of, "chosen_by": best, "validations": len(rows)}
    return {"runs": found}


def selection_table(found: dict) -> str:
    rows = [["run", "chosen by", "update", "own greedy (%)", "hard-greedy (%)"]]
    for name, run in found["runs"].items():
        for by, of in run["chosen_by"].items():
            scores = [f"{100 * of[x]:.1f}" for x in ("own", "hard")]
            rows.append([name, by, str(of["step"]), *scores])
    return markdown(rows)


PARTS = {
    "noise": (noise, noise_table),
    "thought": (thought, thought_table),
    "selection": (selection, selection_table),
}
SOME, OF_TOKENS = {"nargs": "+"}, "of thought: kinds of token (default the model's)"
FLAGS = {
    "--model": ([str(WEIGHTS / "tiny")], "folders or hub ids; RUNs of selection", SOME),
    "--data": (["tiny-test", "tiny-long"], "problems", SOME),
    "--limit": (200, "only the first N problems of each", WHOLE),
    "--cot": (None, f"CoT budget in tokens (default {EVAL_COT} *)", WHOLE),
    "--samples": (32, "of noise: samples a problem", WHOLE),
    "--tau": ([0.4, 0.6, 0.8, 1.0, 1.3, 1.6], "of noise: of hard tokens", {**SOME, **NUMBER}),
    "--gamma": ([0.1, 0.33, 0.66, 1.0, 1.5], "of noise: of soft tokens", {**SOME, **NUMBER}),
    "--tokens": (None, OF_TOKENS, {**SOME, "choices": KINDS}),
    "--sampled": (None, "of thought: draw the CoTs as in training", {"action": "store_true"}),
    **command.OUT,
}


def read_flags(argv=None) -> argparse.Namespace:
    parser = command.parser("controls", __doc__)
    parser.add_argument("part", choices=PARTS)
    command.add_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    command.expect_least(parser, args, limit=2, cot=1, samples=1)
    command.expect_folder(parser, "--out", args.out)
    return args


def main(argv=None) -> None:
    args = read_flags(argv)
    measure, table = PARTS[args.part]
    with command.one_line("controls"):
        keep_memory()
        with World("cpu", 60) as world, Verifier(workers=WORKERS) as verifier:
            found = measure(args, world, verifier)
        command.show(found, table(found), args.out)


if __name__ == "__main__":
    as_program(main)
