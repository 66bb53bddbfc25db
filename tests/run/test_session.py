"""What a run does around its updates: which model it keeps, what training on from one obeys, and
that the definitions alone (--plain) make the same updates."""

import json
import shutil

import pytest
import torch
from runs import assert_same_weights, metrics, saved, summary, weights
from safetensors.torch import load_file

import train
from minisoft.io import WEIGHTS
from minisoft.io.checkpoint import load_model
from minisoft.run import evaluate
from minisoft.soft import noise_scale

SMALL = "--prompts 2 --group 4 --cot 24 --eval-cot 16 --test 0 --show-every 0 --device cpu".split()


def run(out, *flags):
    train.main([*SMALL, "--out", str(out), *flags])
    return out


def sidecar(out, name="last"):
    return json.loads((out / name / "minisoft.json").read_text())


# ---------------------------------------------------------------- which model is kept


def test_the_untrained_model_is_kept_if_training_ruins_it(tmp_path, capsys):
    flags = "--steps 2 --lr 3 --warmup 1 --validation 8 --validate-every 1".split()
    out = run(tmp_path / "run", *flags)
    now, before = weights(out, "best"), load_file(WEIGHTS / "tiny/model.safetensors")
    assert all(torch.equal(now[name], before[name]) for name in before)
    assert not torch.equal(weights(out)["model.norm.weight"], before["model.norm.weight"])
    validations = [row["validation"] for row in metrics(out)]
    assert summary(out)["best_step"] == 0 and max(validations) <= summary(out)["validation"]
    log = capsys.readouterr()  # no terminal: an evaluation's bar is a line
    assert log.err.count("soft-greedy: 100%") == 3 and not {"\r", "\x1b"} & {*log.out, *log.err}


@pytest.mark.parametrize("tokens", ["soft", "hard"])
def test_the_best_is_chosen_by_validation_of_the_runs_own_kind(tmp_path, monkeypatch, tokens):
    """The own kind gets better with every update and hard gets worse: the last model is kept."""
    asked, real = [], evaluate.Evaluator.problems

    def problems(self, rows, setting, samples, seed, run=0):
        asked.append((str(setting), self.policy.settings.cot, len(rows)))
        step = len([name for name, *_ in asked if name == f"{tokens}-greedy"])
        own = setting.kind == tokens
        return {**real(self, rows, setting, samples, seed)[0], "pass@1": step / 9 * own}, []

    monkeypatch.setattr(evaluate.Evaluator, "problems", problems)
    flags = ["--tokens", tokens, "--steps", "2", "--validation", "3", "--validate-every", "1"]
    out = run(tmp_path / "run", *flags, "--eval-cot", "33")
    assert_same_weights(out, out, "best")
    assert summary(out)["best_step"] == 2
    kinds = dict.fromkeys(["hard", tokens])
    assert asked == [(f"{kind}-greedy", 33, 3) for _ in range(3) for kind in kinds]
    hard = [1.0, 2.0] if tokens == "hard" else [0.0, 0.0]
    for row, own, by_hard in zip(metrics(out), (2, 3), hard):
        assert row["validation"] == pytest.approx(own / 9)
        assert row["validation_hard"] == (row["validation"] if tokens == "hard" else by_hard)
    assert {path.name for path in (out / "best").iterdir()} >= {"minisoft.json", "config.json"}


# ---------------------------------------------------------------- training on


TRAINED = ["--gamma 0.5 --tau 0.4", "--noise logits --top-k 5 --gamma 0.2", "--noise hidden"]


@pytest.mark.parametrize("flags", TRAINED)
def test_training_on_obeys_what_the_folder_says(tmp_path, capsys, flags):
    first = run(tmp_path / "a", *flags.split(), "--steps", "1", "--validation", "0", "--lr", "1e-2")
    capsys.readouterr()
    brief = ["--model", str(first / "last"), "--steps", "1", "--validation", "0"]
    second = run(tmp_path / "b", *brief)
    names = ("tokens", "sigma", "gamma", "tau", "noise", "top_k", "prompt")
    assert [sidecar(first)[n] for n in names] == [sidecar(second)[n] for n in names]
    assert "not continued alike" not in capsys.readouterr().out
    assert sidecar(second)["base"] == "tiny" and sidecar(second)["step"] == 1  # not "last"
    third = run(tmp_path / "c", *brief, "--gamma", "0.1")
    scale = noise_scale(load_model(first / "last"), sidecar(first)["noise"])
    assert sidecar(third)["sigma"] == 0.1 * scale  # of the weights that it begins with
    assert f"gamma {sidecar(first)['gamma']} -> 0.1" in capsys.readouterr().out


# ---------------------------------------------------------------- by the definitions


@pytest.mark.parametrize("tokens, rounding", [("soft", 5e-4), ("hard", 5e-5)])
def test_the_definitions_make_the_same_two_updates(tmp_path, tokens, rounding):
    """The same samples, rewards and counts; the same first gradient within rounding.  Adam's first
    moments hold the gradients.  Products are other ones (oneDNN's, torch's), in rollout and replay,
    and a soft token's score divides what they differ by, by sigma^2: 6e-5 to 1.2e-4 of the gradient
    for three seeds.  The second update starts from weights that differ so; Adam's step divides by a
    gradient's size, which lets rounding through where a gradient is little else."""
    flags = ["--tokens", tokens, "--steps", "2", "--validation", "0", "--lr", "1e-4"]
    fast, plain = (
        run(tmp_path / name, *flags, "--save-every", "1", *more)
        for name, more in (("fast", []), ("plain", ["--plain"]))
    )
    for a, b in zip(metrics(fast), metrics(plain)):
        for name in ("reward", "accuracy", "verifier", "cot_length", "answer_length", "lr"):
            assert a[name] == b[name]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=rounding)
        assert b["replay_mismatch"] < 1e-4

    def difference(step, what, origin=0.0):
        a, b = (saved(out, what, step).double() for out in (fast, plain))
        return (a - b).norm() / (a - origin).norm()

    start = sorted(load_file(WEIGHTS / "tiny/model.safetensors").items())
    start = torch.cat([x.flatten().double() for _, x in start])
    assert difference(1, "exp_avg") < rounding
    assert difference(2, "exp_avg") < 10 * rounding
    assert difference(1, "weight", start) < 1e-2 and difference(2, "weight", start) < 1e-2


def test_a_plain_run_goes_on_by_the_engine(tmp_path):
    flags = ["--validation", "0", "--save-every", "1"]
    out = run(tmp_path / "run", *flags, "--plain", "--steps", "1")
    shutil.rmtree(out / "last")
    train.main(["--out", str(out), "--resume", "--steps", "2"])
    assert [row["step"] for row in metrics(out)] == [1, 2]
