"""A new kind of token is a class and a line in two tables of soft.py: here K tokens at a time, fed
as the mean of their embeddings ("multiplexed"), run through everything."""

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from small import gradient

import eval
import train
from minisoft import engine, reinforce, rollout, soft
from minisoft.io import WEIGHTS
from minisoft.rollout import COT, Decoding

K = 3


@dataclass(frozen=True)
class Independent(soft.Distribution):
    """K tokens (..., K), each drawn from softmax(logits), logits (..., V)."""

    logits: torch.Tensor

    def sample(self, draws):
        cumulative = self.logits.softmax(-1).cumsum(-1)  # (N, V)
        level = draws.uniforms(K) * cumulative[:, -1:]  # (N, K)
        ids = torch.searchsorted(cumulative, level, right=True)
        return ids.clamp(max=self.logits.shape[-1] - 1)

    def mode(self):
        return self.logits.argmax(-1, keepdim=True).expand(*self.logits.shape[:-1], K)

    def log_prob(self, action):
        return self.logits.log_softmax(-1).gather(-1, action).double().sum(-1)


@dataclass(frozen=True)
class Multiplex:
    """An action is K token ids."""

    tau: float
    sigma: float | None = None
    mixes = False

    def distribution(self, model, hidden, logits):
        return Independent(logits / self.tau)

    def embed(self, model, action):
        return model.embed(action).mean(-2)

    def fed(self, model, action, logits):
        return logits

    def shadow(self, model, action, logits):
        return action[..., 0]


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(soft.KINDS, "multiplex", Multiplex)
    monkeypatch.setitem(soft.TAU, "multiplex", 0.8)


@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
def test_definition_and_engine_agree_on_it(tiny, registered, greedy):
    kind, how = soft.make_kind("multiplex", 1.0), Decoding(30, greedy, greedy)
    requests = tiny.requests(range(2), range(1 if greedy else 6))
    plain = rollout.rollout(tiny.fast, tiny.form, kind, requests, how)
    fast = engine.rollout(tiny.fast, tiny.form, kind, requests, how, rows=5, ahead=3)
    hard = engine.rollout(tiny.fast, tiny.form, soft.make_kind("hard", 1.0), requests, how)
    for one, other, of_hard in zip(plain, fast, hard, strict=True):
        for field in ("ids", "role", "truncated"):
            assert torch.equal(getattr(one, field), getattr(other, field)), field
        assert torch.equal(one.taken(COT), other.taken(COT))
        assert (one.log_prob - other.log_prob).abs().max() < 1e-4
        assert (one.entropy - other.entropy).abs().max() < 1e-4
        assert one.taken(COT).shape[1:] == (K,)
        assert torch.equal(one.ids, of_hard.ids) == greedy  # K times the most likely token
    gradients = []
    for by in (reinforce, engine):
        tiny.fast.zero_grad()
        advantages = [torch.linspace(-1, 2, len(record.ids)) for record in fast]
        mismatch = by.backward(tiny.fast, kind, fast, advantages, 0.1)
        assert mismatch.tokens > 20 and mismatch.largest < 1e-4
        gradients.append(gradient(tiny.fast))
    assert gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def test_it_is_trained_exported_evaluated_and_resumed(tmp_path, registered):
    out, table = tmp_path / "run", tmp_path / "table.json"
    flags = "--tokens multiplex --lr 1e-3 --prompts 2 --group 4 --cot 40 --eval-cot 16 --warmup 1"
    more = "--validation 2 --test 2 --validate-every 1 --device cpu"
    train.main([*flags.split(), *more.split(), "--steps", "2", "--out", str(out)])
    about = json.loads((out / "best" / "minisoft.json").read_text())
    assert about["tokens"] == "multiplex" and about["tau"] == 0.8
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["after"]) == {"hard-greedy", "multiplex-greedy"}

    asked = ["--settings", "multiplex-greedy,multiplex-sample", "--samples", "2", "--limit", "3"]
    asked += ["--cot", "16"]
    best = ["--model", str(out / "best"), "--data", "tiny-test", "--device", "cpu"]
    eval.main([*best, *asked, "--out", str(table)])
    result = json.loads(table.read_text())
    assert set(result["settings"]) == {"multiplex-greedy", "multiplex-sample"}
    assert result["tau"]["multiplex"] == 0.8 and "multiplex" in table.with_suffix(".md").read_text()

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
