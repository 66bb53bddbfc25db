"""Soft tokens whose noise has the covariance of the tokens that they mix (ours): Normal(p E,
Cov_p(E) / K), p = softmax(z / tau).  The paper's noise (eq. 6) is equally large in all d
directions; this is as large as the model hesitates, along the differences of the tokens that it
hesitates between.
"""

from dataclasses import dataclass

import torch

from minisoft.draws import Draws
from minisoft.soft import Distribution, Kind, with_gradient


@dataclass(frozen=True)
class TokenGaussian(Distribution):
    """Normal(p, s^2 C), p = softmax(logits) (..., V), C = diag(p) - p p^T the covariance of a
    token's one-hot vector, s the scale: a Gaussian over weights w of tokens, which sum to 1.

    With xi ~ N(0, I):  w = p + s (sqrt(p) xi - p sum sqrt(p) xi).  With s^2 = 1 / K this has the
    mean and covariance of the mean of K tokens.

    The gradient holds C constant, as eq. 10 its variance: it is that of the expected reward where C
    comes from a frozen copy of the model that is fed the same w.  With dp = C dlogits, and C^+ C =
    1 where sums are 0, the score <w - p, C^+ dp> / s^2 is <(w - p) / s^2, dlogits>: that of K hard
    tokens, with w for the mean of their one-hots.  Its variance sums to K sum p (1 - p).

    C depends on the weights too.  log det C = sum log p on the hyperplane, and diag(1/p) is a
    generalised inverse of C, so that the whole density also has the score
    sum_i ((xi_i - sqrt(p_i) sum sqrt(p) xi)^2 - 1) / 2 dlog p_i: variance 1/2 for *every* token,
    however improbable.  That drowns the other (embedded model, V = 179, K = 3: 172 a position
    beside 0.23), so it is left out, and what is left is biased.
    """

    logits: torch.Tensor
    scale: float
    FLOOR = 1e-2  # of p, in the value of log_prob

    def sample(self, draws: Draws) -> torch.Tensor:
        p = self.mode()
        return p + self.scale * self._noise(p, draws)

    def mode(self) -> torch.Tensor:
        return self.logits.softmax(-1)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """-sum (w - p)^2 / p / (2 s^2), (...), but for what C alone decides; float64.  Below
        FLOOR p is held at it, or the rounding of improbable tokens would be all that is seen."""
        p = self.mode().detach()
        off = (action - p).double()
        value = (off.square() / p.clamp(min=self.FLOOR)).sum(-1) / (-2 * self.scale**2)
        return with_gradient(value, off / self.scale**2, self.logits)

    def surrogate(self, action: torch.Tensor, draws: Draws) -> torch.Tensor:
        """log_prob with the gradient of <(w - p) / s^2, logits>, as `Gaussian.surrogate`."""
        noise = self._noise(self.mode(), draws)  # (w - p) / s
        return with_gradient(self.log_prob(action), noise / self.scale, self.logits)

    def _noise(self, p: torch.Tensor, draws: Draws) -> torch.Tensor:
        noise = p.sqrt() * draws.normal(p.shape[-1])
        return noise - p * noise.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Covariance(Kind):
    """An action is V weights w; what is fed is w E."""

    tau: float
    width: int = 3  # K: the noise is that of the mean of so many tokens

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> TokenGaussian:
        return TokenGaussian(logits / self.tau, self.width**-0.5)

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        return model.mix(action).to(model.E.dtype)

    def weights(self, model, action: torch.Tensor, logits: torch.Tensor) -> tuple:
        """|w| / sum |w|: noisy weights may be negative."""
        size = action.abs()
        return size / size.sum(-1, keepdim=True), None
