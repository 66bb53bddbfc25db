"""The kinds of chain-of-thought (CoT) token (section 3, eqs. 3-6, 9-10).

A kind is a *distribution over actions* and a map `embed` from the action to the transformer's next input:

    kind          distribution at a CoT step, z = hL W_d        embed(action)
    hard          Categorical(softmax(z / tau))                 E[action]
    soft, fuzzy   Normal(softmax(z / tau) E, sigma)             action

Rollout draws an action and embeds it, greedy inference takes the mode, training takes the log-probability of the
recorded actions: the same code for every kind.  Noise on the final hidden layer or on the logits (appendix F.2) would
be a further class here with `embed(action)` = softmax(action W_d / tau) E or softmax(action / tau) E, and nothing
elsewhere but that `distribution` is then given hL too.  Shapes: ... leading dimensions (rows, or rows x positions), V vocabulary, d width of E.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from minisoft.errors import InputError

KINDS = ("hard", "soft", "fuzzy")
TAU = {"hard": 1.0, "soft": 0.5, "fuzzy": 0.0001}  # section 4: training temperatures
GAMMA = 0.33  # section 4: sigma = GAMMA * rms(E)


@dataclass(frozen=True)
class Categorical:
    """Ordinary tokens: probabilities softmax(logits), logits (..., V) float32 (eqs. 3-4)."""

    logits: torch.Tensor

    def sample(self, uniform: torch.Tensor) -> torch.Tensor:
        """uniform (...) in [0, 1) -> token ids (...), by inverting the cumulative distribution."""
        cumulative = self.logits.softmax(-1).cumsum(-1)  # (..., V)
        wanted = uniform[..., None] * cumulative[..., -1:]
        return torch.searchsorted(cumulative, wanted, right=True)[..., 0].clamp_(max=self.logits.shape[-1] - 1)

    def mode(self) -> torch.Tensor:
        return self.logits.argmax(-1)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """Log-probability (...) of token ids (...), in nats, float64 as that of Gaussian."""
        return (self.logits.gather(-1, action[..., None])[..., 0] - self.logits.logsumexp(-1)).double()


@dataclass(frozen=True)
class Gaussian:
    """Noisy mixtures: Normal(mean, sigma^2 I), mean (..., d) float32 (eq. 6)."""

    mean: torch.Tensor
    sigma: float

    def sample(self, normal: torch.Tensor) -> torch.Tensor:
        """normal (..., d), standard normal -> actions mean + sigma * normal (..., d) (eq. 6)."""
        return self.mean + self.sigma * normal

    def mode(self) -> torch.Tensor:
        return self.mean

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """-|action - mean|^2 / (2 sigma^2), (...): eq. 10 without its constant, which no parameter changes.  About -d/2,
        so it is summed and kept in float64: float32 would round away what the replay check looks at."""
        return (action - self.mean).double().square().sum(-1) / (-2 * self.sigma**2)


# Every kind has: draw, the random numbers of one CoT step for so many rows; distribution, of the action given
# logits (..., V); embed, actions (rows, steps, ...) -> inputs (rows, steps, d); shadow, the token ids (...) that stand
# for the actions in readable text.


@dataclass(frozen=True)
class Hard:
    """Ordinary sampled tokens; an action is a token id."""

    tau: float = TAU["hard"]

    def draw(self, generator: torch.Generator, rows: int, d: int) -> torch.Tensor:
        return torch.rand(rows, generator=generator, device=generator.device)  # uniform

    def distribution(self, model, logits: torch.Tensor) -> Categorical:
        return Categorical(logits / self.tau)  # eqs. 3-4

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        return model.embed(action)

    def shadow(self, action: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return action


@dataclass(frozen=True)
class Mixture:
    """Soft (tau 0.5) and fuzzy (tau 0.0001) tokens; an action is a noisy mixture of embeddings (d,)."""

    tau: float
    sigma: float

    def draw(self, generator: torch.Generator, rows: int, d: int) -> torch.Tensor:
        return torch.randn(rows, d, generator=generator, device=generator.device)  # standard normal

    def distribution(self, model, logits: torch.Tensor) -> Gaussian:
        p = F.softmax(logits / self.tau, dim=-1)  # (..., V), eq. 3
        return Gaussian(p @ model.E.float(), self.sigma)  # (..., d), eq. 5

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        return action.to(model.E.dtype)

    def shadow(self, action: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1)  # the most likely token (appendix B)


def rms(E: torch.Tensor) -> float:
    """Root mean square of all entries of E (V, d), the unit of sigma (section 4)."""
    return E.detach().float().square().mean().sqrt().item()


def make_kind(name: str, sigma: float, tau: float | None = None) -> Hard | Mixture:
    """The kind called hard, soft or fuzzy; tau None is the paper's.  Raises InputError for another name or sigma <= 0."""
    if name not in KINDS:
        raise InputError(f"tokens: expected one of {', '.join(KINDS)}, found {name!r}")
    tau = TAU[name] if tau is None else tau
    if not tau > 0 or not sigma > 0:
        raise InputError(f"tokens {name}: expected tau > 0 and sigma > 0, found tau={tau}, sigma={sigma}")
    return Hard(tau) if name == "hard" else Mixture(tau, sigma)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy (...) in nats of softmax(logits), logits (..., V): of the model's next token, at temperature 1."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)
