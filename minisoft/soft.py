"""The paper's three kinds of chain-of-thought (CoT) token (section 3, eqs. 3-6, 9-10).

A kind is a *distribution over actions* and a map `embed` from an action to the next input:

    kind          distribution at a CoT step, z = hL W_d  embed(action)
    hard          Categorical(softmax(z / tau))           E[action]
    soft, fuzzy   Normal(softmax(z / tau) E, sigma)       action

Rollout draws an action and embeds it, greedy inference takes the mode, training takes the
log-probability of the recorded actions, by `surrogate`: the same code for every kind.
`minisoft.kinds` has their names, the noise of appendix F.2, and other papers' kinds.
Shapes: ... leading dimensions (rows, or rows x positions), V vocabulary, d width of E.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from minisoft.draws import Draws

GAMMA = 0.33  # section 4: sigma = GAMMA * rms(E)
PAPER = ("hard", "soft", "fuzzy")  # the paper's kinds, whatever else there is


class Distribution:
    """What an action is drawn from."""

    def sample(self, draws: Draws) -> torch.Tensor:
        """Actions (N, ...), by the draws of N rows."""
        raise NotImplementedError

    def mode(self) -> torch.Tensor:
        """The action of greedy inference, (...)."""
        raise NotImplementedError

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """Log-probability or log-density (...) of actions, in nats, float64; a constant that no
        parameter changes may be left out."""
        raise NotImplementedError

    def surrogate(self, action: torch.Tensor, draws: Draws) -> torch.Tensor:
        """log_prob (...) of actions that `sample(draws)` gave under the same weights, to be
        differentiated (eqs. 14-15)."""
        return self.log_prob(action)


@dataclass(frozen=True)
class Categorical(Distribution):
    """Ordinary tokens: probabilities softmax(logits), logits (..., V) float32 (eqs. 3-4)."""

    logits: torch.Tensor

    def sample(self, draws: Draws) -> torch.Tensor:
        """Token ids (N,); logits (N, V)."""
        return draw(self.logits, draws.uniform()[:, None])[:, 0]

    def mode(self) -> torch.Tensor:
        """The most likely ids (...)."""
        return self.logits.argmax(-1)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """Log-probability (...) of token ids (...), in nats, float64 as that of Gaussian."""
        return self.logits.log_softmax(-1).gather(-1, action[..., None])[..., 0].double()


@dataclass(frozen=True)
class Gaussian(Distribution):
    """Normal(mean, sigma^2 I), mean (..., n) float32 (eq. 6)."""

    mean: torch.Tensor
    sigma: float

    def sample(self, draws: Draws) -> torch.Tensor:
        """Actions mean + sigma * N(0, I), (N, n); mean (N, n)."""
        return self.mean + self.sigma * draws.normal(self.mean.shape[-1])  # eq. 6

    def mode(self) -> torch.Tensor:
        """The action without noise, (..., n)."""
        return self.mean

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """-|action - mean|^2 / (2 sigma^2), (...): eq. 10 without its constant, which no parameter
        changes.

        About -n/2, so it is summed and kept in float64: float32 would round away what the replay
        check looks at.
        """
        off = action - self.mean
        return off.double().square().sum(-1) / (-2 * self.sigma**2)  # eq. 10

    def surrogate(self, action: torch.Tensor, draws: Draws) -> torch.Tensor:
        """The value of log_prob with the gradient of <epsilon / sigma, mean>, epsilon the noise of
        the draws.

        The gradient of eq. 10 is <(action - mean) / sigma^2, d mean>, and action - mean is
        sigma epsilon, as updates are strictly on-policy: the weights that drew the action are those
        that are differentiated.  In 16 bits the replayed mean is not the rollout's, and the
        difference, divided by sigma^2, spoils the direction; epsilon is known exactly.
        """
        epsilon = draws.normal(self.mean.shape[-1])
        return with_gradient(self.log_prob(action), epsilon / self.sigma, self.mean)


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Token ids (N, k) from softmax(logits), logits (N, V), by inverting the cumulative
    distribution at uniform numbers (N, k)."""
    cumulative = logits.softmax(-1).cumsum_(-1)  # (N, V)
    ids = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return ids.clamp_(max=logits.shape[-1] - 1)


