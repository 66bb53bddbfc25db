"""Estimators of the gradient: their mean is the exact gradient; terms of it left out."""

import math
from types import SimpleNamespace

import pytest
import torch
from test_reinforce import KINDS, V, gradient, replay_gradient, small_model

from minisoft.reinforce import (
    ESTIMATORS,
    TERMS,
    advantages,
    leave_one_out,
    prefix_advantages,
)
from minisoft.rollout import ANSWER, COT, FORCED, PAD, Request, Rollout, rollout
from minisoft.soft import Categorical, make_kind

G, PROMPT, COT_TOKENS = 8, [1, 2, 3, 4], 3
FORM = SimpleNamespace(prefill=[[7], [8, 7]], cot_ends=lambda ids: ids[-1] == 0, answer_ends=lambda ids: True)
REWARDS = torch.linspace(-4, 4, V).double() + torch.randn(  # any function of CoT (filled up with V) and answer
    V, V + 1, V + 1, V, generator=torch.Generator().manual_seed(1))


def made(ids, role):
    """A Rollout of which only ids and roles matter."""
    return Rollout([1], range(len(ids)), ids, role, None, None, None, None)


def brute_prefix(rewards, rollout):
    """prefix_advantages with loops over lists."""
    found, texts = [], [list(zip(i, r)) for i, r in zip(rollout.ids.tolist(), rollout.role.tolist())]
    for g, mine in enumerate(texts):
        others = [h for h in range(len(texts)) if h != g]
        mean = sum(rewards[h] for h in others) / len(others)
        alike = [[rewards[h] for h in others if texts[h][:t] == mine[:t]] for t in range(len(mine))]
        found.append([rewards[g] - (sum(same) + mean) / (len(same) + 1) for same in alike])
    return torch.tensor(found, dtype=torch.float64)


def test_prefix_advantages_are_those_of_brute_force():
    """Few tokens, so that many prefixes agree; equal tokens in other roles do not; rows of different length."""
    draw, at = torch.Generator().manual_seed(2), torch.arange(9)
    ids, length = torch.randint(2, (12, 9), generator=draw), torch.randint(2, 6, (12, 1), generator=draw)
    role = torch.where(at < length, COT, torch.where(at < length + 2, FORCED, torch.where(at < 8, ANSWER, PAD)))
    rewards = torch.randn(12, generator=draw, dtype=torch.float64)
    record = made(ids * (role != PAD), role.to(torch.int8))
    found, brute = prefix_advantages(rewards, record), brute_prefix(rewards.tolist(), record)
    torch.testing.assert_close(found, brute, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[:, 0], leave_one_out(rewards))  # before the first token all agree
    assert not torch.allclose(found, brute_prefix(rewards.tolist(), made(record.ids, 0 * record.role)))
    assert torch.equal(advantages("prefix", rewards, record), found.float())
    assert not prefix_advantages(torch.full((12,), 10., dtype=torch.float64), record).any()


def sample(model, kind, number, n):
    """n samples of one problem, which make groups of G, and their rewards."""
    record, = rollout(model, FORM, kind, [Request(PROMPT, ("test", number), range(n))], COT_TOKENS)
    cot = torch.where(record.role[:, :COT_TOKENS] == COT, record.ids[:, :COT_TOKENS], V)
    return record, REWARDS[(*cot.T, (record.ids * (record.role == ANSWER)).sum(1))]


def by_group(estimator, record, rewards):
    """The advantages (n, S) of groups of G, each by itself."""
    groups = zip(rewards.split(G), record.ids.split(G), record.role.split(G))
    return torch.cat([advantages(estimator, reward, made(ids, role)).view(G, -1).expand(ids.shape)
                      for reward, ids, role in groups])


def estimates(model, kind, directions, n=2048, repeats=16):
    """{estimator: (repeats, directions)}: gradients of the expected reward, along some directions."""
    found = {name: [] for name in ESTIMATORS}
    for number in range(repeats):
        record, rewards = sample(model, kind, number, n)
        for name in ESTIMATORS:
            weights = -by_group(name, record, rewards)
            found[name].append(replay_gradient(model, kind, record, weights, n) @ directions)
    return {name: torch.stack(rows) for name, rows in found.items()}


