"""Decoding row by row on shared prompts gives what the whole text gives, whoever else is there."""

import copy

import pytest
import torch
from conftest import VOCABULARY, close, logits_of, random_ids

from minisoft.engine.cache import FusedCache, RowCache
from minisoft.engine.fused import one_position
from minisoft.engine.linear import packed

SAMPLE = ("llama3", "llama-mha", "qwen2", "qwen3")
BOTH = pytest.mark.parametrize("cache_class", [RowCache, FusedCache])


def row_cache(model, prompts, owner, capacity, cache_class=RowCache):
    """A cache whose first rows continue the given recorded prompts."""
    cache = cache_class(model.config, len(owner), capacity, 64, "cpu", model.E.dtype)
    cache.prompts.update(enumerate(prompts))
    cache.prompt_of[: len(owner)] = owner
    cache.bind()
    return cache


def next_logits(model, ids, cache):
    with packed(model):
        return model.logits(one_position(model, model.embed(ids), cache))


def decode(model, prompts, owner, rows, drops=None, cache_class=RowCache):
    """Logits (N, T, V) of the continuations `rows` (N, T), step by step; drops[t]: rows that leave
    after step t."""
    drops = drops or {}
    N, T = rows.shape
    seen = torch.full((N, T, VOCABULARY), torch.nan)
    prompts = [model.run_prompt(p)[1] for p in prompts]
    cache = row_cache(model, prompts, owner.tolist(), T, cache_class)
    places = [*range(N), *[None] * (len(cache.prompt_of) - N)]  # which row sits where
    for t in range(T):
        cache.position[:] = t
        cache.reserve(t + 1)
        ids = torch.tensor([0 if row is None else rows[row, t] for row in places])
        logits = next_logits(model, ids, cache)
        for place, row in enumerate(places):
            if row is not None:
                seen[row, t] = logits[place]
                if row in drops.get(t, []):
                    places[place] = cache.prompt_of[place] = None
        if order := cache.compact():
            places = [places[i] for i in order]
        cache.bind()
    return seen


def uncached(model, prompts, owner, rows):
    texts = [torch.cat((prompts[p], row[None]), 1) for p, row in zip(owner.tolist(), rows)]
    return torch.stack([logits_of(model, text)[0, -rows.shape[1] :] for text in texts])


OWNER = torch.tensor([1, 0, 0, 1, 1, 0, 1] * 5)  # 35 rows: places for 48
DROPS = {
    "none": {},
    "first row": {0: [0]},
    "last row": {1: [6]},
    "some": {0: [2], 1: [0, 5], 3: [3]},
    "all of one prompt": {1: [i for i in range(35) if i % 7 in (1, 2, 5)]},
    "all but one": {1: [*range(34)]},
    "to 32 rows, then 16": {0: [3, 4, 30], 2: [*range(5, 29, 2), 29, 31, 33]},
}


@pytest.mark.parametrize("architecture", SAMPLE)
@pytest.mark.parametrize("drops", DROPS.values(), ids=DROPS)
@BOTH
@torch.no_grad()
def test_cached_decoding_equals_the_uncached_forward(fast, architecture, drops, cache_class):
    model = fast(architecture)[1]
    if cache_class is FusedCache:
        model = copy.deepcopy(model).double()  # on a CPU its float32 products round otherwise
    prompts, rows = [random_ids(1, 5, seed=1), random_ids(1, 12, seed=2)], random_ids(35, 6, seed=3)
    decoded = decode(model, prompts, OWNER, rows, drops, cache_class)
    expected = uncached(model, prompts, OWNER, rows)
    left = torch.ones(35, 6, dtype=torch.bool)
    for t, gone in drops.items():
        left[gone, t + 1 :] = False
    close(decoded[left], expected[left], 2e-5)
    assert decoded[~left].isnan().all()


@pytest.mark.parametrize("each", [16, 48], ids=["three prompts", "one prompt"])
@torch.no_grad()
def test_rows_in_the_order_of_their_prompts_need_no_grid(fast, each):
    model, owner = fast("llama3")[1], torch.arange(48) // each
    prompts, rows = [random_ids(1, n, seed=n) for n in (5, 12, 7)], random_ids(48, 6, seed=3)
    cache = row_cache(model, [model.run_prompt(p)[1] for p in prompts], owner.tolist(), 6)
    assert cache.to_grid is None
    close(decode(model, prompts, owner, rows), uncached(model, prompts, owner, rows), 2e-5)


def test_compacting_tells_where_the_rows_went(both):
    cache = RowCache(both("llama3")[1].config, 48, 4, 0, "cpu", torch.float32)
    cache.prompt_of = [0 if i % 3 == 2 else None for i in range(48)]
    before = list(cache.prompt_of)
    order = cache.compact()
    assert len(order) == 16 and len(set(order)) == 16
    assert [before[i] for i in order] == cache.prompt_of == [0] * 16
    assert all(order[i] == i for i in range(16) if before[i] == 0)  # who can stay stays
    assert cache.compact() is None
