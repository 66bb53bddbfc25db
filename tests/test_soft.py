"""Kinds of CoT token: distributions, densities, and the limits between them."""

import math
from types import SimpleNamespace

import pytest
import torch

from minisoft.errors import InputError
from minisoft.kinds import PAPER, TAU, make_kind
from minisoft.soft import (
    Categorical,
    TopGaussian,
    entropy,
    noise_scale,
    of_sparse,
    rms,
    softness,
    sparse,
)


class Embedding:
    """The part of a model that soft.py needs."""

    def __init__(self, V=11, d=6, seed=0):
        self.E = torch.randn(V, d, generator=torch.Generator().manual_seed(seed))

    def mix(self, p):
        return p @ self.E

    def embed(self, ids):
        return self.E[ids]


class Fixed:
    """Draws that a test gives."""

    def __init__(self, noise):
        self.noise = noise

    def uniform(self):
        return self.noise

    def normal(self, n):
        assert self.noise.shape[-1] == n
        return self.noise


HIDDEN = torch.zeros(4, 6)


@pytest.fixture
def logits():
    return 3 * torch.randn(4, 11, generator=torch.Generator().manual_seed(1))


def test_categorical_samples_with_its_probabilities(logits):
    n = 200_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(2))
    drawn = Categorical(logits[0].expand(n, -1)).sample(Fixed(uniform))
    p = logits[0].softmax(-1)
    error = (torch.bincount(drawn, minlength=11) / n - p).abs()
    assert (error < 4.5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_categorical_never_draws_what_has_no_probability():
    logits = torch.full((3, 5), -math.inf)
    logits[:, 1] = logits[:, 3] = 0.0
    drawn = Categorical(logits).sample(Fixed(torch.tensor([0.0, 0.5, 1 - 2**-24])))
    assert drawn.tolist() == [1, 3, 3]


def test_categorical_log_prob_is_log_softmax(logits):
    ids = torch.tensor([0, 3, 10, 7])
    expected = logits.log_softmax(-1)[torch.arange(4), ids]
    torch.testing.assert_close(Categorical(logits).log_prob(ids), expected.double())


def test_gaussian_gives_back_its_noise_and_density(logits):
    kind, model = make_kind("soft", sigma=0.3), Embedding()
    noise = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    distribution = kind.distribution(model, HIDDEN, logits)
    action = distribution.sample(Fixed(noise))
    torch.testing.assert_close((action - distribution.mean) / 0.3, noise)
    exact = torch.distributions.Normal(distribution.mean, 0.3).log_prob(action).sum(-1)
    constant = -6 * (math.log(0.3) + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(
        distribution.log_prob(action) + constant, exact.double(), rtol=1e-5, atol=0
    )
    assert torch.equal(distribution.mode(), distribution.mean)


def test_mixture_is_softmax_at_tau_times_E(logits):
    model = Embedding()
    p = torch.exp(logits / 0.5) / torch.exp(logits / 0.5).sum(-1, keepdim=True)
    torch.testing.assert_close(
        make_kind("soft", sigma=1.0).distribution(model, HIDDEN, logits).mean, p @ model.E
    )


def test_fuzzy_mode_is_the_hard_mode(logits):
    model = Embedding()
    mean = make_kind("fuzzy", sigma=1.0).distribution(model, HIDDEN, logits).mode()
    assert torch.equal(
        mean, model.embed(make_kind("hard", 1.0).distribution(model, HIDDEN, logits).mode())
    )


def test_mixture_gradient_reaches_logits_and_E(logits):
    model = Embedding()
    model.E.requires_grad_()
    logits.requires_grad_()
    action = torch.zeros(4, 6)
    make_kind("soft", sigma=0.5).distribution(model, HIDDEN, logits).log_prob(
        action
    ).sum().backward()
    assert model.E.grad.abs().sum() > 0 and logits.grad.abs().sum() > 0


def test_top_k_gaussian_moves_only_the_best_logits(logits):
    """An action is the ids and values of three logits; their noise is that of those places."""
    kind = make_kind("soft", 0.3, noise="logits", top_k=3)
    distribution, noise = kind.distribution(Embedding(), HIDDEN, logits), torch.randn(4, 11)
    action, best = distribution.sample(Fixed(noise)), logits.argsort(-1, descending=True)[:, :3]
    ids, values = of_sparse(action)
    assert action.shape == (4, 3, 2) and torch.equal(ids, best)
    epsilon = noise.gather(-1, best)
    torch.testing.assert_close(
        (values - logits.gather(-1, ids)) / 0.3, epsilon, rtol=1e-4, atol=1e-5
    )
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


def test_softness_counts_tokens():
    even, one = torch.full((4,), 0.25), torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert softness(torch.stack((even, one))).tolist() == [[4.0, 0.25], [1.0, 1.0]]


@pytest.mark.parametrize("noise", ["embedding", "hidden", "logits"])
def test_greedy_mixtures_do_not_depend_on_where_the_noise_would_go(noise):
    """Without noise every placement feeds softmax(z / tau) E."""
    hidden = torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
    model = Embedding()
    model.logits = lambda hidden: hidden @ model.E.T
    kind = make_kind("soft", 0.3, noise=noise)
    action = kind.distribution(model, hidden, model.logits(hidden)).mode()
    torch.testing.assert_close(
        kind.embed(model, action), (model.logits(hidden) / 0.5).softmax(-1) @ model.E
    )
    assert torch.equal(
        kind.shadow(model, action, model.logits(hidden)), model.logits(hidden).argmax(-1)
    )


def test_noise_scales_are_the_sizes_of_what_gets_the_noise():
    """rms(E) as it stands; the others for encodings and decoding rows in random directions."""
    torch.manual_seed(0)
    d, V = 64, 500
    norm, E, W_d = torch.nn.RMSNorm(d), torch.randn(V, d), 0.3 * torch.randn(V, d)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    model = SimpleNamespace(
        E=E, W_d=W_d, model=SimpleNamespace(norm=norm), config=SimpleNamespace(hidden_size=d)
    )
    hidden = norm(torch.randn(1000, d))
    assert noise_scale(model, "embedding") == rms(E)
    assert noise_scale(model, "hidden") == pytest.approx(rms(hidden), rel=0.02)
    assert noise_scale(model, "logits") == pytest.approx(rms(hidden @ W_d.T), rel=0.03)


def test_rms_counts_every_entry():
    assert rms(torch.tensor([[3.0, 0.0], [0.0, 4.0]])) == pytest.approx(2.5)


def test_entropy_is_that_of_temperature_one(logits):
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy(logits), expected)


def test_paper_temperatures():
    assert {name: TAU[name] for name in PAPER} == {"hard": 1.0, "soft": 0.5, "fuzzy": 0.0001}


@pytest.mark.parametrize(
    "name, sigma, tau",
    [("firm", 1.0, None), ("soft", 0.0, None), ("soft", 1.0, 0.0), ("fuzzy", float("nan"), None)],
)
def test_bad_kinds_are_refused(name, sigma, tau):
    with pytest.raises(InputError, match="expected"):
        make_kind(name, sigma, tau)


@pytest.mark.parametrize(
    "noise, top_k", [("answer", None), ("embedding", 5), ("hidden", 5), ("logits", 0)]
)
def test_bad_noise_is_refused(noise, top_k):
    with pytest.raises(InputError, match="expected"):
        make_kind("soft", 1.0, noise=noise, top_k=top_k)