def expected_reward(model):
    """Over all CoTs of hard tokens and all answers, by the definition; p (n,) of the n CoTs that still go on."""
    x, p, ids, total = model.embed(torch.tensor([PROMPT])), torch.ones(1), torch.zeros(1, 0, dtype=torch.long), 0
    for _ in range(COT_TOKENS):
        ids = torch.cat((ids.repeat_interleave(V, 0), torch.arange(V).repeat(len(p))[:, None]), 1)
        p = (p[:, None] * model.logits(model(x)[:, -1]).softmax(-1)).flatten()
        x = torch.cat((x.repeat_interleave(V, 0), model.embed(ids[:, -1:])), 1)
        stopped = ids[:, -1] == 0
        total = total + answered(model, x[stopped], p[stopped], ids[stopped], FORM.prefill[0])
        x, p, ids = x[~stopped], p[~stopped], ids[~stopped]
    return total + answered(model, x, p, ids, FORM.prefill[1])


def answered(model, x, p, ids, prefill):
    """What CoTs of probability p (n,) that have ended contribute to the expected reward."""
    ids = torch.nn.functional.pad(ids, (0, COT_TOKENS - ids.shape[1]), value=V)
    x = torch.cat((x, model.embed(torch.tensor([prefill])).expand(len(p), -1, -1)), 1)
    return (p[:, None] * model.logits(model(x)[:, -1]).softmax(-1) * REWARDS[tuple(ids.T)]).sum()


def directions_of(model, vector):
    """(parameters, directions): a vector, its part in each tensor, and 3 random directions, of length 1."""
    tensor = torch.cat([torch.full((p.numel(),), i) for i, p in enumerate(model.parameters())])
    parts = vector[:, None] * (tensor[:, None] == torch.arange(tensor.max() + 1))
    random = torch.randn(len(vector), 3, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.normalize(torch.cat((vector[:, None], parts, random), 1), dim=0)


def assert_zero_mean(difference, signal, name):
    """Differences (repeats, directions) are noise, and so little along the first one that a bias would be seen."""
    error = difference.std(0) / math.sqrt(len(difference))
    assert (difference.mean(0).abs() < 4 * error).all() and 0 < error[0] < 0.04 * signal, name


def test_every_estimator_has_the_exact_gradient_as_its_mean():
    """Hard tokens: all CoTs and answers of a tiny vocabulary are enumerated, and the expected reward differentiated."""
    model = small_model()
    expected_reward(model).backward()
    exact = gradient(model)
    directions = directions_of(model, exact)
    for name, values in estimates(model, KINDS["hard"], directions).items():
        assert_zero_mean(values - exact @ directions, exact.norm(), name)


@pytest.mark.slow
def test_estimators_of_soft_tokens_have_one_mean():
    """Differences to rloo's gradient, on the same samples."""
    model, kind = small_model(), make_kind("soft", 1.2)
    record, rewards = sample(model, kind, -1, 8192)
    directions = directions_of(model, replay_gradient(model, kind, record, -by_group("rloo", record, rewards), 1024))
    found = estimates(model, kind, directions)
    plain = found.pop("rloo")
    for name, values in found.items():
        assert_zero_mean(values - plain, plain[:, 0].mean(), name)


def written_out(model, kind, record, weights):
    """The gradient of eq. 14 with a weight for each position, every row alone and the whole text in one pass."""
    loss = 0
    for row, weight in enumerate(weights):
        C, S = int((record.role[row] == COT).sum()), int((record.role[row] != PAD).sum())
        thoughts, ids = record.actions[row, :C], record.ids[row]
        x = torch.cat((model.embed(torch.tensor(record.prompt)), kind.embed(model, thoughts), model.embed(ids[C:S])))
        hidden = model(x[None])[0, len(record.prompt) - 1: -1]
        logits = model.logits(hidden)
        loss = loss - (weight[:C] * kind.distribution(model, hidden[:C], logits[:C]).log_prob(thoughts)).sum()
        loss = loss - weight[S - 1] * Categorical(logits[S - 1]).log_prob(ids[S - 1])  # one answer token
    (loss / len(weights)).backward()
    return gradient(model)


@pytest.mark.parametrize("name", ["hard", "soft", "hidden"])
def test_advantages_by_position_weigh_each_position_and_terms_add_up(name):
    """Rows of different lengths, prefilled early and late; rows without an advantage, or with one at the start only."""
    model, kind = small_model(), KINDS[name]
    record, _ = sample(model, kind, 0, 24)
    weights = torch.randn(record.ids.shape, generator=torch.Generator().manual_seed(4))
    weights[5], weights[6, 1:] = 0, 0
    found = {term: replay_gradient(model, kind, record, weights, 7, terms=roles) for term, roles in TERMS.items()}
    expected = written_out(model, kind, record, weights)
    close = dict(rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(found["both"], expected, **close)
    torch.testing.assert_close(found["cot"] + found["answer"], expected, **close)
    assert min(found["cot"].norm(), found["answer"].norm()) > 0.05 * expected.norm()
