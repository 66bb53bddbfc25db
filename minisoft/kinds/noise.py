"""Soft and fuzzy tokens with their noise elsewhere (the paper's appendix F.2).

noise             distribution                                 embed(action)
hidden            Normal(hL, sigma)                            softmax(action W_d / tau) E
logits            Normal(z, sigma)                             softmax(action / tau) E
logits, --top-k   Normal(z, sigma) of the k best, others -inf  softmax(action / tau) E
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from minisoft.draws import Draws
from minisoft.soft import Gaussian, Kind, Mixture, mixture, with_gradient


@dataclass(frozen=True)
class LogitNoise(Mixture):
    """An action is V noisy logits."""

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> Gaussian:
        return Gaussian(logits, self.sigma)

    def noisy(self, model, action: torch.Tensor) -> torch.Tensor:
        """The noisy logits (..., V) of actions."""
        return action

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        return mixture(model, self.noisy(model, action), self.tau).to(model.E.dtype)

    def weights(self, model, action: torch.Tensor, logits: torch.Tensor) -> tuple:
        return F.softmax(self.noisy(model, action) / self.tau, dim=-1), None

    def shadow(self, model, action: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return self.noisy(model, action).argmax(-1)


@dataclass(frozen=True)
class HiddenNoise(LogitNoise):
    """An action is a noisy encoding hL (d,)."""

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> Gaussian:
        return Gaussian(hidden.float(), self.sigma)

    def noisy(self, model, action: torch.Tensor) -> torch.Tensor:
        return model.logits(action)


def sparse(ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """k token ids (..., k), exact in float32 below 2^24, and a number of each -> (..., k, 2)."""
    return torch.stack((ids.float(), values), dim=-1)


def of_sparse(action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids and the numbers, each (..., k)."""
    return action[..., 0].long(), action[..., 1]


class Sparse(Kind):
    """Kinds whose action is numbers of k tokens (k, 2), as `sparse` has them, and whose input is
    softmax(numbers / tau) E."""

    mixes = False

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        p, ids = self.weights(model, action, None)
        return torch.einsum("...k,...kd->...d", p, model.embed(ids).float()).to(model.E.dtype)

    def weights(self, model, action: torch.Tensor, logits: torch.Tensor) -> tuple:
        ids, values = of_sparse(action)
        return F.softmax(values / self.tau, dim=-1), ids

    def shadow(self, model, action: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        ids, values = of_sparse(action)
        return ids.gather(-1, values.argmax(-1, keepdim=True))[..., 0]


@dataclass(frozen=True)
class TopGaussian(Gaussian):
    """Normal(mean, sigma^2) on the `top` largest numbers of the mean (..., n), `sparse`."""

    top: int = 1

    def sample(self, draws: Draws) -> torch.Tensor:
        best = self.mean.topk(self.top).indices
        noise = draws.normal(self.mean.shape[-1]).gather(-1, best)
        return sparse(best, self.mean.gather(-1, best) + self.sigma * noise)

    def mode(self) -> torch.Tensor:
        values, best = self.mean.topk(self.top)
        return sparse(best, values)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        # of the recorded numbers: which are the `top` largest is part of the action
        ids, values = of_sparse(action)
        return Gaussian(self.mean.gather(-1, ids), self.sigma).log_prob(values)

    def score(self, action: torch.Tensor, draws: Draws) -> torch.Tensor:
        ids, _ = of_sparse(action)
        epsilon = draws.normal(self.mean.shape[-1]).gather(-1, ids)
        mean = self.mean.gather(-1, ids)
        return with_gradient(self.log_prob(action), epsilon / self.sigma, mean)


@dataclass(frozen=True)
class TopLogitNoise(Sparse):
    """Noise on the `top` best logits, the rest -inf."""

    tau: float
    sigma: float
    top: int

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> TopGaussian:
        return TopGaussian(logits, self.sigma, self.top)