def with_gradient(value, factor: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """The value (...) with the gradient of <factor, of>, factor (..., n) held constant, of
    (..., n)."""
    learns = torch.linalg.vecdot(factor.detach().to(of.dtype), of)
    return value.detach() + (learns - learns.detach())


def mixture(model, logits: torch.Tensor, tau: float) -> torch.Tensor:
    """logits (..., V) -> softmax(logits / tau) E, (..., d) float32."""
    p = F.softmax(logits / tau, dim=-1)  # (..., V), eq. 3
    return model.mix(p)  # (..., d), eq. 5


class Kind:
    """What a kind of token may do at a CoT step; a frozen dataclass with at least the field tau.

    mixes: whether it multiplies by all of E, which costs memory and time.
    """

    mixes = True

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor):
        """The Distribution of the action, given encodings hL (..., d) and their logits
        (..., V)."""
        raise NotImplementedError

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        """Actions (...) or (..., n) -> the inputs that they are, (..., d)."""
        raise NotImplementedError

    def weights(self, model, action: torch.Tensor, logits: torch.Tensor) -> tuple:
        """The mixture that an action feeds, before noise on the embedding: weights (..., m) that
        sum to 1, and the ids (..., m) of their tokens, None if they are the whole vocabulary.
        logits (..., V): of the encoding."""
        return F.softmax(logits / self.tau, dim=-1), None

    def shadow(self, model, action: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The token ids (...) that stand for actions in readable text (appendix B)."""
        return logits.argmax(-1)  # the most likely token


@dataclass(frozen=True)
class Hard(Kind):
    """Ordinary sampled tokens; an action is a token id."""

    tau: float
    mixes = False

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> Categorical:
        return Categorical(logits / self.tau)  # eqs. 3-4

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        return model.embed(action)

    def weights(self, model, action: torch.Tensor, logits: torch.Tensor) -> tuple:
        return torch.ones_like(logits[..., :1]), action[..., None]

    def shadow(self, model, action: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return action


@dataclass(frozen=True)
class Mixture(Kind):
    """Soft (tau 0.5) and fuzzy (tau 0.0001) tokens; an action is a noisy mixture (d,)."""

    tau: float
    sigma: float

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> Gaussian:
        return Gaussian(mixture(model, logits, self.tau), self.sigma)  # eqs. 5-6

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        return action.to(model.E.dtype)


def measure(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Measures (..., 3) of CoT positions: `entropy` of the logits (..., V); how many tokens the
    mixture with weights (..., m) carries, its effective support 1 / sum p^2, which is 1 for one
    token; and its largest weight."""
    support = 1 / weights.square().sum(-1)
    return torch.stack((entropy(logits), support, weights.amax(-1)), dim=-1)


def rms(x: torch.Tensor) -> float:
    """Root mean square of all entries of a tensor, such as E (V, d) (section 4)."""
    return x.detach().float().square().mean().sqrt().item()


def noise_scale(model, noise: str) -> float:
    """What sigma / gamma is, from the weights alone.

    embedding: rms(E), the paper's.  hidden: rms of the final norm's weight, which is rms(hL), as
    the norm makes the rest 1.  logits: rms(hL) rms(W_d) sqrt(d), the rms of logits if hL and the
    rows of W_d pointed in independent directions.  The paper does not give the last two.
    """
    if noise == "embedding":
        return rms(model.E)
    hidden = rms(model.model.norm.weight)
    return hidden if noise == "hidden" else hidden * rms(model.W_d) * model.E.shape[1] ** 0.5


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy (...) in nats of softmax(logits), logits (..., V): of the next token, at tau = 1."""
    p = logits.softmax(-1)  # (..., V)
    log_sum = logits.amax(-1) - p.amax(-1).log()  # log sum exp z, (...)
    return (log_sum - torch.linalg.vecdot(p, logits)).clamp_(min=0)  # minus sum p z
