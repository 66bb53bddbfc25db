"""Is the thought used, and as what? (not in the paper)

    python -m minisoft.lab.thought --model RUN/best ... --out thought.json

Accuracy of the greedy answer after the greedy (--sampled: a drawn) CoT of the model's own kind,
after none, after the embeddings of its shadow tokens, and after the CoT of another problem (also:
how often the answer is then the other problem's).

Dimensions: C CoT positions, d width.
"""

import argparse
from dataclasses import replace
from statistics import fmean

import torch

from minisoft import evaluation
from minisoft.data import Problem
from minisoft.io import WEIGHTS, checkpoint, datasets
from minisoft.kinds import COT as COT_OF
from minisoft.kinds import KINDS
from minisoft.kinds.options import Number, Option
from minisoft.lab import command
from minisoft.model import Prompt, Recording
from minisoft.reward import RIGHT
from minisoft.rollout import ANSWER, COT, Request
from minisoft.run import policy
from minisoft.run.metrics import markdown
from minisoft.run.policy import Policy
from minisoft.run.settings import DTYPE, DTYPE_ON, EVAL_COT, Flags
from minisoft.run.tables import number
from minisoft.run.world import as_program, bar
from minisoft.verifier.process import WORKERS, Verifier

BATCH = 512  # rows at once
THOUGHTS = {
    "own": "its own",
    "none": "none",
    "shadow": "its shadow tokens",
    "other": "another problem's",
}
FIELDS = (*THOUGHTS, "theirs")


def load(folder: str, cot: int | None, dtype: str | None = None) -> Policy:
    """With the kind of token that the model was trained with."""
    path = checkpoint.find(folder)
    tokens = checkpoint.read_about(path).get("tokens", "hard")
    settings = policy.settings(path, [tokens], Flags(cot=cot), EVAL_COT)
    dtype = checkpoint.DTYPES[dtype or DTYPE_ON["cpu"]]
    return Policy.load(path, tokens, settings, dtype=dtype)


@torch.no_grad()
def answer(of: Policy, request: Request, thought: torch.Tensor, stopped: bool) -> str:
    """The greedy answer after a prompt, a thought (C, d) and the prefill; what follows the thought
    is run again at every position.  stopped: did the thought end with the stop phrase?"""
    form, model, ids, before = of.form, of.model, [], Recording()
    forced = form.prefill[0 if stopped else 1]
    prompt = model.embed(torch.tensor(request.prompt))
    model(torch.cat((prompt, thought.to(prompt.dtype)))[None], before)
    behind = Prompt(tuple(before.keys), tuple(before.values))
    while not ids or not form.answer_ends(ids):
        x = model.embed(torch.tensor([[*forced, *ids]]))
        ids.append(model.logits(model(x, behind)[:, -1])[0].argmax().item())
    return form.answer_text(ids)


def thoughts(of: Policy, sampled: bool, problems: list[Problem]) -> list[tuple]:
    """The CoT for each problem, greedy or drawn: (its prompt's Request, inputs (C, d), the shadow
    tokens' embeddings (C, d), did it stop?, the greedy answer that follows)."""
    requests = [of.request(x, ("thought", i), range(1)) for i, x in enumerate(problems)]
    found = []
    for request, one in zip(requests, of.rollout(requests, not sampled, True, rows=BATCH)):
        inputs = of.kind.embed(of.model, one.taken(COT))
        shadow = of.model.embed(one.ids[one.role == COT])
        text = of.form.answer_text(one.tokens(0, ANSWER))
        found.append((request, inputs, shadow, not one.truncated[0], text))
    return found


def measure(args: argparse.Namespace) -> dict:
    """{"sampled", "models": {model: {data: numbers}}}."""
    found = {}
    with Verifier(workers=WORKERS) as verifier:
        for folder in args.model:
            of = load(folder, args.cot, args.dtype)
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
    right, same = [], []
    for i, problem in enumerate(bar(problems, disable=None)):
        (request, inputs, shadow, stopped, text), j = made[i], another(problems, i)
        _, other, _, other_stopped, _ = made[j]
        replaced = (inputs, stopped), (inputs[:0], False), (shadow, stopped), (other, other_stopped)
        texts = [answer(of, request, *thought) for thought in replaced]
        pairs = [*((x, problem.answer) for x in texts), (texts[-1], problems[j].answer)]
        right.append([float(reward == RIGHT) for reward in verifier.score_all(pairs)])
        same.append(texts[0] == text)
    return {
        "problems": len(problems),
        "same_as_rollout": fmean(same),
        **{name: fmean(column) for name, column in zip(FIELDS, zip(*right))},
        "ci95": dict(zip(FIELDS, evaluation.intervals(right), strict=True)),
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
        f"Accuracy of the greedy answer in % [95 % interval over problems] after a {how} CoT.\n"
        f"{head};\ntheirs: after that one, the share of answers that are the other problem's."
    ]
    for source in next(iter(found["models"].values()))["data"]:
        rows = [[source, *FIELDS]]
        for name, of in found["models"].items():
            rows.append([name, *(number([of["data"][source]], field) for field in FIELDS)])
        texts.append(markdown(rows))
    return "\n\n".join(texts)


FLAGS = [
    Option("model", str, "folders or hub ids", [str(WEIGHTS / "tiny")], nargs="+"),
    Option("data", str, "problems", ["tiny-test", "tiny-long"], nargs="+"),
    Option("limit", Number(int, 2), "only the first N problems of each, at least 2", 200),
    replace(COT_OF, default=EVAL_COT),
    DTYPE,
    Option("tokens", str, "kinds of token (default the model's)", choices=KINDS, nargs="+"),
    Option("sampled", bool, "draw the CoTs as in training", False),
    command.OUT,
]


def main(argv=None) -> None:
    command.measure("thought", __doc__, FLAGS, argv, measure, table)


if __name__ == "__main__":
    as_program(main)
