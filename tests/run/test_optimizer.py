"""Schedule, clipping, AdamW on float32 masters, what is summed and what is saved."""

import pytest
import torch

from minisoft.run.optimizer import Optimizer, Schedule
from minisoft.run.world import World


def test_learning_rate_warms_up_and_falls_to_zero():
    schedule = Schedule(lr=1e-3, steps=100, warmup=20)
    rates = [schedule.learning_rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(5e-5)
    assert rates[19] == pytest.approx(1e-3) and rates[20] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx(5e-4) and rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[20:] == sorted(rates[20:], reverse=True)


def backward(optimizer, model, x):
    with optimizer.summing():
        model(x).sum().backward()


def test_clip_and_first_adamw_step():
    model = torch.nn.Linear(3, 1, bias=False)
    start = model.weight.detach().clone()
    optimizer = Optimizer(model, Schedule(lr=1e-2, steps=10, warmup=1), World("cpu"))
    backward(optimizer, model, torch.tensor([[30.0, -40.0, 0.0]]))
    assert optimizer.collect() == optimizer.grad_norm() == pytest.approx(50.0)
    optimizer.update(0, 50.0)
    moment = optimizer.state()["exp_avg/weight"]
    assert moment.tolist() == pytest.approx([0.06, -0.08, 0.0])  # clipped to 1
    expected = torch.tensor([[-1e-2, 1e-2, 0.0]])
    torch.testing.assert_close(model.weight.detach() - start, expected, rtol=1e-3, atol=1e-8)


def test_bfloat16_updates_accumulate_in_float32_masters():
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    optimizer = Optimizer(model, Schedule(lr=1e-4, steps=10**9, warmup=1), World("cpu"))
    for step in range(100):  # each is below half a bfloat16 step of 2^-8; together they are 0.01
        backward(optimizer, model, torch.ones(1, 1, dtype=torch.bfloat16))  # the gradient is 1
        assert model.weight.grad is None and optimizer.collect() == 1.0
        optimizer.update(step, 1.0)
    assert optimizer.masters["weight"].item() == pytest.approx(0.99, abs=1e-4)
    assert model.weight.item() < 1.0


def test_backward_passes_are_summed_until_they_are_collected_or_discarded():
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = Optimizer(model, Schedule(lr=1e-2, steps=10, warmup=1), World("cpu"))
    backward(optimizer, model, torch.tensor([[3.0, 0.0]]))
    optimizer.discard()
    backward(optimizer, model, torch.tensor([[3.0, 0.0]]))
    backward(optimizer, model, torch.tensor([[0.0, 4.0]]))
    assert optimizer.collect() == pytest.approx(5.0)
    assert optimizer.grad_norm("weight") == pytest.approx(5.0) and not optimizer.not_finite()
    model(torch.ones(1, 2)).sum().backward()  # outside, a gradient is the parameter's own
    assert model.weight.grad is not None


class Rank:
    """One of several, the others of which have the same."""

    def __init__(self, size, rank):
        self.size, self.rank = size, rank

    def join(self, piece):
        return piece.repeat(self.size)


@pytest.mark.parametrize("before, now", [(1, 3), (3, 1), (2, 3), (5, 2), (4, 4)])
def test_the_state_of_any_number_of_ranks_is_taken_up_by_any_other(before, now):
    """Ten numbers, padded to a multiple of the pieces."""
    saved = {f"{key}/weight": torch.randn(10) for key in ("weight", "exp_avg", "exp_avg_sq")}
    padded = {key: torch.cat((x, torch.zeros(-10 % before))) for key, x in saved.items()}
    states = []
    for rank in range(now):
        model = torch.nn.Linear(5, 2, bias=False)
        optimizer = Optimizer(model, Schedule(lr=1e-2, steps=9, warmup=1), Rank(now, rank), True)
        optimizer.load(padded.get, 3)
        states.append(optimizer.state())
        assert optimizer.adamw.state[optimizer.masters["weight"]]["step"] == 3
    for key, x in saved.items():
        pieces = torch.cat([of_rank[key] for of_rank in states])
        assert torch.equal(pieces, torch.cat((x, torch.zeros(-10 % now))))
