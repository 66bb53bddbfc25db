"""--track: the numbers of metrics.jsonl in a tracker, and a run that no tracker stops."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from runs import config, metrics, run_ranks

import train
from minisoft.run.metrics import tracker

SMALL = "--prompts 2 --group 2 --cot 8 --eval-cot 8 --validation 2 --test 0 --validate-every 2"
SMALL = f"{SMALL} --warmup 1 --save-every 1 --device cpu".split()


def run(out, *flags):
    train.main([*SMALL, "--out", str(out), *flags])
    return out


class Fake(ModuleType):
    """wandb and trackio, as far as they are alike; `fails`: in which call it raises."""

    def __init__(self, fails=""):
        super().__init__("fake")
        self.fails, self.calls = fails, []

    def init(self, **about):
        self._call("init", about)
        return SimpleNamespace(
            log=lambda numbers, step: self._call("log", (numbers, step)),
            finish=lambda: self._call("finish", None),
        )

    def _call(self, name, what):
        self.calls.append((name, what))
        if name == self.fails:
            raise ConnectionError("no\nnetwork")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_one_call_a_step_with_the_names_of_metrics(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, fake := Fake())
    out = run(tmp_path / "run", "--steps", "2", "--track", name)
    assert [call for call, _ in fake.calls] == ["init", "log", "log", "finish"]
    about = fake.calls[0][1]
    assert (about["project"], about["name"]) == ("minisoft", "run")
    assert about["config"]["group"] == 2
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert "validation" in rows[1]
    for row, (_, (numbers, step)) in zip(rows, fake.calls[1:3], strict=True):
        assert step == row.pop("step") and row.pop("verifier")
        assert numbers == row


FAILS = [("import", 0), ("init", 1), ("log", 2), ("finish", 4)]


@pytest.mark.parametrize("fails, calls", FAILS)
def test_a_tracker_that_fails_is_one_line_then_silence(tmp_path, monkeypatch, capsys, fails, calls):
    """Also one that is not installed."""
    fake = Fake(fails)
    monkeypatch.setitem(sys.modules, "trackio", None if fails == "import" else fake)
    out = run(tmp_path / "run", "--steps", "2", "--track", "trackio")
    assert len(metrics(out)) == 2 and (out / "summary.json").is_file()
    assert len(fake.calls) == calls
    told = [line for line in capsys.readouterr().out.splitlines() if "--track" in line]
    failed = "--track trackio: it has failed, the run goes on: "
    error = "ModuleNotFound" if fails == "import" else "ConnectionError('no\\nnetwork')"
    assert len(told) == 1 and told[0].startswith(failed + error)


def test_nothing_is_imported_without_the_flag(tmp_path, monkeypatch):
    fakes = {name: Fake() for name in ("wandb", "trackio", "torch.utils.tensorboard")}
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    out = run(tmp_path / "run", "--steps", "1")
    assert not any(fake.calls for fake in fakes.values()) and not (out / "tensorboard").exists()
    assert config(out)["track"] == "none"


def test_it_may_begin_and_end_when_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake := Fake())
    out = run(tmp_path / "run", "--steps", "1")
    for steps, flags in ((2, ["--track", "wandb"]), (3, []), (4, ["--track", "none"])):
        train.main(["--out", str(out), "--resume", "--steps", str(steps), *flags])
    logged = [what[1] for name, what in fake.calls if name == "log"]
    assert logged == [2, 3] and config(out)["track"] == "none"


def test_a_tensorboard_file_holds_every_step_once(tmp_path, capsys):
    """Also the steps that a resumed run does again."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def begin(first):
        writer = tracker("tensorboard", tmp_path, {}, first, print)
        next(writer)
        return writer

    killed = begin(1)
    for step in (1, 2, 3):
        killed.send({"step": step, "reward": 10.0 * step, "verifier": {"number": 4}})
    next(killed, None)
    again = begin(3)
    again.send({"step": 3, "reward": 7.0, "validation": 0.5, "verifier": {}})
    next(again, None)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(found.Tags()["scalars"]) == ["reward", "validation"]
    rewards = [(event.step, event.value) for event in found.Scalars("reward")]
    assert rewards == [(1, 10.0), (2, 20.0), (3, 7.0)]
    assert capsys.readouterr().out == ""


def test_only_the_main_rank_tracks(tmp_path):
    pytest.importorskip("tensorboard")
    flags = [*SMALL, "--steps", "1", "--track", "tensorboard", "--validation", "0"]
    run_ranks(tmp_path / "logs", 2, *flags, "--out", tmp_path / "run")
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1
