"""Is the thought used, and as what? (not in the paper)

    python -m minisoft.lab.thought --model RUN/best ... --out thought.json

Accuracy of the greedy answer after the greedy (--sampled: a drawn) CoT of the model's own kind,
after none, after the embeddings of its shadow tokens, and after the CoT of another problem (also:
how often the answer is then the other problem's).

Dimensions: C CoT positions, d width, T positions so far.
"""

import argparse
from statistics import fmean

import torch
from tqdm import tqdm

from minisoft import evaluation
from minisoft.data import Problem
from minisoft.io import WEIGHTS, checkpoint, datasets
from minisoft.kinds import KINDS
from minisoft.lab import command
from minisoft.lab.command import WHOLE
from minisoft.reward import RIGHT
from minisoft.rollout import ANSWER, COT, Request
from minisoft.run import policy
from minisoft.run.metrics import markdown
from minisoft.run.policy import Policy
from minisoft.run.settings import EVAL_COT, Flags
from minisoft.run.world import as_program, keep_memory
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


def measure(args: argparse.Namespace, verifier) -> dict:
    """{"sampled", "models": {model: {data: numbers}}}."""
    found = {}
    for folder in args.model:
        of = load(folder, args.cot)
        for tokens in args.tokens or [of.settings.sidecar.get("tokens", "hard")]:
            of = of.of_kind(tokens)
            row = found[f"{folder}, {tokens}"] = {"tokens": tokens, "data": {}}
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


def table(found: dict) -> str:
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
            of, cells = of_model["data"][source], [name]
            for field in fields:
                half = max(abs(end - of[field]) for end in of["ci95"][field])
                cells.append(f"{100 * of[field]:.1f} ± {100 * half:.1f}")
            rows.append(cells)
        texts.append(markdown(rows))
    return "\n\n".join(texts)


SOME = {"nargs": "+"}
FLAGS = {
    "--model": ([str(WEIGHTS / "tiny")], "folders or hub ids", SOME),
    "--data": (["tiny-test", "tiny-long"], "problems", SOME),
    "--limit": (200, "only the first N problems of each", WHOLE),
    "--cot": (None, f"CoT budget in tokens (default {EVAL_COT} *)", WHOLE),
    "--tokens": (None, "kinds of token (default the model's)", {**SOME, "choices": KINDS}),
    "--sampled": (None, "draw the CoTs as in training", {"action": "store_true"}),
    **command.OUT,
}


def main(argv=None) -> None:
    args = command.read(command.parser("thought", __doc__), FLAGS, argv, limit=2, cot=1)
    with command.one_line("thought"):
        keep_memory()
        with Verifier(workers=WORKERS) as verifier:
            found = measure(args, verifier)
        command.show(found, table(found), args.out)


if __name__ == "__main__":
    as_program(main)
