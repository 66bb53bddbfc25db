"""eval.py and minisoft.evaluation: the six settings, pass@k, what is written."""

import itertools
import json

import pytest

import eval as evaluation_script
from minisoft import evaluation

FLAGS = ["--device", "cpu", "--limit", "5", "--samples", "4", "--cot", "60"]


def run(out, *flags):
    evaluation_script.main([*FLAGS, "--out", str(out), *flags])
    return json.loads(out.read_text()), [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]


@pytest.mark.parametrize("n, c", [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (6, 6)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n, c):
    for k in range(1, n + 1):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert evaluation.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_refuses_impossible_numbers(n, c, k):
    with pytest.raises(ValueError, match="pass_at_k"):
        evaluation.pass_at_k(n, c, k)


def test_all_six_settings(tmp_path, capsys):
    result, generations = run(tmp_path / "r.json", "--settings", "all")
    assert list(result["settings"]) == list(evaluation.SETTINGS)
    assert {"model", "data", "problems", "samples", "seed"} <= set(result) and result["problems"] == 5
    for setting, numbers in result["settings"].items():
        assert set(k for k in numbers if k.startswith("pass@")) == (
            {"pass@1"} if setting.endswith("greedy") else {"pass@1", "pass@2", "pass@4"})
        mine = [g for g in generations if g["setting"] == setting]
        assert len(mine) == (5 if setting.endswith("greedy") else 20)
        assert numbers["pass@1"] == pytest.approx(sum(g["reward"] == 100 for g in mine) / len(mine))
        if "pass@4" in numbers:
            solved = {g["problem"] for g in mine if g["reward"] == 100}
            assert numbers["pass@4"] == pytest.approx(len(solved) / 5)
    greedy = {s: [g["cot"] for g in generations if g["setting"] == s] for s in ("hard-greedy", "fuzzy-greedy")}
    assert greedy["hard-greedy"] == greedy["fuzzy-greedy"]
    assert "| hard-greedy" in capsys.readouterr().out


def test_batch_size_does_not_change_the_generations(tmp_path):
    flags = ["--settings", "hard-sample,soft-sample"]
    results = [run(tmp_path / f"{batch}.json", *flags, "--batch", str(batch))[1] for batch in (1, 3, 64)]
    text = [[(g["problem"], g["sample"], g["cot"], g["answer"]) for g in r] for r in results]
    assert text[0] == text[1] == text[2]
    assert len({t[2] for t in text[0]}) > 10  # they do differ from each other


def test_seed_decides(tmp_path):
    flags = ["--settings", "soft-sample"]
    first, again, other = (run(tmp_path / f"{i}.json", *flags, "--seed", seed)[1] for i, seed in enumerate("001"))
    assert first == again != other


@pytest.mark.parametrize("flags, message", [
    (["--settings", "hard-greedy,warm-greedy"], "settings: expected all or some of hard-greedy"),
    (["--model", "nowhere"], "nowhere: expected a model folder"),
    (["--data", "nowhere.jsonl"], "nowhere.jsonl: expected a data file"),
])
def test_bad_input_is_one_line(tmp_path, flags, message):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "r.json", *flags)
    assert message in stop.value.code and "\n" not in stop.value.code and not list(tmp_path.iterdir())
