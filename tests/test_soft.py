"""Kinds of CoT token: distributions, densities, and the limits between them."""

import math
from types import SimpleNamespace

import pytest
import torch
from small import Embedding, Fixed

from minisoft.errors import InputError
from minisoft.kinds import PAPER, TAU, make_kind
from minisoft.soft import Categorical, entropy, measure, noise_scale, rms

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
    found = distribution.log_prob(action) + constant
    torch.testing.assert_close(found, exact.double(), rtol=1e-5, atol=0)
    assert torch.equal(distribution.mode(), distribution.mean)


def test_mixture_is_softmax_at_tau_times_E(logits):
    model = Embedding()
    p = torch.exp(logits / 0.5) / torch.exp(logits / 0.5).sum(-1, keepdim=True)
    distribution = make_kind("soft", sigma=1.0).distribution(model, HIDDEN, logits)
    torch.testing.assert_close(distribution.mean, p @ model.E)


def test_fuzzy_mode_is_the_hard_mode(logits):
    model = Embedding()
    mean = make_kind("fuzzy", sigma=1.0).distribution(model, HIDDEN, logits).mode()
    best = make_kind("hard").distribution(model, HIDDEN, logits).mode()
    assert torch.equal(mean, model.embed(best))


def test_what_is_measured_are_entropy_at_temperature_1_and_how_many_tokens_are_mixed(logits):
    exact = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy(logits), exact)
    even, one = torch.full((4,), 0.25), torch.tensor([0.0, 1.0, 0.0, 0.0])
    entropies, support, largest = measure(logits[:2], torch.stack((even, one))).T
    assert torch.equal(entropies, entropy(logits[:2]))
    assert (support.tolist(), largest.tolist()) == ([4.0, 1.0], [0.25, 1.0])


def test_noise_scales_are_the_sizes_of_what_gets_the_noise():
    """rms(E) as it stands; the others for encodings and decoding rows in random directions."""
    assert rms(torch.tensor([[3.0, 0.0], [0.0, 4.0]])) == pytest.approx(2.5)
    torch.manual_seed(0)
    d, V = 64, 500
    norm, E, W_d = torch.nn.RMSNorm(d), torch.randn(V, d), 0.3 * torch.randn(V, d)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    model = SimpleNamespace(E=E, W_d=W_d, model=SimpleNamespace(norm=norm))
    model.config = SimpleNamespace(hidden_size=d)
    hidden = norm(torch.randn(1000, d))
    assert noise_scale(model, "embedding") == rms(E)
    assert noise_scale(model, "hidden") == pytest.approx(rms(hidden), rel=0.02)
    assert noise_scale(model, "logits") == pytest.approx(rms(hidden @ W_d.T), rel=0.03)


def test_paper_temperatures():
    assert {name: TAU[name] for name in PAPER} == {"hard": 1.0, "soft": 0.5, "fuzzy": 0.0001}


BAD = {"firm": [{}], "fuzzy": [{"sigma": math.nan}], "gumbel": [{"top_p": 0.0}, {"top_p": 1.5}]}
BAD["soft"] = [{"sigma": 0.0}, {"tau": 0.0}, {"noise": "logits", "top_k": 0}, {"width": 3}]
BAD["soft"] += [{"noise": noise, "top_k": 5} for noise in ("embedding", "hidden")]
BAD |= {"soft": [*BAD["soft"], {"noise": "answer"}], "multiplex": [{"width": 0}, {"top_p": 0.9}]}


@pytest.mark.parametrize("name, options", [(name, x) for name in BAD for x in BAD[name]])
def test_bad_kinds_and_options_of_others_are_refused(name, options):
    with pytest.raises(InputError, match="expected"):
        make_kind(name, **{"sigma": 1.0, **options})
