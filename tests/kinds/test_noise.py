"""Appendix F.2: soft tokens whose noise is on the hidden layer, the logits or the best of them."""

import math

import pytest
import torch
from small import Embedding, Fixed

from minisoft.kinds import make_kind
from minisoft.kinds.noise import TopGaussian, of_sparse, sparse

HIDDEN = torch.zeros(4, 6)


@pytest.fixture
def logits():
    return 3 * torch.randn(4, 11, generator=torch.Generator().manual_seed(1))


def test_top_k_gaussian_moves_only_the_best_logits(logits):
    """An action is the ids and values of three logits; their noise is that of those places."""
    kind = make_kind("soft", 0.3, noise="logits", top_k=3)
    distribution, noise = kind.distribution(Embedding(), HIDDEN, logits), torch.randn(4, 11)
    action, best = distribution.sample(Fixed(noise)), logits.argsort(-1, descending=True)[:, :3]
    ids, values = of_sparse(action)
    assert action.shape == (4, 3, 2) and torch.equal(ids, best)
    epsilon = noise.gather(-1, best)
    found = (values - logits.gather(-1, ids)) / 0.3
    torch.testing.assert_close(found, epsilon, rtol=1e-4, atol=1e-5)
    expected = -0.5 * epsilon.double().square().sum(-1)
    torch.testing.assert_close(distribution.log_prob(action), expected, rtol=1e-4, atol=1e-5)
    others = TopGaussian(-logits, 0.3, 3)  # a mean whose three best are others has one all the same
    assert others.log_prob(action).isfinite().all()
    dense = torch.full_like(logits, -math.inf).scatter(-1, ids, values)
    p = (dense / kind.tau).softmax(-1)
    torch.testing.assert_close(kind.embed(Embedding(), action), p @ Embedding().E)
    assert torch.equal(kind.shadow(None, action, logits), dense.argmax(-1)) and kind.tau == 1.0
    weights, tokens = kind.weights(None, action, logits)
    assert torch.equal(tokens, ids)
    torch.testing.assert_close(torch.zeros(4, 11).scatter(-1, tokens, weights), p)


def test_ids_of_the_largest_vocabularies_are_exact_in_an_action():
    ids = torch.tensor([0, 128_255, 262_143, 2**24 - 1])
    assert torch.equal(of_sparse(sparse(ids, torch.zeros(4)))[0], ids)


@pytest.mark.parametrize("noise", ["embedding", "hidden", "logits"])
def test_greedy_mixtures_do_not_depend_on_where_the_noise_would_go(noise):
    """Without noise every placement feeds softmax(z / tau) E."""
    hidden = torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
    model = Embedding()
    model.logits = lambda hidden: hidden @ model.E.T
    kind = make_kind("soft", 0.3, noise=noise)
    logits = model.logits(hidden)
    action = kind.distribution(model, hidden, logits).mode()
    torch.testing.assert_close(kind.embed(model, action), (logits / 0.5).softmax(-1) @ model.E)
    assert torch.equal(kind.shadow(model, action, logits), logits.argmax(-1))
