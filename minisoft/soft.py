"""The kinds of chain-of-thought (CoT) token (section 3, eqs. 3-6, 9-10; appendix F.2).

A kind is a *distribution over actions* and a map `embed` from an action to the next input:

    kind                         distribution at a CoT step, z = hL W_d  embed(action)
    hard                         Categorical(softmax(z / tau))           E[action]
    soft, fuzzy                  Normal(softmax(z / tau) E, sigma)       action
      noise on the hidden layer  Normal(hL, sigma)                       softmax(action W_d / tau) E
      noise on (top-k) logits    Normal(z, or its k best, sigma)         softmax(action / tau) E

Rollout draws an action and embeds it, greedy inference takes the mode, training takes the
log-probability of the recorded actions, with the gradient of `score`: the same code for every kind.
Shapes: ... leading dimensions (rows, or rows x positions), V vocabulary, d width of E.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from minisoft.draws import Draws
from minisoft.errors import InputError

TAU_TOP_K = 1.0  # appendix F.2: tau with noise on the k best logits
GAMMA = 0.33  # section 4: sigma = GAMMA * rms(E)


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

    def score(self, action: torch.Tensor, draws: Draws) -> torch.Tensor:
        """log_prob (...) of actions that `sample(draws)` gave under the same weights, to be
        differentiated (eqs. 14-15)."""
        return self.log_prob(action)


@dataclass(frozen=True)
class Categorical(Distribution):
    """Ordinary tokens: probabilities softmax(logits), logits (..., V) float32 (eqs. 3-4)."""

    logits: torch.Tensor

    def sample(self, draws: Draws) -> torch.Tensor:
        """Token ids (N,), by inverting the cumulative distribution; logits (N, V)."""
        cumulative = self.logits.softmax(-1).cumsum_(-1)  # (N, V)
        level = draws.uniform()[:, None] * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, level, right=True)[:, 0]
        return ids.clamp_(max=self.logits.shape[-1] - 1)

    def mode(self) -> torch.Tensor:
        """The most likely ids (...)."""
        return self.logits.argmax(-1)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """Log-probability (...) of token ids (...), in nats, float64 as that of Gaussian."""
        return self.logits.log_softmax(-1).gather(-1, action[..., None])[..., 0].double()


@dataclass(frozen=True)
class Gaussian(Distribution):
    """Normal(mean, sigma^2 I), mean (..., n) float32 (eq. 6).

    With `top`, only the `top` largest numbers of the mean are actions, the others are -inf.
    """

    mean: torch.Tensor
    sigma: float
    top: int | None = None

    def sample(self, draws: Draws) -> torch.Tensor:
        """Actions mode + sigma * N(0, I), (N, n); mean (N, n)."""
        return self.mode() + self.sigma * draws.normal(self.mean.shape[-1])  # eq. 6

    def mode(self) -> torch.Tensor:
        """The action without noise, (..., n)."""
        if self.top is None:
            return self.mean
        best = self.mean.topk(self.top, dim=-1).indices
        rest = torch.full_like(self.mean, -torch.inf)
        return rest.scatter(-1, best, self.mean.gather(-1, best))

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """-|action - mean|^2 / (2 sigma^2), (...): eq. 10 without its constant, which no parameter
        changes.

        About -n/2, so it is summed and kept in float64: float32 would round away what the replay
        check looks at.  Which numbers are the `top` largest is read from the action.
        """
        off = self._of_top(action - self.mean, action)
        return off.double().square().sum(-1) / (-2 * self.sigma**2)  # eq. 10

    def score(self, action: torch.Tensor, draws: Draws) -> torch.Tensor:
        """The value of log_prob with the gradient of <epsilon / sigma, mean>, epsilon the noise of
        the draws.

        The gradient of eq. 10 is <(action - mean) / sigma^2, d mean>, and action - mean is
        sigma epsilon, as updates are strictly on-policy: the weights that drew the action are those
        that are differentiated.  In 16 bits the replayed mean is not the rollout's, and the
        difference, divided by sigma^2, spoils the direction; epsilon is known exactly.
        """
        with torch.no_grad():
            value = self.log_prob(action)
            epsilon = self._of_top(draws.normal(self.mean.shape[-1]), action)
        learns = torch.linalg.vecdot(epsilon / self.sigma, self.mean)  # (...), for its gradient
        return value + (learns - learns.detach())

    def _of_top(self, x: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """x with 0 where an action has no number."""
        return x if self.top is None else x.masked_fill(action == -torch.inf, 0.0)


def mixture(model, logits: torch.Tensor, tau: float) -> torch.Tensor:
    """logits (..., V) -> softmax(logits / tau) E, (..., d) float32."""
    p = F.softmax(logits / tau, dim=-1)  # (..., V), eq. 3
    return model.mix(p)  # (..., d), eq. 5


class Kind:
    """What a kind of token is: called with (tau, sigma), it says what may be done at a CoT step.

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

    def fed(self, model, action: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Logits (..., V), at temperature tau, of the mixture that an action feeds, before noise on
        the embedding; of hard tokens, that it was drawn from.  logits (..., V): of the encoding."""
        return logits

    def shadow(self, model, action: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The token ids (...) that stand for actions in readable text (appendix B)."""
        return self.fed(model, action, logits).argmax(-1)  # the most likely token


@dataclass(frozen=True)
class Hard(Kind):
    """Ordinary sampled tokens; an action is a token id.  There is no noise: sigma is ignored."""

    tau: float
    sigma: float | None = None
    mixes = False

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> Categorical:
        return Categorical(logits / self.tau)  # eqs. 3-4

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        return model.embed(action)

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


@dataclass(frozen=True)
class HiddenNoise(Mixture):
    """Noise on the final hidden layer (appendix F.2); an action is a noisy encoding hL (d,)."""

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> Gaussian:
        return Gaussian(hidden.float(), self.sigma)

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        return mixture(model, model.logits(action), self.tau).to(model.E.dtype)

    def fed(self, model, action: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return model.logits(action)


@dataclass(frozen=True)
class LogitNoise(Mixture):
    """Noise on the logits, or on the `top` best of them, the rest -inf (appendix F.2); an action
    is V noisy logits."""

    top: int | None = None

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> Gaussian:
        return Gaussian(logits, self.sigma, self.top)

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        return mixture(model, action, self.tau).to(model.E.dtype)

    def fed(self, model, action: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return action


# A new kind of token is a class like these, called with (tau, sigma), and a line in both tables.
KINDS = {"hard": Hard, "soft": Mixture, "fuzzy": Mixture}
TAU = {"hard": 1.0, "soft": 0.5, "fuzzy": 0.0001}  # section 4: training temperatures
PAPER = ("hard", "soft", "fuzzy")  # the paper's three, whatever else there is
NOISES = {"embedding": Mixture, "hidden": HiddenNoise, "logits": LogitNoise}  # of soft and fuzzy


def make_kind(
    name: str,
    sigma: float,
    tau: float | None = None,
    noise: str = "embedding",
    top_k: int | None = None,
):
    """The kind called `name`; noise and top_k say where soft and fuzzy tokens get their noise
    (appendix F.2), tau None is the paper's.

    Raises InputError for other names, sigma <= 0, tau <= 0, and top_k without noise on the logits.
    """
    _expect("tokens", name, f"one of {', '.join(KINDS)}", name in KINDS)
    _expect("noise", noise, f"one of {', '.join(NOISES)}", noise in NOISES)
    _expect("sigma", sigma, "a positive number", sigma > 0)
    wanted = noise == "logits" and top_k is not None and top_k >= 1
    _expect("top-k", top_k, "at least 1, and noise on the logits", top_k is None or wanted)
    mixes_noise = KINDS[name] is Mixture
    if tau is None:
        tau = TAU_TOP_K if top_k and mixes_noise else TAU[name]
    _expect("tau", tau, "a positive number", tau > 0)
    if mixes_noise and top_k:
        return LogitNoise(tau, sigma, top_k)
    return (NOISES[noise] if mixes_noise else KINDS[name])(tau, sigma)


def _expect(field: str, found, expected: str, good: bool) -> None:
    if not good:
        raise InputError(f"{field}: expected {expected}, found {found!r}")


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
