"""Estimators of the gradient: antithetic draws, baselines, rows left out; their mean stays the exact gradient."""

import math
from types import SimpleNamespace

import pytest
import torch
from test_draws import draws
from test_reinforce import KINDS, V, gradient, replay_gradient, small_model

import minisoft
from minisoft.checkpoint import WEIGHTS
from minisoft.draws import Draws, key
from minisoft.model import PromptCache
from minisoft.reinforce import ESTIMATORS, TERMS, advantages, encodings, leave_one_out, prefix_advantages, thin
from minisoft.rollout import ANSWER, COT, FORCED, PAD, Format, Request, Rollout, rollout
from minisoft.soft import Categorical, make_kind
from minisoft.tokenizer import Tokenizer

G, PROMPT, COT_TOKENS = 8, [1, 2, 3, 4], 3
FORM = SimpleNamespace(prefill=[[7], [8, 7]], cot_ends=lambda ids: ids[-1] == 0, answer_ends=lambda ids: True)
REWARDS = torch.linspace(-4, 4, V).double() + torch.randn(  # any function of CoT (filled up with V) and answer
    V, V + 1, V + 1, V, generator=torch.Generator().manual_seed(1))


def test_antithetic_draws_are_turned_around_row_by_row():
    plain, signs = draws(2000), torch.tensor([1, -1]).repeat(1000)
    mixed = Draws(plain.keys, plain.positions, signs)
    assert torch.equal(mixed.normal(7), plain.normal(7) * signs[:, None])
    u, turned = plain.uniform().double(), mixed.uniform().double()
    assert torch.equal(turned[::2], u[::2]) and torch.equal(turned[1::2], 1 - 2**-24 - u[1::2])
    ends = SimpleNamespace(_bits=lambda n: torch.tensor([[0], [-1]]), signs=torch.tensor([-1, -1]))
    assert Draws.uniform(ends).tolist() == [1 - 2**-24, 0]


