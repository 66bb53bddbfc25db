"""The replay: the rollout's log-probabilities, and a gradient that neither micro-batches nor chunks
nor padding change, in memory that does not grow with V."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import KINDS as TINY_KINDS
from held import peak_bytes
from small import KINDS, V, gradient, mismatch_of, small_model, unroll

from minisoft import engine
from minisoft.engine.replay import ReplayPrompt, recompute_layers
from minisoft.kinds import make_kind
from minisoft.model import Config, Prompt, Transformer
from minisoft.rollout import ANSWER, COT, FORCED, Rollout
from minisoft.run.plan import position_bytes


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request):
    return engine.accelerate(small_model(request.param))


def replay_gradient(model, kind, record, advantages, micro_batch=64, **options):
    model.zero_grad()
    scale = 1 / len(advantages)
    options["micro_batch"] = micro_batch
    engine.backward(model, kind, [record], [advantages], scale, **options)
    return gradient(model)


# ---------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize("name", TINY_KINDS)
def test_replay_gives_the_log_probs_of_the_cached_rollout(tiny, rolled, name):
    for record in rolled(name):
        mismatch = mismatch_of(engine, tiny.fast, tiny.kind(name), record)
        assert mismatch.tokens > 8 * 10
        assert mismatch.total / mismatch.tokens < 1e-4
        assert mismatch.largest < 0.2  # fuzzy near a tie: the mean jumps between two embeddings


# ---------------------------------------------------------------- the gradient


@pytest.mark.parametrize("name", ["hard", "soft", "hidden", "top-k"])
def test_gradient_does_not_depend_on_micro_batches_chunks_or_padding(model, name, monkeypatch):
    kind = KINDS[name]
    record = unroll(model, kind, 7, torch.Generator().manual_seed(3))
    advantages = torch.linspace(-2, 2, 7)
    whole = replay_gradient(model, kind, record, advantages)

    def check(other):
        atol = 2e-6 * whole.abs().max().item()
        torch.testing.assert_close(other, whole, rtol=1e-4, atol=atol)

    check(replay_gradient(model, kind, record, advantages, micro_batch=2))
    terms = [(COT,), (ANSWER,)]
    check(sum(replay_gradient(model, kind, record, advantages, terms=term) for term in terms))
    check(replay_gradient(model, kind, padded(record), advantages))
    monkeypatch.setattr("minisoft.engine.replay.LOGITS_AT_ONCE", V)  # one position at a time
    check(replay_gradient(model, kind, record, advantages))


def padded(record):
    """The same with three positions more, of role 0, which is PAD."""
    names = ("ids", "role", "log_prob")
    return replace(record, **{x: F.pad(getattr(record, x), (0, 3)) for x in names})


def test_rows_without_advantage_send_no_gradient_and_are_not_run(model):
    kind = KINDS["soft"]
    record = unroll(model, kind, 3, torch.Generator().manual_seed(5))
    some = replay_gradient(model, kind, record, torch.tensor([1.0, 0.0, -1.0]))
    record.actions[1] += 100.0  # a row without advantage may be anything
    again = replay_gradient(model, kind, record, torch.tensor([1.0, 0.0, -1.0]))
    torch.testing.assert_close(again, some)


def test_without_any_advantage_the_mismatch_is_that_of_the_first_problem(model):
    kind = KINDS["soft"]
    records = [unroll(model, kind, 3, torch.Generator().manual_seed(seed)) for seed in (5, 6)]
    records[1].log_prob[:] = 100.0
    mismatch = engine.backward(model, kind, records, [torch.zeros(3)] * 2, 1.0)
    assert mismatch.tokens == 3 * 4 and mismatch.largest < 1e-4
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_layers_computed_again_give_the_same_gradient(model):
    kind, advantages = KINDS["soft"], torch.linspace(-2, 2, 5)
    record = unroll(model, kind, 5, torch.Generator().manual_seed(8))
    kept, runs = replay_gradient(model, kind, record, advantages), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    recompute_layers(model)
    assert torch.equal(replay_gradient(model, kind, record, advantages), kept)
    assert len(runs) == 1 + 2  # the prompt once, the rows twice
    recompute_layers(model, False)
    assert torch.equal(replay_gradient(model, kind, record, advantages), kept)
    assert len(runs) == 3 + 2


# ---------------------------------------------------------------- memory


def wide_model(V, layers=2):
    torch.manual_seed(0)
    switches = (True, False, False, False, False)
    config = Config(V, 64, 160, layers, 4, 2, 16, 1e-5, 10000.0, {}, *switches)
    return engine.accelerate(Transformer(config))


def replay_peak(model, rows, C, name="soft"):
    """Peak bytes of a backward pass whose gradients exist already; C CoT tokens, 4 forced, 4 of the
    answer."""
    kind, V = make_kind(name, sigma=0.2), model.config.vocab_size
    S, generator = C + 8, torch.Generator().manual_seed(0)
    role = torch.tensor([COT] * C + [FORCED] * 4 + [ANSWER] * 4, dtype=torch.int8).expand(rows, S)
    ids = torch.randint(V, (rows, S), generator=generator)
    noisy = torch.randn(rows, C, 64, generator=generator)
    log_prob, measures = torch.zeros(rows, S, dtype=torch.float64), torch.zeros(rows, S, 3)
    actions, truncated = ids[:, :C] if name == "hard" else noisy, torch.zeros(rows) > 0
    recorded = (torch.arange(rows), truncated, ids, role, actions, log_prob, measures)
    record = Rollout([1, 2, 3], range(rows), *recorded)

    def replay():
        engine.backward(model, kind, [record], [torch.ones(rows)], 1.0, micro_batch=rows)

    replay()
    return peak_bytes(replay)


@pytest.mark.parametrize("name", ["hard", "soft"])
def test_memory_of_an_update_grows_with_rows_times_length_times_d_not_with_V(name, monkeypatch):
    """A hundred logits at once and gradients of E, whatever the rows and the length."""
    V = 32768
    monkeypatch.setattr("minisoft.engine.replay.LOGITS_AT_ONCE", 100 * V)
    model = wide_model(V)
    sizes = ((4, 60), (4, 120), (8, 120))
    small, long, many = (replay_peak(model, rows, C, name) for rows, C in sizes)
    assert long - small < 0.1 * 4 * 4 * 60 * V  # a tenth of the float32 logits
    assert many - long < 0.1 * 4 * 4 * 128 * V
    assert many < small + 1.5 * 8 * 128 * position_bytes(model)


def test_position_bytes_are_those_measured():
    model = wide_model(64, layers=10)
    grown = replay_peak(model, 16, 120) - replay_peak(model, 8, 120)
    assert 0.9 < grown / (8 * 128) / position_bytes(model, (3 + 128) / 128) < 1.1


def test_attention_in_16_bits_on_a_cpu_is_that_of_float32_rounded_once():
    numbers = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 5, 8), (3, 2, 5, 8), (3, 2, 5, 8), (1, 2, 6, 8), (1, 2, 6, 8))
    inputs = [torch.randn(shape, generator=numbers).bfloat16() for shape in shapes]
    gradients = []
    for dtype, prompt in ((torch.bfloat16, ReplayPrompt), (torch.float32, Prompt)):
        q, k, v, *before = (x.detach().to(dtype).requires_grad_() for x in inputs)
        out = prompt(*((x,) for x in before))(0, q, k, v)
        assert out.dtype == dtype
        out.backward(torch.ones_like(out))
        gradients.append([out.detach(), *(x.grad for x in (q, k, v, *before))])
    for found, exact in zip(*gradients):
        assert torch.equal(found, exact.bfloat16())
