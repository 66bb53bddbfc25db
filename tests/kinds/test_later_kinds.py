"""Multiplex, covariance and Gumbel tokens: what is drawn, its density, its gradient."""

import math

import pytest
import torch
from conftest import KINDS
from small import Embedding

from minisoft.draws import Draws
from minisoft.errors import InputError
from minisoft.kinds import make_kind
from minisoft.kinds.covariance import TokenGaussian
from minisoft.kinds.gumbel import Gumbel
from minisoft.kinds.multiplex import Independent
from minisoft.kinds.noise import of_sparse
from minisoft.rollout import COT

N = 100_000
LOGITS = 1.5 * torch.randn(7, generator=torch.Generator().manual_seed(1))
P = LOGITS.softmax(-1)
MANY = LOGITS.expand(N, -1)
MODEL = Embedding(V=7, d=5, seed=2)
DRAWS = Draws(torch.arange(N), torch.zeros(N, dtype=torch.long))


def near(found, expected, sigma):
    """Means over N draws, within 5 standard errors."""
    return ((found - expected).abs() < 5 * sigma / N**0.5 + 1e-6).all()


def test_multiplex_draws_tokens_independently_and_feeds_their_mean():
    kind = make_kind("multiplex")
    ids = kind.distribution(None, None, MANY).sample(DRAWS)  # (N, 3)
    one_hot = torch.nn.functional.one_hot(ids, 7).float()
    assert near(one_hot.mean(0), P, (P * (1 - P)).sqrt())
    both = one_hot[:, 0, :, None] * one_hot[:, 2, None, :]
    joint = P[:, None] * P
    assert near(both.mean(0), joint, (joint * (1 - joint)).sqrt())
    torch.testing.assert_close(kind.embed(MODEL, ids[:9]), one_hot[:9].mean(1) @ MODEL.E)
    exact = P.log()[ids[:9]].sum(-1).double()
    torch.testing.assert_close(Independent(MANY[:9], 3).log_prob(ids[:9]), exact)


def test_multiplex_weights_are_counts_and_its_shadow_the_likeliest():
    kind, ids = make_kind("multiplex"), torch.tensor([[2, 5, 2], [4, 4, 4], [0, 1, 6]])
    weights, tokens = kind.weights(None, ids, MANY[:3])
    torch.testing.assert_close(weights, torch.tensor([[2, 1, 0], [3, 0, 0], [1, 1, 1]]) / 3)
    assert torch.equal(tokens, ids)
    best = [max(row, key=lambda i: LOGITS[i].item()) for row in ids.tolist()]
    assert kind.shadow(None, ids, MANY[:3]).tolist() == best


def test_covariance_noise_has_the_moments_of_the_mean_of_tokens():
    w = make_kind("covariance", width=4).distribution(None, None, MANY).sample(DRAWS)
    assert (w.sum(-1) - 1).abs().max() < 1e-5
    C = P.diag() - P[:, None] * P
    assert near(w.mean(0), P, (C.diag() / 4).sqrt())
    off = w - P
    spread = (C.diag()[:, None] * C.diag() + C.square()).sqrt() / 4
    assert near((off[:, :, None] * off[:, None, :]).mean(0), C / 4, spread)


def density(logits, held, w, sigma):
    """Of the first V - 1 weights, whose distribution is not degenerate, float64; the covariance is
    that of the logits `held`."""
    p, q = logits.softmax(-1), held.softmax(-1)
    C = sigma**2 * (q.diag_embed() - q[:, :, None] * q[:, None, :])
    normal = torch.distributions.MultivariateNormal(p[:, :-1], C[:, :-1, :-1])
    return normal.log_prob(w[:, :-1])


def test_covariance_has_the_gradient_of_its_density_with_the_covariance_held():
    """And what the whole density has besides is the formula of TokenGaussian."""
    draws, sigma = Draws(DRAWS.keys[:500], DRAWS.positions[:500]), 0.6
    logits = MANY[:500].double().requires_grad_()
    of_64 = TokenGaussian(logits, sigma)
    w = of_64.sample(draws).detach()
    (learnt,) = torch.autograd.grad(of_64.surrogate(w, draws).sum(), logits)
    (by_action,) = torch.autograd.grad(of_64.log_prob(w).sum(), logits)
    (exact,) = torch.autograd.grad(density(logits, logits.detach(), w, sigma).sum(), logits)
    torch.testing.assert_close(learnt, exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_action, exact, rtol=1e-4, atol=1e-5)
    (whole,) = torch.autograd.grad(density(logits, logits, w, sigma).sum(), logits)
    p, xi = P.double(), draws.normal(7).double()
    chi = (xi - p.sqrt() * (p.sqrt() * xi).sum(-1, keepdim=True)).square()
    extra = (chi - 1) / 2
    extra = extra - p * extra.sum(-1, keepdim=True)  # d log p = dlogits - sum p dlogits
    torch.testing.assert_close(whole - exact, extra, rtol=1e-4, atol=1e-4)
    variance = (p * (1 - p)).sum() / sigma**2
    assert exact.square().sum(-1).mean() == pytest.approx(variance.item(), rel=0.2)


