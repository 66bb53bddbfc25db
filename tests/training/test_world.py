"""Which rank takes what."""

import pytest

from minisoft.errors import InputError
from minisoft.training.world import World


def world_of(size, rank=0):
    world = World("cpu")
    world.size, world.rank = size, rank
    return world


def test_every_sample_belongs_to_one_rank():
    """The paper's B = 2, G = 32 on 1 to 64 ranks; a world that does not divide it is refused."""
    for size in (1, 2, 4, 8, 64):
        seen = []
        for rank in range(size):
            parts = world_of(size, rank).share(2, 32)
            assert sum(len(samples) for _, samples in parts) == 64 // size
            seen += [(b, g) for b, samples in parts for g in samples]
        assert seen == [(b, g) for b in range(2) for g in range(32)]
    with pytest.raises(InputError, match="2 x 32 = 64 samples.*3 ranks"):
        world_of(3).share(2, 32)


def test_problems_are_dealt_so_that_ranks_get_alike_much():
    problems = [7, 1, 5, 3, 8, 2, 6, 4]
    assert world_of(1).balance(problems, lambda p: p) == [8, 7, 6, 5, 4, 3, 2, 1]
    assert world_of(2).balance(problems, lambda p: p) == [8, 5, 4, 1, 7, 6, 3, 2]  # 18 and 18
    assert world_of(3).balance(problems, lambda p: p) == problems


def test_a_world_of_one_rank_gives_everything_back():
    world = world_of(1)
    assert world.gather_objects([1, 2]) == world.gather_to_main([1, 2]) == [1, 2]
    assert world.from_main(lambda: 3) == world.in_turn(lambda: 3) == world.all_or_none(lambda: 3)
    with pytest.raises(OSError, match="no room"):
        world.all_or_none(lambda: (_ for _ in ()).throw(OSError("no room")))
