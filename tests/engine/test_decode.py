"""Continuous batching: slots, looking ahead and the order of the requests change no bit."""

import copy

import pytest
import torch
from conftest import KINDS, random_ids
from held import peak_bytes

from minisoft import engine
from minisoft.engine import decode, replay
from minisoft.engine.cache import FusedCache
from minisoft.engine.linear import packed
from minisoft.kinds import make_kind
from minisoft.lab import bench
from minisoft.rollout import RECORDED, Decoding, Request

FIELDS = (*RECORDED, "truncated", "keys")


def assert_same_bits(one, two):
    for field in FIELDS:
        assert torch.equal(getattr(one, field), getattr(two, field)), field


@pytest.mark.parametrize("name", KINDS)
def test_continuous_batching_changes_no_bit(tiny, name):
    """Slots for 16 rows at most, of which 5 or 11 are used, fewer than there are rows; other
    orders of the problems."""
    requests = tiny.requests(range(6), range(3))

    def roll(order, **options):
        some = [requests[i] for i in order]
        kind = tiny.kind(name)
        records = engine.rollout(tiny.fast, tiny.form, kind, some, Decoding(40), **options)
        return dict(zip(order, records))

    whole = roll(range(6))
    for rows, order in ((5, [0, 1, 2, 3, 4, 5]), (11, [5, 3, 1, 0, 2, 4])):
        records = roll(order, rows=rows)
        for i in order:
            assert_same_bits(records[i], whole[i])


@pytest.mark.parametrize("ahead", [3, 8])
@pytest.mark.parametrize("name", ["hard", "soft"])
def test_looking_at_the_text_less_often_changes_no_bit(tiny, name, ahead):
    """Rows that ran past their stop phrase are set back; with 20 rows at once others take their
    places meanwhile."""
    requests, kind = tiny.requests(range(4), range(12)), tiny.kind(name)
    often, seldom = (
        engine.rollout(tiny.fast, tiny.form, kind, requests, Decoding(40), rows=20, ahead=steps)
        for steps in (1, ahead)
    )
    assert any(not record.truncated.all() for record in often)  # early ends
    for a, b in zip(often, seldom):
        assert_same_bits(a, b)


@pytest.mark.parametrize("name", KINDS)
def test_choosing_for_few_rows_at_a_time_changes_no_bit(tiny, name, monkeypatch):
    requests, kind = tiny.requests(range(4), range(12)), tiny.kind(name)

    def roll():
        return engine.rollout(tiny.fast, tiny.form, kind, requests, Decoding(24))

    together = roll()
    monkeypatch.setattr(replay, "LOGITS_AT_ONCE", 1)  # 16 of 48 rows
    for a, b in zip(together, roll(), strict=True):
        assert_same_bits(a, b)


class Brief(bench.FullLength):
    def answer_ends(self, ids):
        return len(ids) == 2


def test_memory_of_a_step_does_not_grow_with_rows_times_V(monkeypatch):
    """From 16 to 64 rows, one time without a limit, one time with room for 16."""
    V, more = 16384, 48
    shape = (V, 64, 160, 1, 4, 2, 16, True)
    model = engine.accelerate(bench.random_model(shape, torch.device("cpu"), torch.float32))
    form, kind = Brief([1, 2]), make_kind("soft", sigma=0.2)

    def peak(rows):
        request = Request([1, 2, 3], (0,), range(rows))
        return peak_bytes(lambda: engine.rollout(model, form, kind, [request], Decoding(3)))

    assert peak(16 + more) - peak(16) > 3 * 4 * more * V
    monkeypatch.setattr(replay, "LOGITS_AT_ONCE", 16 * V)
    assert peak(16 + more) - peak(16) < more * V


def test_records_come_when_their_last_row_is_done_and_without_actions_if_not_wanted(tiny):
    options = {"rows": 3, "record_actions": False}
    requests, kind = tiny.requests(range(6), range(2)), tiny.kind("hard")
    numbered = list(engine.stream(tiny.fast, tiny.form, kind, requests, Decoding(40), **options))
    order = [i for i, _ in numbered]
    assert sorted(order) == list(range(6)) and order[:3] != [3, 4, 5]
    for _, record in numbered:
        assert record.actions is None
        assert record.samples == range(2) and len(record.ids) == 2


