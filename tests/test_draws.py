"""Random numbers from (seed, step, problem, sample, position): distributions, independence, and
nothing else decides."""

import math

import pytest
import torch

from minisoft.draws import Draws, _hash, key


def draws(rows=1000, positions=None):
    keys = torch.tensor([key(0, 0, 0, sample) for sample in range(rows)])
    return Draws(keys, torch.zeros(rows, dtype=torch.long) if positions is None else positions)


def test_hash_is_splitmix64():
    """The first outputs of SplitMix64 with seed 1234567, as published with the algorithm's test
    vectors."""
    counted = [(1234567 + i * 0x9E3779B97F4A7C15) % 2**64 for i in (1, 2, 3)]
    state = torch.tensor(counted, dtype=torch.uint64).view(torch.int64)
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [x % 2**64 for x in _hash(state).tolist()] == outputs


def test_keys_are_64_bit_numbers_of_every_part():
    numbers = [(0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2), (0, 12), (1, 2, 0)]
    keys = {key(*parts) for parts in [*numbers, (0, "soft-sample", 2)]}
    assert len(keys) == 7 and all(-(2**63) <= x < 2**63 for x in keys)


@pytest.mark.parametrize("numbers", [None, 1, 3])
def test_uniform_is_uniform(numbers):
    n = 200_000
    drawn = Draws(torch.full((n,), key("x")), torch.arange(n))
    u = drawn.uniform() if numbers is None else drawn.uniforms(numbers)
    assert u.dtype == torch.float32 and u.shape == ((n, numbers) if numbers else (n,))
    assert numbers is None or torch.equal(u[:, 0], drawn.uniform())
    u = u.flatten().double()
    n = len(u)
    assert 0 <= u.min() and u.max() < 1
    largest_gap = (u.sort().values - (torch.arange(n) + 0.5) / n).abs().max()
    assert largest_gap < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at .001


@pytest.mark.parametrize("n", [1, 7, 64])
def test_normal_is_normal(n):
    rows = 400_000 // n
    x = Draws(torch.full((rows,), key("y", n)), torch.arange(rows)).normal(n)
    assert x.shape == (rows, n) and x.dtype == torch.float32 and x.isfinite().all()
    x = x.flatten().double()
    cdf = 0.5 * (1 + torch.erf(x.sort().values / math.sqrt(2)))
    assert (cdf - (torch.arange(len(x)) + 0.5) / len(x)).abs().max() < 1.95 / math.sqrt(len(x))
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4.5 * math.sqrt(variance / len(x))


def test_numbers_of_rows_positions_and_dimensions_are_uncorrelated():
    rows, n = 300, 40
    by_row = draws(rows).normal(n)
    at_each = Draws(torch.full((rows,), key(0, 0, 0, 0)), torch.arange(rows))
    by_position, uniform = at_each.normal(n), at_each.uniforms(n)
    for x in (by_row, by_position, uniform, by_row.T, by_position.T, uniform.T):
        correlation = torch.corrcoef(x.double())
        off = correlation[~torch.eye(len(x), dtype=torch.bool)]
        expected = 1 / math.sqrt(x.shape[1])
        assert off.abs().max() < 5.5 * expected
        assert abs(off.pow(2).mean().sqrt() / expected - 1) < 0.05
    assert (by_row[0] == by_position[0]).all()  # the same key and position


def test_a_row_is_drawn_alike_in_every_company():
    """To the bit, in the multiples of 16 rows that rollouts have."""
    whole = Draws(torch.arange(64) * 10**15, torch.arange(64) % 7)
    for rows in (range(16), range(5, 37), range(63, -1, -1)):
        part = Draws(whole.keys[list(rows)], whole.positions[list(rows)])
        assert torch.equal(part.uniform(), whole.uniform()[list(rows)])
        assert torch.equal(part.uniforms(3), whole.uniforms(3)[list(rows)])
        assert torch.equal(part.normal(33), whole.normal(33)[list(rows)])
