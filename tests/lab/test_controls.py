"""Controls: the thought that is put in another's place, matching, and the commands."""

import json
from types import SimpleNamespace

import pytest
import torch

from minisoft.data import Problem
from minisoft.io import WEIGHTS, datasets
from minisoft.lab import controls

TINY = str(WEIGHTS / "tiny")
FEW = ["--limit", "4", "--cot", "60", "--data", "tiny-test"]


def test_the_thought_decides_the_answer(tmp_path):
    """After its own thought the answer is the rollout's; after another's, the other's, but not the
    problem's."""
    out = tmp_path / "thought.json"
    controls.main(["thought", *FEW, "--tokens", "hard", "soft", "multiplex", "--out", str(out)])
    found = json.loads(out.read_text())["models"]
    assert list(found) == [f"tiny, {kind}" for kind in ("hard", "soft", "multiplex")]
    for of_model in found.values():
        numbers = of_model["data"]["tiny-test"]
        assert numbers["same_as_rollout"] == 1 and numbers["problems"] == 4
        assert numbers["other"] < max(numbers["theirs"], 0.3)
        assert numbers["none"] == 0  # the box straight after the question
        assert all(0 <= low <= high <= 1 for low, high in numbers["ci95"].values())
    hard = found["tiny, hard"]["data"]["tiny-test"]
    assert hard["own"] == hard["shadow"]  # its embeddings are what was fed
    assert max(map(len, out.with_suffix(".md").read_text().splitlines())) <= 100


