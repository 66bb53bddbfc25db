"""The gradient estimated from rollouts has the exact one of the expected reward as its mean."""

import math

import torch
from small import FORM, PROMPT, V, small_model
from small import gradient as take_gradient

from minisoft.kinds import make_kind
from minisoft.reinforce import backward, leave_one_out
from minisoft.rollout import ANSWER, COT, Decoding, Request, rollout

G, COT_TOKENS = 8, 3
NOISE = torch.randn(V, V + 1, V + 1, V, generator=torch.Generator().manual_seed(1))
# any function of CoT (filled up with V), answer
REWARDS = torch.linspace(-4, 4, V).double() + NOISE


def estimate(model, kind, number: int, n: int = 2048) -> torch.Tensor:
    """The gradient of the expected reward from n samples of one problem, in groups of G."""
    requests = [Request(PROMPT, ("test", number), range(n))]
    (record,) = rollout(model, FORM, kind, requests, Decoding(COT_TOKENS))
    cot = torch.where(record.role[:, :COT_TOKENS] == COT, record.ids[:, :COT_TOKENS], V)
    rewards = REWARDS[(*cot.T, (record.ids * (record.role == ANSWER)).sum(1))]
    advantages = leave_one_out(rewards.view(-1, G)).flatten()
    backward(model, kind, [record], [advantages], 1 / n)
    return -take_gradient(model)


def expected_reward(model) -> torch.Tensor:
    """Over all CoTs of hard tokens and all answers, by the definition; p (n,) of the n CoTs that
    still go on."""
    x, p = model.embed(torch.tensor([PROMPT])), torch.ones(1)
    ids, total = torch.zeros(1, 0, dtype=torch.long), 0
    for _ in range(COT_TOKENS):
        next_ids = torch.arange(V).repeat(len(p))[:, None]
        ids = torch.cat((ids.repeat_interleave(V, 0), next_ids), 1)
        p = (p[:, None] * model.logits(model(x)[:, -1]).softmax(-1)).flatten()
        x = torch.cat((x.repeat_interleave(V, 0), model.embed(ids[:, -1:])), 1)
        stopped = ids[:, -1] == 0
        total = total + answered(model, x[stopped], p[stopped], ids[stopped], FORM.prefill[0])
        x, p, ids = x[~stopped], p[~stopped], ids[~stopped]
    return total + answered(model, x, p, ids, FORM.prefill[1])


def answered(model, x, p, ids, prefill) -> torch.Tensor:
    """What CoTs of probability p (n,) that have ended contribute to the expected reward."""
    ids = torch.nn.functional.pad(ids, (0, COT_TOKENS - ids.shape[1]), value=V)
    x = torch.cat((x, model.embed(torch.tensor([prefill])).expand(len(p), -1, -1)), 1)
    chances = p[:, None] * model.logits(model(x)[:, -1]).softmax(-1)
    return (chances * REWARDS[tuple(ids.T)]).sum()


def directions_of(model, vector) -> torch.Tensor:
    """(parameters, directions): a vector, its part in each tensor, and 3 random directions, of
    length 1."""
    owner = [torch.full((p.numel(),), i) for i, p in enumerate(model.parameters())]
    tensor = torch.cat(owner)
    parts = vector[:, None] * (tensor[:, None] == torch.arange(tensor.max() + 1))
    random = torch.randn(len(vector), 3, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.normalize(torch.cat((vector[:, None], parts, random), 1), dim=0)


def test_leave_one_out_has_the_exact_gradient_as_its_mean():
    """Hard tokens: all CoTs and answers of a tiny vocabulary are enumerated, and the expected
    reward differentiated.  Differences are noise, and so little along the gradient that a bias
    would be seen."""
    model, kind = small_model(), make_kind("hard", 0.2)
    expected_reward(model).backward()
    exact = take_gradient(model)
    directions = directions_of(model, exact)
    estimates = torch.stack([estimate(model, kind, number) @ directions for number in range(16)])
    difference = estimates - exact @ directions
    error = difference.std(0) / math.sqrt(len(difference))
    assert (difference.mean(0).abs() < 4 * error).all() and 0 < error[0] < 0.04 * exact.norm()
