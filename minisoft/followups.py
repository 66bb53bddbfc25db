"""Kinds of token that came after the paper: continuous thoughts whose randomness is few tokens'.

    kind        action                                            embed(action)
    multiplex   K ids, each drawn from softmax(z / tau)           mean of E[ids]
    covariance  w ~ Normal(p, Cov(p) / K), p = softmax(z / tau)   w E
    gumbel      log p + Gumbel noise, on the K best tokens        softmax(action / tau) E

`width` is K.  Noise on the embedding (eq. 6) is equally large in all d directions; here it is as
large as the model hesitates, along the differences of the tokens that it hesitates between.
Shapes: ... leading dimensions (rows, or rows x positions), V vocabulary, d width of E.
"""

from dataclasses import dataclass

import torch

from minisoft.draws import Draws
from minisoft.soft import Distribution, Kind, Sparse, draw, of_sparse, sparse, with_gradient


@dataclass(frozen=True)
class Independent(Distribution):
    """`width` tokens, each with probabilities softmax(logits), logits (..., V) float32."""

    logits: torch.Tensor
    width: int

    def sample(self, draws: Draws) -> torch.Tensor:
        """Token ids (N, width); logits (N, V)."""
        return draw(self.logits, draws.uniforms(self.width))

    def mode(self) -> torch.Tensor:
        """The most likely ids (..., width): `width` times the same."""
        best = self.logits.argmax(-1, keepdim=True)
        return best.expand(*best.shape[:-1], self.width)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """The sum (...) of the log-probabilities of ids (..., width)."""
        return self.logits.log_softmax(-1).gather(-1, action).double().sum(-1)


