"""The thought that is put in another's place, and the command."""

import json
from types import SimpleNamespace

import torch

from minisoft.data import Problem
from minisoft.io import WEIGHTS, datasets
from minisoft.lab import thought

TINY = str(WEIGHTS / "tiny")
FEW = ["--limit", "4", "--cot", "60", "--data", "tiny-test"]


def test_the_thought_decides_the_answer(tmp_path):
    """After its own thought the answer is the rollout's; after another's, the other's, but not the
    problem's."""
    out = tmp_path / "thought.json"
    thought.main([*FEW, "--tokens", "hard", "soft", "multiplex", "--out", str(out)])
    found = json.loads(out.read_text())["models"]
    assert list(found) == [f"{TINY}, {kind}" for kind in ("hard", "soft", "multiplex")]
    for of_model in found.values():
        numbers = of_model["data"]["tiny-test"]
        assert numbers["same_as_rollout"] == 1 and numbers["problems"] == 4
        assert numbers["other"] < max(numbers["theirs"], 0.3)
        assert numbers["none"] == 0  # the box straight after the question
        assert all(0 <= low <= high <= 1 for low, high in numbers["ci95"].values())
    hard = found[f"{TINY}, hard"]["data"]["tiny-test"]
    assert hard["own"] == hard["shadow"]  # its embeddings are what was fed


def test_a_sampled_thought_is_used_like_a_greedy_one(tmp_path):
    """The answer after its own inputs is the rollout's, for mixtures too; CoTs are other than the
    greedy ones."""
    out = tmp_path / "thought.json"
    kinds = ["--tokens", "multiplex", "covariance"]
    thought.main([*FEW, "--sampled", *kinds, "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["sampled"] is True and "after a sampled CoT" in out.with_suffix(".md").read_text()
    for of_model in found["models"].values():
        assert of_model["data"]["tiny-test"]["same_as_rollout"] == 1
    of = thought.load(TINY, 60).of_kind("covariance")
    problems = datasets.load_problems("tiny-test")[:4]
    greedy, drawn = (thought.thoughts(of, sampled, problems) for sampled in (False, True))
    assert all(not torch.equal(a[1], b[1]) for a, b in zip(greedy, drawn, strict=True))


def test_what_is_put_in_the_thoughts_place(monkeypatch):
    """Nothing, the embeddings of the shadow tokens, another problem's inputs."""
    problems = [Problem("a", "1"), Problem("b", "2")]
    made = [tuple(torch.full((3, 4), float(10 * i + j)) for j in (0, 1)) for i in (1, 2)]
    made = [(problems[i].question, *both, i == 0, "1}") for i, both in enumerate(made)]
    seen = []
    monkeypatch.setattr(thought, "answer", lambda *all: seen.append(all[1:]) or "1}")
    found = thought.use(None, made, problems, SimpleNamespace(score_all=lambda x: [0.0] * len(x)))
    assert found["problems"] == 2 and found["same_as_rollout"] == 1
    shown = [(asked, x[:1, :1].flatten().tolist(), len(x), stop) for asked, x, stop in seen]
    first = [("a", [10.0], 3, True), ("a", [], 0, False), ("a", [11.0], 3, True)]
    second = [("b", [20.0], 3, False), ("b", [], 0, False), ("b", [21.0], 3, False)]
    assert shown == [*first, ("a", [20.0], 3, False), *second, ("b", [10.0], 3, True)]


def test_an_answer_after_no_thought_is_that_of_a_spent_budget():
    of = thought.load(TINY, 60)
    problem = datasets.load_problems("tiny-test")[0]
    request = of.request(problem, ("test", 0), range(1))
    text = thought.answer(of, request, torch.zeros(0, 128), False)
    forced = torch.tensor([*request.prompt, *of.form.prefill[1]])
    logits = of.model.logits(of.model(of.model.embed(forced)[None]))[0, -1]
    assert text.startswith(of.form.answer_text([logits.argmax().item()]))
    assert thought.load(TINY, 60, "bfloat16").model.E.dtype == torch.bfloat16


def test_another_problem_has_another_answer():
    problems = [Problem("a", "1"), Problem("b", "1"), Problem("c", "2")]
    assert [thought.another(problems, i) for i in range(3)] == [2, 2, 0]
    assert thought.another(problems[:2], 0) == 0
