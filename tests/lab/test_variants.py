"""train.py with other estimators of the gradient and with parts of it left out."""

import json

import pytest
import torch
from safetensors.torch import load_file

import train
from minisoft.io.checkpoint import WEIGHTS
from minisoft.reinforce import ESTIMATORS
from minisoft.training.world import World

SMALL = ("--prompts 2 --group 8 --cot 60 --validation 0 --test 0 --show-every 0 --device cpu --seed 1 --lr 1e-4 "
         "--warmup 1 --clip 1e9").split()


def run(out, *flags):
    """(metrics, trained weights)"""
    train.main([*SMALL, "--out", str(out), *flags])
    return ([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()],
            load_file(out / "last" / "model.safetensors"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{variant: (RUN, metrics, weights)} after 2 steps."""
    out = tmp_path_factory.mktemp("variants")
    flags = {**{name: ["--estimator", name] for name in ESTIMATORS},
             **{name: ["--terms", name] for name in ("cot", "answer")}}
    return {name: (out / name, *run(out / name, "--steps", "2", *given)) for name, given in flags.items()}


@pytest.mark.parametrize("name", [*ESTIMATORS, "cot", "answer"])
def test_two_steps_move_every_parameter(runs, name):
    out, metrics, weights = runs[name]
    before = load_file(WEIGHTS / "tiny" / "model.safetensors")
    assert all(not torch.equal(x, before[tensor]) and x.isfinite().all() for tensor, x in weights.items())
    assert [m["step"] for m in metrics] == [1, 2]
    assert all(m["grad_norm"] > 0 and m["replay_mismatch"] < 1e-4 for m in metrics)
    config = json.loads((out / "config.json").read_text())
    assert (config["estimator"], config["terms"]) == ((name, "both") if name in ESTIMATORS else ("rloo", name))


def test_estimators_differ_in_the_gradient_and_not_in_the_samples(runs):
    first = {name: metrics[0] for name, (_, metrics, _) in runs.items()}
    assert len({first[name]["grad_norm"] for name in ESTIMATORS}) == len(ESTIMATORS)
    samples = {name: [first[name][k] for k in ("reward", "cot_length", "entropy")] for name in first}
    assert all(samples[name] == samples["rloo"] for name in samples)


def test_terms_are_the_parts_of_the_whole_gradient(runs):
    """At the first step, where rloo with both measures the parts that the ablations are left with."""
    whole = runs["rloo"][1][0]
    for name, other in (("cot", "answer"), ("answer", "cot")):
        part = runs[name][1][0]
        assert part["grad_norm"] == pytest.approx(whole[f"share_{name}"] * whole["grad_norm"], rel=1e-6)
        assert part[f"share_{name}"] == pytest.approx(1) and f"share_{other}" not in part
    assert 0 < whole["share_answer"] < 0.5 < whole["share_cot"]


def test_prefix_needs_whole_groups_on_every_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "share", lambda self, prompts, group: [(0, range(group)), (1, range(3))])
    with pytest.raises(SystemExit, match="--estimator prefix: expected whole groups on every rank"):
        train.main([*SMALL, "--out", str(tmp_path / "run"), "--estimator", "prefix"])


@pytest.mark.parametrize("flags, message", [
    (["--estimator", "rloo"], r"estimator \(was prefix, now rloo\)"),
    (["--terms", "cot"], r"terms \(was both, now cot\)"),
])
def test_a_run_goes_on_with_its_own_estimator_and_terms_only(runs, flags, message):
    with pytest.raises(SystemExit, match=f"--resume: expected the flags of the run, found other values for {message}"):
        train.main(["--out", str(runs["prefix"][0]), "--resume", *flags])
