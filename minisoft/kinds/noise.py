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
from minisoft.soft import Gaussian, Kind, with_gradient


def sparse(ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """k token ids (..., k), exact in float32 below 2^24, and a number of each -> (..., k, 2)."""
    return torch.stack((ids.float(), values), dim=-1)


def of_sparse(action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids and the numbers, each (..., k)."""
    return action[..., 0].long(), action[..., 1]


class NoisyLogits(Kind):
    """Kinds that are fed softmax(noisy logits / tau) E."""

    def noisy(self, model, action: torch.Tensor) -> tuple:
        """Ids (..., m), None for all V, and noisy logits (..., m): here those of the action."""
        return None, action

    def embed(self, model, action: torch.Tensor) -> torch.Tensor:
        p, ids = self.weights(model, action, None)
        if ids is None:
            return model.mix(p).to(model.E.dtype)
        return torch.einsum("...k,...kd->...d", p, model.embed(ids).float()).to(model.E.dtype)

    def weights(self, model, action: torch.Tensor, logits: torch.Tensor) -> tuple:
        ids, noisy = self.noisy(model, action)
        return F.softmax(noisy / self.tau, dim=-1), ids

    def shadow(self, model, action: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        ids, noisy = self.noisy(model, action)
        best = noisy.argmax(-1, keepdim=True)
        return (best if ids is None else ids.gather(-1, best))[..., 0]


@dataclass(frozen=True)
class LogitNoise(NoisyLogits):
    """An action is V noisy logits."""

    tau: float
    sigma: float

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> Gaussian:
        return Gaussian(logits, self.sigma)


@dataclass(frozen=True)
class HiddenNoise(LogitNoise):
    """An action is a noisy encoding hL (d,)."""

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> Gaussian:
        return Gaussian(hidden.float(), self.sigma)

    def noisy(self, model, action: torch.Tensor) -> tuple:
        return None, model.logits(action)


class Sparse(NoisyLogits):
    """An action is noisy logits of k tokens (k, 2), as `sparse` has them."""

    mixes = False

    def noisy(self, model, action: torch.Tensor) -> tuple:
        return of_sparse(action)


@dataclass(frozen=True)
class TopGaussian(Gaussian):
    """Normal(mean, sigma^2) on the k largest numbers of the mean (..., n), `sparse`."""

    k: int = 1

    def sample(self, draws: Draws) -> torch.Tensor:
        best = self.mean.topk(self.k).indices
        noise = draws.normal(self.mean.shape[-1]).gather(-1, best)
        return sparse(best, self.mean.gather(-1, best) + self.sigma * noise)

    def mode(self) -> torch.Tensor:
        values, best = self.mean.topk(self.k)
        return sparse(best, values)

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        # of the recorded numbers: which are the largest is part of the action
        ids, values = of_sparse(action)
        return Gaussian(self.mean.gather(-1, ids), self.sigma).log_prob(values)

    def surrogate(self, action: torch.Tensor, draws: Draws) -> torch.Tensor:
        ids, _ = of_sparse(action)
        epsilon = draws.normal(self.mean.shape[-1]).gather(-1, ids)
        return with_gradient(self.log_prob(action), epsilon / self.sigma, self.mean.gather(-1, ids))


@dataclass(frozen=True)
class TopLogitNoise(Sparse, LogitNoise):
    """Noise on the `top_k` best logits, the rest -inf."""

    top_k: int

    def distribution(self, model, hidden: torch.Tensor, logits: torch.Tensor) -> TopGaussian:
        return TopGaussian(logits, self.sigma, self.top_k)