@torch.no_grad()
def test_of_a_prompt_that_has_been_run_only_its_last_encoding_is_kept(tiny):
    requests = tiny.requests(range(4), range(1))
    sampling = decode.Sampling(
        tiny.kind("hard"), tiny.form, Decoding(24), True, torch.device("cpu")
    )
    with packed(tiny.fast):
        kept = decode.Scheduler(tiny.fast, sampling, requests, None, 1).encoded
    width = tiny.fast.config.hidden_size
    assert [x.untyped_storage().nbytes() for x in kept.values()] == [4 * width] * 4


@pytest.mark.parametrize("name", ["hard", "soft"])
def test_the_cache_of_a_gpu_gives_the_same_rollouts(tiny, name, monkeypatch):
    """With rows that wait and come; within rounding, since other kernels compute the attention."""
    requests, kind = tiny.requests(range(5), range(4)), tiny.kind(name)

    def roll():
        return engine.rollout(tiny.fast, tiny.form, kind, requests, Decoding(40), rows=7, ahead=4)

    expected = roll()
    monkeypatch.setitem(decode.CACHES, "cpu", FusedCache)
    for one, two in zip(expected, roll()):
        assert torch.equal(one.ids, two.ids) and torch.equal(one.role, two.role)
        assert (one.log_prob - two.log_prob).abs().max() < 2e-3


@pytest.mark.parametrize("architecture", ["llama3", "llama-mlp-bias", "qwen2", "qwen3"])
@pytest.mark.parametrize("name", ["hard", "soft"])
def test_rollouts_in_kept_slots_follow_the_weights(fast, architecture, name, monkeypatch):
    """The slots are kept from rollout to rollout, for other prompts and after an update."""
    model = copy.deepcopy(fast(architecture)[1])
    form, kind = bench.FullLength([1, 2]), make_kind(name, 1.0)

    def roll(seed):
        prompts = [random_ids(9 + 3 * i, seed=seed + i).tolist() for i in range(2)]
        requests = [Request(prompt, (seed, i), range(5)) for i, prompt in enumerate(prompts)]
        return engine.rollout(model, form, kind, requests, Decoding(6), rows=7, ahead=4)

    def change():
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.9)

    def rolls():
        first, slots = roll(0), model.slots
        change()
        return first + roll(10), slots

    before = copy.deepcopy(model.state_dict())
    expected, _ = rolls()
    model.load_state_dict(before)
    monkeypatch.setitem(decode.CACHES, "cpu", FusedCache)
    found, slots = rolls()
    assert model.slots is slots
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one.ids, two.ids)
        assert (one.log_prob - two.log_prob).abs().max() < 2e-3
    assert copy.deepcopy(model).slots is None


def test_what_is_recorded_for_training_is_kept_through_validations(tiny, monkeypatch):
    """Of the latest four ways of sampling; each has CUDA graphs of its own, on a GPU."""
    monkeypatch.setitem(decode.CACHES, "cpu", FusedCache)
    model, requests = copy.deepcopy(tiny.fast), tiny.requests([0], range(2))

    def roll(name, greedy=False):
        how = Decoding(2, greedy, greedy)
        engine.rollout(model, tiny.form, tiny.kind(name), requests, how, ahead=40)
        return model.slots.sampling

    ways = [("soft", False), ("soft", True), ("hard", True)]
    first = [roll(*way) for way in ways]
    assert [roll(*way) for way in ways] == first and len(set(first)) == 3
    for name in ("hard", "fuzzy", "gumbel"):  # two more than there is room for
        roll(name)
    assert roll("hard", True) is first[2] and roll("soft") is not first[0]


def test_nothing_asked_is_nothing_done(tiny):
    """A rank may have no problem of a small evaluation."""
    assert engine.rollout(tiny.fast, tiny.form, tiny.kind("soft"), [], Decoding(9)) == []
