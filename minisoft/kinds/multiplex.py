"""Multiplex Thinking (arXiv 2601.08808): the mean of the embeddings of K tokens, each drawn from
softmax(z / tau).  Its paper also weights them by their probabilities ("LM-head reweighting", not
built: the input would be no function of the action)."""

from dataclasses import dataclass

import torch

from minisoft.draws import Draws
from minisoft.soft import Distribution, Kind, draw


@dataclass(frozen=True)
class Independent(Distribution):
    """`width` tokens, each with probabilities softmax(logits), logits (..., V) float32."""

    logits: torch.Tensor
    width: int

    def sample(self, draws: Draws) -> torch.Tensor:
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
    """An action is the ids of K tokens (K,); what is fed is the mean of their embeddings.  Greedy
    inference is that of hard tokens, as the mode is K times the most likely token."""

    tau: float
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