def test_antithetic_draws_have_the_same_distribution():
    n, p = 200_000, torch.tensor([.05, .2, .4, .35])
    turned = Draws(torch.full((n,), key("x")), torch.arange(n), torch.full((n,), -1))
    u, x = turned.uniform().double(), turned.normal(1)[:, 0].double()
    for cdf in (u.sort().values, 0.5 * (1 + torch.erf(x.sort().values / math.sqrt(2)))):
        assert (cdf - (torch.arange(n) + 0.5) / n).abs().max() < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at .001
    share = Categorical(p.log().expand(n, -1)).sample(turned).bincount(minlength=4) / n
    assert ((share - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()


def roll(model, form, prompts, samples, rows=None, antithetic=True, name="soft"):
    asked = [Request(prompt, (3, i), samples, antithetic) for i, prompt in enumerate(prompts)]
    return rollout(model, form, KINDS[name], asked, 6, rows=rows)


def noise_of(model, record, kind=KINDS["soft"]):
    """(action - mean) / sigma (n, C, d) at the CoT positions."""
    hidden, cache = model.prefill(torch.tensor([record.prompt]))
    prompt = PromptCache(keys=cache.keys, values=cache.values)
    h = encodings(model, kind, record, torch.arange(len(record.ids)), prompt, hidden[:, -1])[:, :6]
    return (record.actions - kind.distribution(model, h, model.logits(h)).mean) / kind.sigma


@torch.no_grad()
def test_samples_2i_and_2i_plus_1_of_a_rollout_are_antithetic(both, tokenizer_folders):
    """At the first position, and at later ones too, where the means of a pair differ."""
    model, tokenizer = both("llama3-tied")[1], Tokenizer(tokenizer_folders["llama3"])
    where = model, Format(tokenizer), [tokenizer.encode(text) for text in ("User: what?", "Mia has 12 apples.")]
    for record, plain in zip(roll(*where, range(8)), roll(*where, range(8), antithetic=False)):
        noise = noise_of(model, record)
        assert (record.role[:, :6] == COT).all() and (noise.std((1, 2)) - 1).abs().max() < 0.3
        torch.testing.assert_close(noise[1::2], -noise[::2], rtol=0, atol=1e-4)
        torch.testing.assert_close(noise[::2], noise_of(model, plain)[::2], rtol=0, atol=1e-4)
        assert (record.ids[::2] != record.ids[1::2]).any()


@pytest.mark.parametrize("name", ["soft", "hard"])
def test_batching_and_sharding_change_no_bit_of_antithetic_samples(name):
    """Rows that wait, rows that change places as others end, samples 3 to 19 alone.  The embedded model: those of
    smaller ones are not rounded alike."""
    model, tokenizer = minisoft.load(WEIGHTS / "tiny")
    where = model, Format(tokenizer), [tokenizer.encode(f"User: Mia has {n} apples.") for n in (12, 40)]
    whole = roll(*where, range(20), name=name)
    for samples, rows in ((range(20), 5), (range(20), 17), (range(3, 20), 40)):
        for one, all_of in zip(roll(*where, samples, rows, name=name), whole):
            for field in ("ids", "role", "actions", "log_prob"):
                found, there = getattr(one, field), getattr(all_of, field)[samples.start:]
                assert torch.equal(found, there[:, :found.shape[1]])


def test_leave_one_out_of_pairs_is_the_reward_minus_the_mean_of_the_other_pairs():
    rewards = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    brute = torch.tensor([[r - sum(row[j] for j in range(8) if j // 2 != i // 2) / 6 for i, r in enumerate(row)]
                          for row in rewards.tolist()], dtype=torch.float64)
    torch.testing.assert_close(leave_one_out(rewards, 2), brute)
    assert not leave_one_out(torch.full((2, 6), 10.), 2).any()
    for size in (1, 2, 5, 7):
        with pytest.raises(ValueError, match=f"leave_one_out: expected .* found {size}"):
            leave_one_out(torch.ones(1, size), 2)


def made(ids, role, start=0):
    """A Rollout of which only ids and roles matter."""
    return Rollout([1], range(start, start + len(ids)), ids, role, None, None, None, None)


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
    assert torch.equal(advantages("prefix", rewards, record, ()), found.float())
    assert not prefix_advantages(torch.full((12,), 10., dtype=torch.float64), record).any()


def test_thin_keeps_the_mean_and_leaves_rows_out():
    exact = torch.tensor([3., -1.5, 0., .5, -.1, 0., 1., -4.], dtype=torch.float64)
    c, n = exact.square().mean().sqrt(), 4000
    many = torch.stack([thin(exact, (7, i)) for i in range(n)])
    kept = torch.where(exact.abs() >= c, exact, exact.sign() * c)
    assert ((many - kept).abs().le(1e-12) | (many == 0)).all()
    error = (exact.abs() * (c - exact.abs()).clamp(min=0) / n).sqrt()
    assert ((many.mean(0) - exact).abs() <= 4 * error + 1e-12).all() and (error > 0).sum() == 4
    correlation = torch.corrcoef(many[:, (1, 3, 4, 6)].T) - torch.eye(4)
    assert correlation.abs().max() < 4.5 / math.sqrt(n)  # a row is kept whatever the others are
    assert torch.equal(thin(exact, (7, 1)), many[1])


def test_thin_is_the_same_on_every_rank_and_nothing_without_advantages():
    rewards, role = torch.tensor([100., 10., 10., 10., 0., 10., 10., 10.]), torch.full((8, 4), COT, dtype=torch.int8)
    whole = advantages("thin", rewards, made(role, role), (0, 3, 1))
    assert torch.equal(whole, thin(leave_one_out(rewards), (0, 3, 1))) and 0 < whole.count_nonzero() < 8
    assert torch.equal(advantages("thin", rewards, made(role[3:7], role[3:7], 3), (0, 3, 1)), whole[3:7])
    assert advantages("thin", torch.ones(8), made(role, role), (0, 3, 1)).tolist() == [0.] * 8


def sample(model, kind, number, antithetic, n):
    """n samples of one problem, which make groups of G, and their rewards."""
    record, = rollout(model, FORM, kind, [Request(PROMPT, ("test", number), range(n), antithetic)], COT_TOKENS)
    cot = torch.where(record.role[:, :COT_TOKENS] == COT, record.ids[:, :COT_TOKENS], V)
    return record, REWARDS[(*cot.T, (record.ids * (record.role == ANSWER)).sum(1))]


def by_group(estimator, record, rewards, number):
    """The advantages (n, S) of groups of G, each by itself."""
    groups = zip(rewards.split(G), record.ids.split(G), record.role.split(G))
    return torch.cat([advantages(estimator, reward, made(ids, role), (number, i)).view(G, -1).expand(ids.shape)
                      for i, (reward, ids, role) in enumerate(groups)])


def estimates(model, kind, directions, n=2048, repeats=16):
    """{estimator: (repeats, directions)}: gradients of the expected reward, along some directions."""
    found = {name: [] for name in ESTIMATORS}
    for number in range(repeats):
        drawn = [sample(model, kind, number, antithetic, n) for antithetic in (False, True)]
        for name in ESTIMATORS:
            record, rewards = drawn[name == "pairs"]
            weights = -by_group(name, record, rewards, number)
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
    """Differences to rloo's gradient, on the same samples but for pairs."""
    model, kind = small_model(), make_kind("soft", 1.2)
    record, rewards = sample(model, kind, -1, False, 8192)
    directions = directions_of(model, replay_gradient(model, kind, record, -by_group("rloo", record, rewards, 0), 1024))
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
    record, _ = sample(model, kind, 0, False, 24)
    weights = torch.randn(record.ids.shape, generator=torch.Generator().manual_seed(4))
    weights[5], weights[6, 1:] = 0, 0
    found = {term: replay_gradient(model, kind, record, weights, 7, terms=roles) for term, roles in TERMS.items()}
    expected = written_out(model, kind, record, weights)
    close = dict(rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(found["both"], expected, **close)
    torch.testing.assert_close(found["cot"] + found["answer"], expected, **close)
    assert min(found["cot"].norm(), found["answer"].norm()) > 0.05 * expected.norm()