def test_gumbel_argmax_is_a_token_and_the_best_are_kept():
    kind = make_kind("gumbel", width=7, top_p=1.0)
    ids, values = of_sparse(kind.distribution(None, None, MANY).sample(DRAWS))
    drawn = ids.gather(-1, values.argmax(-1, keepdim=True))[:, 0]
    assert near(torch.bincount(drawn, minlength=7) / N, P, (P * (1 - P)).sqrt())

    order = P.argsort(descending=True)
    for width, top_p in ((3, 1.0), (7, P[order[:2]].sum().item() - 1e-4), (7, 1e-9)):
        count = 3 if width == 3 else 2 if top_p > 0.1 else 1
        ids, values = of_sparse(Gumbel(MANY[:5], width, top_p).sample(Draws(*pair(5))))
        kept = values > -math.inf
        assert kept.sum(-1).tolist() == [count] * 5
        assert ids[kept].view(5, count).tolist() == [order[:count].tolist()] * 5


def pair(n):
    return DRAWS.keys[:n], DRAWS.positions[:n]


def test_gumbel_density_is_that_of_its_noise_and_so_is_the_gradient():
    logits, draws = MANY[:50].clone().requires_grad_(), Draws(*pair(50))
    thought = Gumbel(logits, 4, 0.97)
    action = thought.sample(draws).detach()
    ids, values = of_sparse(action)
    kept = values > -math.inf
    z = logits.gather(-1, ids)
    log_p = z - torch.where(kept, z, -math.inf).logsumexp(-1, keepdim=True)
    noise = torch.distributions.Gumbel(0.0, 1.0)
    x = torch.where(kept, values - log_p, 0.0)
    exact = (noise.log_prob(x) * kept).sum(-1)
    torch.testing.assert_close(thought.log_prob(action), exact.double(), rtol=1e-4, atol=1e-5)
    (expected,) = torch.autograd.grad(exact.sum(), logits, retain_graph=True)
    for found in (thought.log_prob(action), thought.surrogate(action, draws)):
        (gradient,) = torch.autograd.grad(found.sum(), logits, retain_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


class Lowest:
    """Uniform draws of 0."""

    def uniforms(self, n):
        return torch.zeros(3, n)


def test_a_uniform_draw_of_zero_is_finite_noise():
    action = Gumbel(MANY[:3], 4, 1.0).sample(Lowest())
    assert action.isfinite().all()


@pytest.mark.parametrize("name", ["multiplex", "covariance", "gumbel"])
def test_greedy_is_the_mode_without_noise(name):
    kind = make_kind(name)
    action = kind.distribution(None, None, MANY[:2]).mode()
    x, best = kind.embed(MODEL, action), P.argmax().item()
    assert kind.shadow(None, action, MANY[:2]).tolist() == [best, best]
    if name == "multiplex":
        torch.testing.assert_close(x, MODEL.E[[best, best]])
    if name == "covariance":
        torch.testing.assert_close(x, (P @ MODEL.E).expand(2, -1))
    if name == "gumbel":  # softmax(log p / tau) of the best that together have 0.95
        best = P.topk(5)
        kept = best.indices[: (best.values.cumsum(0) - best.values < 0.95).sum()]
        w = P[kept] ** 10 / (P[kept] ** 10).sum()
        torch.testing.assert_close(x, (w @ MODEL.E[kept]).expand(2, -1))


@pytest.mark.parametrize("name", ["hard", "multiplex", "covariance", "gumbel"])
def test_kinds_without_noise_of_that_size_have_no_sigma(name):
    assert make_kind(name) == make_kind(name, sigma=0.5)
    assert "sigma" not in vars(make_kind(name))
    with pytest.raises(InputError, match="sigma"):
        make_kind("soft")


@pytest.mark.parametrize("name", KINDS)
def test_how_soft_tokens_are_is_recorded_at_cot_positions(rolled, name):
    """1 of hard tokens; else what `weights` says, between 1 and the number of tokens."""
    for record in rolled(name):
        thinking = record.role == COT
        support, largest = record.measures[thinking].T[1:]
        assert not record.measures[~thinking].any()
        assert (support > 0.999).all() and (largest <= 1 + 1e-5).all()
        assert (support.max() > 1.2) == (name not in ("hard", "fuzzy", "fuzzy, hidden"))
