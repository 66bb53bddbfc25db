"""AdamW on float32 master weights, cosine schedule with warm-up, clipping (appendix A)."""

import math
from functools import partial

import torch

from minisoft.errors import expecting
from minisoft.model import Transformer


class Optimizer:
    """Turns the summed gradient of a step into new weights.

    bfloat16 parameters get float32 masters, since updates of 1e-6 would vanish in bfloat16; float32 parameters are
    their own masters.  betas, weight_decay and clip (largest gradient norm) are open in the paper.
    """

    def __init__(self, model: Transformer, lr: float, steps: int, warmup: int, betas,
                 weight_decay: float, clip: float):
        self.parameters = list(model.parameters())
        self.masters = [p if p.dtype == torch.float32 else p.detach().float() for p in self.parameters]
        self.by_name = dict(zip((name for name, _ in model.named_parameters()), self.masters))
        for master, p in zip(self.masters, self.parameters):
            if master is not p:  # gradients are summed in float32 too
                p.register_post_accumulate_grad_hook(partial(_hand_over, master))
        self.lr, self.steps, self.warmup, self.clip = lr, steps, warmup, clip
        with expecting("betas from 0 to below 1 and a weight decay of at least 0", "AdamW"):
            self.adamw = torch.optim.AdamW(self.masters, lr=lr, betas=tuple(betas), weight_decay=weight_decay, fused=True)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Gradients become zero tensors, so that a step without any signal needs no special case."""
        for master in self.masters:
            master.grad = torch.zeros_like(master)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to 0 at `steps` (appendix A)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def grad_norm(self) -> float:
        """Euclidean norm of the whole gradient, before clipping."""
        return torch.stack([master.grad.norm() for master in self.masters]).double().norm().item()

    @torch.no_grad()
    def step(self, step: int, grad_norm: float) -> float:
        """One update with the gradients of the masters; returns the learning rate used."""
        for master in self.masters:
            master.grad *= min(1.0, self.clip / (grad_norm + 1e-12))
        lr = self.adamw.param_groups[0]["lr"] = self.learning_rate(step)
        self.adamw.step()
        for master, p in zip(self.masters, self.parameters):
            if master is not p:
                p.copy_(master)
        self.zero_grad()
        return lr

    def state(self) -> dict[str, torch.Tensor]:
        """Masters and AdamW's moments, by parameter name."""
        return {f"{key}/{name}": value for name, master in self.by_name.items()
                for key, value in {"weight": master, **self.adamw.state[master]}.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Bring back what `state` gave, the model's weights included."""
        for (name, master), p in zip(self.by_name.items(), self.parameters):
            master.copy_(tensors[f"weight/{name}"])
            p.copy_(master)
            for key in ("step", "exp_avg", "exp_avg_sq"):
                self.adamw.state[master][key] = tensors[f"{key}/{name}"].to(master.device)


def _hand_over(master: torch.Tensor, p: torch.Tensor) -> None:
    """What a backward pass left in a bfloat16 parameter is added to its float32 master's gradient."""
    master.grad += p.grad.float()
    p.grad = None