@dataclass(frozen=True)
class Multiplex(Kind):
    """Multiplex Thinking (arXiv 2601.08808): the mean of the embeddings of K tokens drawn
    independently.

    Its paper averages, c = E^T (1/K) sum_k onehot(token_k), or weights the tokens by their
    probabilities ("LM-head reweighting", not built: the input would be no function of the action).
    Greedy inference is that of hard tokens, as the mode is K times the most likely token.
    """

    tau: float
    sigma: float | None = None  # ignored: there is no noise but the draw
    width: int = 3  # K of its paper
    mixes = False

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> Independent:
        return Independent(logits / self.tau, self.width)

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        return model.embed(action).mean(-2)

    def weights(self, model, action: torch.Tensor, logits: torch.Tensor) -> tuple:
        """How often each token was drawn / K, where it stands first; 0 where it stands again."""
        same = action[..., :, None] == action[..., None, :]  # (..., K, K)
        first = ~same.tril(-1).any(-1)
        return same.float().mean(-1) * first, action

    def shadow(self, model, action: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        likeliest = logits.gather(-1, action).argmax(-1, keepdim=True)
        return action.gather(-1, likeliest)[..., 0]


@dataclass(frozen=True)
class TokenGaussian(Distribution):
    """Normal(p, sigma^2 C), p = softmax(logits) (..., V), C = diag(p) - p p^T the covariance of a
    token's one-hot vector: a Gaussian over weights w of tokens, which sum to 1.

    With xi ~ N(0, I):  w = p + sigma (sqrt(p) xi - p sum sqrt(p) xi).  With sigma^2 = 1 / K this
    has the mean and covariance of the mean of K tokens.

    The gradient holds C constant, as eq. 10 holds sigma: it is that of the expected reward where C
    comes from a frozen copy of the model that is fed the same weights w (equal to the model, as
    updates are on-policy).  With
    dp = C dlogits, and C^+ C = 1 where sums are 0, the score <w - p, C^+ dp> / sigma^2 is
    <(w - p) / sigma^2, dlogits>: that of K hard tokens, with w for the mean of their one-hots.  The
    variance of its parts sums to K sum p (1 - p).

    C depends on the weights too.  log det C = sum log p on the hyperplane, and a generalised
    inverse of C is diag(1/p), so that the whole density also has the score
    sum_i ((xi_i - sqrt(p_i) sum sqrt(p) xi)^2 - 1) / 2 dlog p_i: variance 1/2 for *every* token,
    however improbable, about V (1 + sum p^2) / 2 in all.  That drowns the other (embedded model,
    V = 179, K = 3: 172 a position beside 0.23), so it is left out.  As a gradient of the expected
    reward itself, what is left is biased.
    """

    logits: torch.Tensor
    sigma: float
    FLOOR = 1e-2  # of p, in the value of log_prob

    def sample(self, draws: Draws) -> torch.Tensor:
        """Weights w (N, V)."""
        p = self.mode()
        return p + self.sigma * self._noise(p, draws)

    def mode(self) -> torch.Tensor:
        """p (..., V)."""
        return self.logits.softmax(-1)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """-sum (w - p)^2 / p / (2 sigma^2), (...), but for what C alone decides; float64.  Below
        FLOOR p is held at it, or the rounding of improbable tokens would be all that is seen."""
        p = self.mode().detach()
        off = (action - p).double()
        value = (off.square() / p.clamp(min=self.FLOOR)).sum(-1) / (-2 * self.sigma**2)
        return with_gradient(value, off / self.sigma**2, self.logits)

    def score(self, action: torch.Tensor, draws: Draws) -> torch.Tensor:
        """The value of log_prob with the gradient of <(w - p) / sigma^2, logits>, by the noise of
        the draws, as in `Gaussian.score`."""
        noise = self._noise(self.mode(), draws)  # (w - p) / sigma
        return with_gradient(self.log_prob(action), noise / self.sigma, self.logits)

    def _noise(self, p: torch.Tensor, draws: Draws) -> torch.Tensor:
        noise = p.sqrt() * draws.normal(p.shape[-1])
        return noise - p * noise.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Covariance(Kind):
    """Soft tokens whose noise has the covariance of the tokens that they mix (ours): Normal(p E,
    Cov_p(E) / K), beside the paper's Normal(p E, sigma^2 I) (eq. 6); an action is V weights."""

    tau: float
    sigma: float | None = None  # ignored: K decides
    width: int = 3  # K: the noise is that of the mean of so many tokens

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> TokenGaussian:
        return TokenGaussian(logits / self.tau, self.width**-0.5)

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        return model.mix(action).to(model.E.dtype)

    def weights(self, model, action: torch.Tensor, logits: torch.Tensor) -> tuple:
        """|w| / sum |w|: noisy weights may be negative."""
        size = action.abs()
        return size / size.sum(-1, keepdim=True), None


@dataclass(frozen=True)
class Gumbel(Distribution):
    """log p + Gumbel noise on the tokens that are kept: of the `width` best those that together
    have probability top_p, and at least one; p is that of the model, made to sum to 1 over them.

    logits (..., V) float32; an action is `sparse`, (..., width, 2), -inf of what is not kept.
    """

    logits: torch.Tensor
    width: int
    top_p: float

    def sample(self, draws: Draws) -> torch.Tensor:
        return self._action(self._noise(draws))

    def mode(self) -> torch.Tensor:
        """log p, without noise."""
        return self._action(0.0)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """sum -x - exp(-x), x the noise (...), float64."""
        ids, values = of_sparse(action)
        kept = values > -torch.inf
        x = (values - self._log_p(ids, kept)).masked_fill(~kept, 0.0).double()
        return (-x - (-x).exp()).masked_fill(~kept, 0.0).sum(-1)

    def score(self, action: torch.Tensor, draws: Draws) -> torch.Tensor:
        """The value of log_prob with the gradient of <1 - exp(-x), log p>, by the noise x of the
        draws, as in `Gaussian.score`."""
        ids, values = of_sparse(action)
        kept = values > -torch.inf
        factor = (1 - (-self._noise(draws)).exp()).masked_fill(~kept, 0.0)
        log_p = self._log_p(ids, kept).masked_fill(~kept, 0.0)
        return with_gradient(self.log_prob(action), factor, log_p)

    def _noise(self, draws: Draws) -> torch.Tensor:
        uniform = draws.uniforms(self.width).double() + 2**-25  # never 0
        return -(-uniform.log()).log().float()

    def _action(self, noise) -> torch.Tensor:
        p, ids = self.logits.softmax(-1).topk(self.width)
        kept = p.cumsum(-1) - p < self.top_p  # those before it have less than top_p
        return sparse(ids, self._log_p(ids, kept) + noise)

    def _log_p(self, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """(..., width), -inf of what is not kept."""
        return self.logits.gather(-1, ids).masked_fill(~kept, -torch.inf).log_softmax(-1)


@dataclass(frozen=True)
class GumbelSoftmax(Sparse):
    """SofT-GRPO (arXiv 2511.06411): Gumbel noise on the log-probabilities of the best tokens,
    softmax at tau_g = 0.1; settings of its published training: top-k 5, top-p 0.95."""

    tau: float  # tau_g
    sigma: float | None = None  # ignored
    width: int = 5  # its top-k
    top_p: float = 0.95

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> Gumbel:
        return Gumbel(logits, self.width, self.top_p)
