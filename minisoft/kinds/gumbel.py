"""SofT-GRPO (arXiv 2511.06411): Gumbel noise on the log-probabilities of the best tokens, which are
fed as softmax(noisy log-probabilities / tau_g) E.
"""

from dataclasses import dataclass

import torch

from minisoft.draws import Draws
from minisoft.kinds.noise import Sparse, of_sparse, sparse
from minisoft.soft import Distribution, with_gradient


@dataclass(frozen=True)
class Gumbel(Distribution):
    """log p + Gumbel noise on the tokens that are kept: of the `width` best those that together
    have probability top_p, at least one; p is the model's, made to sum to 1 over them.  logits
    (..., V) float32; an action is `sparse`, (..., width, 2), -inf of what is not kept."""

    logits: torch.Tensor
    width: int
    top_p: float

    def sample(self, draws: Draws) -> torch.Tensor:
        return self._action(self._noise(draws))

    def mode(self) -> torch.Tensor:
        return self._action(0.0)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """sum -x - exp(-x), x the noise (...), float64."""
        ids, values = of_sparse(action)
        kept = values > -torch.inf
        x = (values - self._log_p(ids, kept)).masked_fill(~kept, 0.0).double()
        return (-x - (-x).exp()).masked_fill(~kept, 0.0).sum(-1)

    def surrogate(self, action: torch.Tensor, draws: Draws) -> torch.Tensor:
        """log_prob with the gradient of <1 - exp(-x), log p>, as `Gaussian.surrogate`."""
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
    """An action is the noisy log-probabilities of the best tokens; what is fed is their softmax at
    tau, times E.  Defaults are those of SofT-GRPO's published training."""

    tau: float  # tau_g
    width: int = 5  # its top-k
    top_p: float = 0.95

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> Gumbel:
        return Gumbel(logits, self.width, self.top_p)
