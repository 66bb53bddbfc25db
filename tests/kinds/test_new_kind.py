"""A new kind of token is a class and a line in two tables of `minisoft.kinds`: here hard tokens
that are fed at half their length, run through everything; and so are the later kinds."""

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from small import gradient

import eval
import train
from minisoft import engine, kinds, reinforce, rollout, soft
from minisoft.io import WEIGHTS
from minisoft.rollout import COT, Decoding

LATER = {  # with flags of their own
    "multiplex": {"--width": 2},
    "covariance": {"--width": 4},
    "gumbel": {"--width": 6, "--top-p": 0.9},
}


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
        for field in ("ids", "role", "truncated"):
            assert torch.equal(getattr(one, field), getattr(other, field)), field
        assert torch.equal(one.taken(COT), other.taken(COT))
        assert (one.log_prob - other.log_prob).abs().max() < 1e-4
        assert (one.measures - other.measures).abs().max() < 1e-4
    gradients = []
    for by in (reinforce, engine):
        tiny.fast.zero_grad()
        advantages = [torch.linspace(-1, 2, len(record.ids)) for record in fast]
        mismatch = by.backward(tiny.fast, kind, fast, advantages, 0.1)
        assert mismatch.tokens > 20 and mismatch.largest < 1e-4
        gradients.append(gradient(tiny.fast))
    assert gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


@pytest.mark.parametrize("name, own", [("faint", {}), *LATER.items()])
def test_it_is_trained_exported_evaluated_and_resumed(tmp_path, registered, name, own):
    out, table = tmp_path / "run", tmp_path / "table.json"
    flags = f"--tokens {name} --lr 1e-3 --prompts 2 --group 4 --cot 40 --eval-cot 16 --warmup 1"
    said = [part for option, x in own.items() for part in (option, str(x))]
    more = "--validation 2 --test 2 --validate-every 1 --device cpu"
    train.main([*flags.split(), *more.split(), *said, "--steps", "2", "--out", str(out)])
    about = json.loads((out / "best" / "minisoft.json").read_text())
    tau, options = kinds.TAU[name], kinds.options(name)
    options |= {option.strip("-").replace("-", "_"): x for option, x in own.items()}
    assert about["tokens"] == name and about["tau"] == tau
    assert {option: about.get(option) for option in options} == options
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["after"]) == {"hard-greedy", f"{name}-greedy"}

    asked = ["--settings", f"{name}-greedy,{name}-sample", "--samples", "2", "--limit", "3"]
    asked += ["--cot", "16"]
    best = ["--model", str(out / "best"), "--data", "tiny-test", "--device", "cpu"]
    eval.main([*best, *asked, "--out", str(table)])
    result = json.loads(table.read_text())
    assert set(result["settings"]) == {f"{name}-greedy", f"{name}-sample"}
    assert result["tau"][name] == tau and name in table.with_suffix(".md").read_text()
    assert result["options"].get(name, {}) == options

    before = load_file(out / "last" / "model.safetensors")
    train.main(["--out", str(out), "--resume", "--steps", "3"])
    lines = (out / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [m["step"] for m in metrics] == [1, 2, 3]
    assert all(m["replay_mismatch"] < 1e-4 for m in metrics)
    assert any(m["grad_norm"] > 0 for m in metrics)
    first, after = (
        load_file(folder / "model.safetensors") for folder in (WEIGHTS / "tiny", out / "last")
    )
    assert all(not torch.equal(x, first[name]) for name, x in after.items())
    assert any(not torch.equal(x, before[name]) for name, x in after.items())