def test_a_sampled_thought_is_used_like_a_greedy_one(tmp_path):
    """The answer after its own inputs is the rollout's, for mixtures too; CoTs are other than the
    greedy ones."""
    out = tmp_path / "thought.json"
    kinds = ["--tokens", "multiplex", "covariance"]
    controls.main(["thought", *FEW, "--sampled", *kinds, "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["sampled"] and "after a sampled CoT" in out.with_suffix(".md").read_text()
    for of_model in found["models"].values():
        assert of_model["data"]["tiny-test"]["same_as_rollout"] == 1
    of = controls.load(TINY, 60).of_kind("covariance")
    problems = datasets.load_problems("tiny-test")[:4]
    greedy, drawn = (controls.thoughts(of, sampled, problems) for sampled in (False, True))
    assert all(not torch.equal(a[0], b[0]) for a, b in zip(greedy, drawn, strict=True))


def test_what_is_put_in_the_thoughts_place(monkeypatch):
    """Nothing, the embeddings of the shadow tokens, another problem's inputs."""
    problems = [Problem("a", "1"), Problem("b", "2")]
    made = [tuple(torch.full((3, 4), float(10 * i + j)) for j in (0, 1)) for i in (1, 2)]
    made = [(*both, i == 0, "1}") for i, both in enumerate(made)]
    seen = []
    of = SimpleNamespace(request=lambda problem, key, samples: problem.question)
    monkeypatch.setattr(controls, "answer", lambda *all: seen.append(all[1:]) or "1}")
    found = controls.use(of, made, problems, SimpleNamespace(score_all=lambda pairs: [0.0] * 2))
    assert found["problems"] == 2 and found["same_as_rollout"] == 1
    shown = [(asked, x[:1, :1].flatten().tolist(), len(x), stop) for asked, x, stop in seen]
    first = [("a", [10.0], 3, True), ("a", [], 0, False), ("a", [11.0], 3, True)]
    second = [("b", [20.0], 3, False), ("b", [], 0, False), ("b", [21.0], 3, False)]
    assert shown == [*first, ("a", [20.0], 3, False), *second, ("b", [10.0], 3, True)]


def test_noise_of_another_size():
    settings = controls.load(TINY, 60).settings
    found = controls.inferences(settings, [0.7], [0.66])
    assert [*found] == [
        "hard-greedy",
        "soft-greedy",
        "hard-sample, tau 0.7",
        "soft-sample, gamma 0.66",
    ]
    assert found["soft-sample, gamma 0.66"][1].sigma == pytest.approx(2 * settings.sigma)
    cooler = found["hard-sample, tau 0.7"][1]
    assert cooler.kind("hard").tau == 0.7 and cooler.sigma == settings.sigma


def test_pass_at_any_number_of_samples():
    made = [
        {"problem": 0, "reward": 100.0 * (i == 2), "cot": "x", "entropy": 1.0} for i in range(5)
    ]
    found = controls.numbers(made, 5)
    assert found["pass@5"] == 1 and found["pass@1"] == pytest.approx(0.2)


def test_models_of_one_name_keep_their_paths():
    assert controls.names(["a/soft/best", "b/hard/best"]) == {
        "a/soft/best": "soft",
        "b/hard/best": "hard",
    }
    assert controls.names(["a/x/best", "b/x"]) == {"a/x/best": "a/x/best", "b/x": "b/x"}
    with pytest.raises(SystemExit, match="--model: expected one, found 2"):
        controls.main(["noise", "--model", "a", "b"])


def test_an_answer_after_no_thought_is_that_of_a_spent_budget():
    of = controls.load(TINY, 60)
    problem = datasets.load_problems("tiny-test")[0]
    request = of.request(problem, ("test", 0), range(1))
    text = controls.answer(of, request, torch.zeros(0, 128), False)
    forced = torch.tensor([*request.prompt, *of.form.prefill[1]])
    logits = of.model.logits(of.model(of.model.embed(forced)[None]))[0, -1]
    assert text.startswith(of.form.answer_text([logits.argmax().item()]))


def test_another_problem_has_another_answer():
    problems = [Problem("a", "1"), Problem("b", "1"), Problem("c", "2")]
    assert [controls.another(problems, i) for i in range(3)] == [2, 2, 0]
    assert controls.another(problems[:2], 0) == 0


def point(different, passed):
    return {
        "different": different,
        "by_problem": [[p, 0.0] for p in passed],
        "ci95": {"pass@1": [0, 1], "entropy": [0, 1]},
    }


def test_matching_is_between_the_two_points_around():
    low, high = point(0.2, [0.0, 0.4]), point(0.6, [1.0, 0.4])
    found = controls.beyond(point(0.3, [0.5, 0.6]), [high, low], "different")
    assert list(found) == ["pass@1"]
    assert found["pass@1"] == pytest.approx([0.225, 0.2, 0.25])  # 0.5 - 0.25, 0.6 - 0.4
    assert controls.beyond(point(0.7, [0.5, 0.6]), [high, low], "different") == {}


def test_noise_is_compared_at_matched_diversity(tmp_path):
    out = tmp_path / "noise.json"
    words = ["--samples", "4", "--tau", "0.05", "1.5", "--gamma", "0.33", "--out", str(out)]
    controls.main(["noise", *FEW, *words])
    rows = json.loads(out.read_text())["data"]["tiny-test"]
    assert list(rows) == [
        "hard-greedy",
        "soft-greedy",
        "hard-sample, tau 0.05",
        "hard-sample, tau 1.5",
        "soft-sample, gamma 0.33",
    ]
    assert rows["hard-sample, tau 0.05"]["different"] < rows["hard-sample, tau 1.5"]["different"]
    assert {"more_at_entropy", "more_at_different"} <= set(rows["soft-sample, gamma 0.33"])
    assert not any("by_problem" in row for row in rows.values())
    text = out.with_suffix(".md").read_text()
    assert "at its entropy" in text and max(map(len, text.splitlines())) <= 100


def test_selection_finds_the_first_best_checkpoint_by_either(tmp_path, capsys):
    run = tmp_path / "soft-0"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"tokens": "soft", "seed": 0}))
    scores = [(0, 0.3, 0.4), (10, 0.8, 0.5), (20, 0.8, 0.9), (30, 0.7, 0.9)]
    lines = [
        {"step": step, "accuracy": 0.5, "validation": own, "validation_hard": hard}
        for step, own, hard in scores
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    controls.main(["selection", "--model", str(run), "--out", str(tmp_path / "s.json")])
    found = json.loads((tmp_path / "s.json").read_text())["runs"]["soft-0"]
    assert found["chosen_by"]["own"] == {"step": 10, "own": 0.8, "hard": 0.5}
    assert found["chosen_by"]["hard"] == {"step": 20, "own": 0.8, "hard": 0.9}
    assert "| soft-0 | own" in capsys.readouterr().out
