"""The engine gives what the definitions give: the same tokens, roles and ends of rows, and the same
log-probabilities, entropies and gradients within rounding."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import small
import torch
from conftest import KINDS as TINY_KINDS
from small import KINDS, PROMPT, gradient, small_model

from minisoft import engine, reinforce, rollout
from minisoft.rollout import COT, Decoding, Request
from minisoft.soft import GAMMA, noise_scale


def assert_alike(plain, fast, within=1e-4):
    """Two Rollouts of the same request."""
    assert plain.prompt == fast.prompt and plain.samples == fast.samples
    for field in ("ids", "role", "truncated"):
        assert torch.equal(getattr(plain, field), getattr(fast, field)), field
    assert (plain.log_prob - fast.log_prob).abs().max() < within
    torch.testing.assert_close(plain.taken(COT), fast.taken(COT), rtol=within, atol=within)
    torch.testing.assert_close(plain.measures, fast.measures, rtol=10 * within, atol=10 * within)


def assert_same_update(model, kind, records):
    """Gradient and mismatch of the definition and of the engine, for the same Rollouts and with the
    same products: those of another library are rounded otherwise, which noise on logits divides by
    sigma."""
    counts = [len(record.ids) for record in records]
    advantages = [torch.linspace(-1, 2, n) + 0.1 for n in counts]
    gradients, mismatches = [], []
    for by in (reinforce, engine):
        model.zero_grad()
        mismatches.append(by.backward(model, kind, records, advantages, 1 / sum(counts)))
        gradients.append(gradient(model).double())
    plain, fast = gradients
    assert (plain - fast).norm() < 1e-5 * plain.norm()
    plain, fast = mismatches
    assert plain.tokens == fast.tokens
    assert plain.total / plain.tokens == pytest.approx(fast.total / fast.tokens, abs=1e-5)
    assert plain.largest == pytest.approx(fast.largest, abs=1e-4)


@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
@pytest.mark.parametrize("name", TINY_KINDS)
def test_plain_and_engine_agree_on_the_embedded_model(tiny, name, greedy):
    kind, how = tiny.kind(name), Decoding(30, greedy, greedy)
    requests = tiny.requests(range(2), range(1 if greedy else 4))
    plain = rollout.rollout(tiny.model, tiny.form, kind, requests, how)
    fast = engine.rollout(tiny.fast, tiny.form, kind, requests, how, rows=5, ahead=3)
    for one, other in zip(plain, fast, strict=True):
        # covariance's noise depends on the weights, and carries their rounding on
        assert_alike(one, other, within=1e-3 if name == "covariance" else 1e-4)
    if not greedy:
        assert any(not record.truncated.all() for record in plain)  # CoTs of different lengths
        assert_same_update(tiny.fast, kind, fast)


FORM = SimpleNamespace(**{**vars(small.FORM), "answer_ends": lambda ids: len(ids) == 2})
SMALL = [*((name, True) for name in KINDS), ("hard", False), ("soft", False), ("top-k", False)]


@pytest.mark.parametrize("name, tied", SMALL)
def test_plain_and_engine_agree_on_small_models(name, tied):
    model = small_model(tied)
    noise = {"hidden": "hidden", "logits": "logits", "top-k": "logits"}.get(name, "embedding")
    kind = KINDS[name]
    if hasattr(kind, "sigma"):
        kind = replace(kind, sigma=GAMMA * noise_scale(model, noise))
    fast_model = engine.accelerate(copy.deepcopy(model))
    for how in (Decoding(6), Decoding(6, greedy=True), Decoding(6, greedy_answer=True)):
        requests = [Request(PROMPT[: 2 + i], ("parity", i), range(20)) for i in range(3)]
        plain = rollout.rollout(model, FORM, kind, requests, how)
        fast = engine.rollout(fast_model, FORM, kind, requests, how, rows=17, ahead=2)
        for one, other in zip(plain, fast, strict=True):
            assert_alike(one, other)
        if not how.greedy:  # without noise its score is only rounding
            assert_same_update(fast_model, kind, plain)
