"""A new kind of token is a class and a line in two tables of `minisoft.kinds`: here hard tokens
that are fed at half their length, run through everything; and so are the later kinds."""

import json
from dataclasses import dataclass

import pytest
import torch
from engine.test_parity import assert_alike, assert_same_update
from runs import metrics, summary, weights

import eval
import train
from minisoft import engine, kinds, rollout, soft
from minisoft.io import WEIGHTS
from minisoft.rollout import COT, Decoding

LATER = {"multiplex": {"--width": 2}, "covariance": {"--width": 4}}  # with flags of their own
LATER |= {"gumbel": {"--width": 6, "--top-p": 0.9}}


@dataclass(frozen=True)
class Faint(soft.Hard):
    """An action is a token id."""

    def embed(self, model, action):
        return model.embed(action) / 2


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(kinds.KINDS, "faint", Faint)
    monkeypatch.setitem(kinds.TAU, "faint", 0.8)


@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
def test_definition_and_engine_agree_on_it(tiny, registered, greedy):
    kind, how = kinds.make_kind("faint"), Decoding(30, greedy, greedy)
    requests = tiny.requests(range(2), range(1 if greedy else 6))
    plain = rollout.rollout(tiny.fast, tiny.form, kind, requests, how)
    fast = engine.rollout(tiny.fast, tiny.form, kind, requests, how, rows=5, ahead=3)
    for one, other in zip(plain, fast, strict=True):
        assert_alike(one, other)
        assert torch.equal(one.taken(COT), other.taken(COT))
    assert_same_update(tiny.fast, kind, fast)


@pytest.mark.parametrize("name, own", [("faint", {}), *LATER.items()])
def test_it_is_trained_exported_evaluated_and_resumed(tmp_path, registered, name, own):
    out, table = tmp_path / "run", tmp_path / "table.json"
    flags = f"--tokens {name} --lr 1e-3 --prompts 2 --group 4 --cot 24 --eval-cot 12 --warmup 1"
    said = [part for option, x in own.items() for part in (option, str(x))]
    more = "--validation 2 --test 2 --validate-every 1 --device cpu"
    train.main([*flags.split(), *more.split(), *said, "--steps", "2", "--out", str(out)])
    about = json.loads((out / "best" / "minisoft.json").read_text())
    tau, options = kinds.TAU[name], kinds.options(name)
    options |= {option.strip("-").replace("-", "_"): x for option, x in own.items()}
    assert about["tokens"] == name and about["tau"] == tau
    assert {option: about.get(option) for option in options} == options
    assert set(summary(out)["after"]) == {"hard-greedy", f"{name}-greedy"}

    asked = ["--settings", f"{name}-greedy,{name}-sample", "--samples", "2", "--limit", "2"]
    asked += ["--cot", "12"]
    best = ["--model", str(out / "best"), "--data", "tiny-test", "--device", "cpu"]
    eval.main([*best, *asked, "--out", str(table)])
    result = json.loads(table.read_text())
    assert set(result["settings"]) == {f"{name}-greedy", f"{name}-sample"}
    assert result["tau"][name] == tau and name in table.with_suffix(".md").read_text()
    assert result["options"].get(name, {}) == options

    before = weights(out)
    train.main(["--out", str(out), "--resume", "--steps", "3"])
    lines = metrics(out)
    assert [m["step"] for m in lines] == [1, 2, 3]
    assert all(m["replay_mismatch"] < 1e-4 for m in lines)
    assert any(m["grad_norm"] > 0 for m in lines)
    first, after = weights(WEIGHTS, "tiny"), weights(out)
    assert all(not torch.equal(x, first[name]) for name, x in after.items())
    assert any(not torch.equal(x, before[name]) for name, x in after.items())
