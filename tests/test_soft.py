"""Kinds of CoT token: distributions, densities, and the limits between them."""

import math

import pytest
import torch

from minisoft.errors import InputError
from minisoft.soft import TAU, Categorical, Gaussian, Hard, entropy, make_kind, rms


class Embedding:
    """The part of a model that soft.py needs."""

    def __init__(self, V=11, d=6, seed=0):
        self.E = torch.randn(V, d, generator=torch.Generator().manual_seed(seed))

    def embed(self, ids):
        return self.E[ids]


@pytest.fixture
def logits():
    return 3 * torch.randn(4, 11, generator=torch.Generator().manual_seed(1))


def test_categorical_samples_with_its_probabilities(logits):
    n = 200_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(2))
    drawn = Categorical(logits[0].expand(n, -1)).sample(uniform)
    p = logits[0].softmax(-1)
    error = (torch.bincount(drawn, minlength=11) / n - p).abs()
    assert (error < 4.5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_categorical_never_draws_what_has_no_probability():
    logits = torch.full((3, 5), -math.inf)
    logits[:, 1] = logits[:, 3] = 0.0
    drawn = Categorical(logits).sample(torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert drawn.tolist() == [1, 3, 3]


def test_categorical_log_prob_is_log_softmax(logits):
    ids = torch.tensor([0, 3, 10, 7])
    expected = logits.log_softmax(-1)[torch.arange(4), ids]
    torch.testing.assert_close(Categorical(logits).log_prob(ids), expected.double())


def test_gaussian_gives_back_its_noise_and_density(logits):
    kind, model = make_kind("soft", sigma=0.3), Embedding()
    noise = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    distribution = kind.distribution(model, logits)
    action = distribution.sample(noise)
    torch.testing.assert_close((action - distribution.mean) / 0.3, noise)
    exact = torch.distributions.Normal(distribution.mean, 0.3).log_prob(action).sum(-1)
    constant = -6 * (math.log(0.3) + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(distribution.log_prob(action) + constant, exact.double(), rtol=1e-5, atol=0)
    assert torch.equal(distribution.mode(), distribution.mean)


def test_mixture_is_softmax_at_tau_times_E(logits):
    model = Embedding()
    p = torch.exp(logits / 0.5) / torch.exp(logits / 0.5).sum(-1, keepdim=True)
    torch.testing.assert_close(make_kind("soft", sigma=1.0).distribution(model, logits).mean, p @ model.E)


def test_fuzzy_mode_is_the_hard_mode(logits):
    model = Embedding()
    mean = make_kind("fuzzy", sigma=1.0).distribution(model, logits).mode()
    assert torch.equal(mean, model.embed(Hard().distribution(model, logits).mode()))


def test_mixture_gradient_reaches_logits_and_E(logits):
    model = Embedding()
    model.E.requires_grad_(), logits.requires_grad_()
    action = torch.zeros(4, 6)
    make_kind("soft", sigma=0.5).distribution(model, logits).log_prob(action).sum().backward()
    assert model.E.grad.abs().sum() > 0 and logits.grad.abs().sum() > 0


def test_draws_come_from_the_generator_alone():
    for kind in (make_kind("hard", 1.0), make_kind("soft", 1.0)):
        one, two = (kind.draw(torch.Generator().manual_seed(5), 4, 6) for _ in range(2))
        assert torch.equal(one, two)


def test_rms_counts_every_entry():
    assert rms(torch.tensor([[3.0, 0.0], [0.0, 4.0]])) == pytest.approx(2.5)


def test_entropy_is_that_of_temperature_one(logits):
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy(logits), expected)


def test_paper_temperatures():
    assert TAU == {"hard": 1.0, "soft": 0.5, "fuzzy": 0.0001}


@pytest.mark.parametrize("name, sigma, tau", [("firm", 1.0, None), ("soft", 0.0, None), ("soft", 1.0, 0.0),
                                              ("fuzzy", float("nan"), None)])
def test_bad_kinds_are_refused(name, sigma, tau):
    with pytest.raises(InputError, match="expected"):
        make_kind(name, sigma, tau)
