"""--reward FILE.py: what learns is the file's, what is counted as right the verifier's; what fails
stops a run with nothing lost."""

import hashlib
import json
import re
from pathlib import Path
from statistics import fmean

import pytest
from runs import assert_same_weights, config, metrics, newest, start_ranks

import eval as evaluation
import train
from minisoft.data import boxed
from minisoft.run.session import Run
from minisoft.verifier.own import OwnReward

SMALL = "--prompts 2 --group 8 --cot 40 --eval-cot 16 --validation 2 --test 0 --show-every 0"
SMALL = f"{SMALL} --warmup 1 --lr 1e-4 --device cpu".split()
LENGTH = "def reward(answer, gold):\n    return -1.5 if answer is None else len(answer)\n"
README = Path(train.__file__).parent / "minisoft/run/README.md"


@pytest.fixture
def length(tmp_path):
    (tmp_path / "length.py").write_text(LENGTH)
    return tmp_path / "length.py"


def run(out, *flags):
    train.main([*SMALL, "--out", str(out), *map(str, flags)])
    return out


def test_what_learns_is_the_files_and_what_is_right_the_verifiers(tmp_path, length):
    """And a run goes on with the same file only, wherever it lies."""
    usual = run(tmp_path / "usual", "--steps", 1)
    own = run(tmp_path / "own", "--steps", 1, "--reward", length)
    (before,), (now,) = metrics(usual), metrics(own)
    same = ("accuracy", "boxed", "verifier", "cot_length", "validation")
    assert [now[name] for name in same] == [before[name] for name in same] and now["boxed"] > 0
    assert now["reward"] != before["reward"] and now["grad_norm"] != before["grad_norm"]
    assert config(own)["reward"] == str(length) and config(usual)["reward"] is None
    assert config(own)["reward_sha256"] == hashlib.sha256(LENGTH.encode()).hexdigest()
    moved = length.rename(tmp_path / "moved.py")
    again = ["--out", str(own), "--resume", "--steps", "2", "--reward", str(moved)]
    moved.write_text(LENGTH + "# changed\n")
    with pytest.raises(SystemExit, match="--resume: expected .*, found other content of --reward"):
        train.main(again)
    moved.write_text(LENGTH)
    train.main(again)
    assert len(metrics(own)) == 2 and config(own)["reward"] == str(moved)


def test_a_reward_that_fails_stops_the_run_with_nothing_lost(tmp_path, monkeypatch):
    """And what fails on one rank is the error of all."""
    path, out, parts = tmp_path / "r.py", tmp_path / "run", Run.parts
    head = "import os\ndef reward(answer, gold):\n    assert not os.path.exists('marker')\n"
    path.write_text(head + LENGTH.partition("\n")[2])
    monkeypatch.chdir(tmp_path)
    whole, marker = run(tmp_path / "whole", "--steps", 3, "--reward", path), tmp_path / "marker"

    def marked(self, step):
        if step == 2:
            marker.touch()
        return parts(self, step)

    monkeypatch.setattr(Run, "parts", marked)
    with pytest.raises(SystemExit, match=r"^.*r.py:3: .*AssertionError.* can be resumed.*\Z"):
        run(out, "--steps", 3, "--reward", path)
    assert newest(out).name == "step-000002"
    monkeypatch.setattr(Run, "parts", parts)
    marker.unlink()
    train.main(["--out", str(out), "--resume"])
    assert_same_weights(out, whole)
    assert metrics(out) == metrics(whole)


def test_a_reward_that_fails_on_one_rank_is_the_error_of_all(tmp_path):
    path, out = tmp_path / "r.py", tmp_path / "run"
    path.write_text("import os\ndef reward(a, g):\n    return 1 / (os.environ['RANK'] == '0')")
    ranks = start_ranks(tmp_path, 2, *SMALL, "--steps", "9", "--reward", path, "--out", out)
    for rank, process in enumerate(ranks):
        process.join(90)
        assert process.exitcode == 1
        assert f"train.py: error: {path}:3: expected" in (tmp_path / f"rank-{rank}").read_text()


def test_an_evaluation_says_which_reward_it_has(tmp_path, length, capsys):
    flags = "--limit 3 --samples 2 --cot 40 --settings hard-greedy,soft-sample --device cpu".split()
    found = []
    for more in ([], ["--reward", str(length)]):
        out = tmp_path / f"{len(found)}.json"
        evaluation.main([*flags, "--out", str(out), *more])
        lines = out.with_suffix(".jsonl").read_text().splitlines()
        found.append((json.loads(out.read_text()), [json.loads(line) for line in lines]))
        assert ("| reward " in out.with_suffix(".md").read_text()) == bool(more)
    (usual, before), (own, now) = found
    digest = hashlib.sha256(LENGTH.encode()).hexdigest()
    assert own["reward"] == {"file": str(length), "sha256": digest} and "reward" not in usual
    assert [g["verified"] for g in now] == [g["reward"] for g in before]
    boxes = [boxed(g["answer"]) for g in now]
    assert [g["reward"] for g in now] == [-1.5 if box is None else len(box) for box in boxes]
    for setting, numbers in own["settings"].items():
        assert numbers.pop("reward") == fmean(g["reward"] for g in now if g["setting"] == setting)
    assert own["settings"] == usual["settings"]
    capsys.readouterr()
    picture = ["--out", str(tmp_path / "x.png"), "--reward", str(length)]
    evaluation.main(["--show", "0", "--settings", "hard-greedy", "--device", "cpu", *picture])
    shown = re.search(r"answer: (.*)}   gold: .*   reward: (.*)", capsys.readouterr().out)
    assert float(shown[2]) == len(shown[1])


def test_the_pages_example_is_what_it_says(tmp_path):
    section = README.read_text("utf-8").partition("## A reward of one's own")[2]
    path = tmp_path / "short.py"
    path.write_text(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1])
    assert len(path.read_text().splitlines()) <= 10
    with OwnReward(str(path)) as own:
        long = "1" + "2" * 11
        answers = [("12}", "12"), (f"{long}}}", long), ("13}", "12"), ("12", "12")]
        assert own.score_all(answers) == [100, 98, 10, 0]


@pytest.mark.parametrize("program", [train, evaluation])
def test_no_reward_is_one_line_before_anything_is_written(tmp_path, program):
    (tmp_path / "r.py").write_text("def reward(answer, gold)\n    return 1\n")
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit, match=r"^.*error: .*r.py:1: expected.*\Z"):
        program.main(["--model", "nowhere", "--reward", str(tmp_path / "r.py"), "--out", str(out)])
    assert not out.exists()
