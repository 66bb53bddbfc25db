"""AdamW on float32 masters, cosine schedule with warm-up, clipping (appendix A)."""

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from minisoft.model import Transformer

MESSAGE = 2**21  # numbers: a model with fewer sends one message, each of which has its price


@dataclass(frozen=True)
class Schedule:
    """Peak learning rate, number of updates, those of linear warm-up, AdamW's betas and weight
    decay, and the largest norm of the gradient; the last three are open in the paper."""

    lr: float
    steps: int
    warmup: int
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def learning_rate(self, step: int) -> float:
        """Of update number `step`, from 0: linear warm-up, then a cosine down to 0 at `steps`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Optimizer:
    """Turns the gradients of a step, summed over backward passes and ranks, into new weights.

    Every rank holds the whole model, which rollouts need, and the whole sum of its backward passes,
    in float32 on GPUs, in float64 on CPUs, so that no bit of a weight depends on the number of
    ranks that share no problem.  float32 masters (float32 parameters are their own), AdamW's
    moments and the gradient are whole or, sharded, one of `world.size` equal flat pieces of each
    parameter (the last one padded with zeros), from which the new weights are put together.
    """

    def __init__(self, model: Transformer, schedule: Schedule, world, sharded: bool = False):
        self.world, self.schedule = world, schedule
        self.parameters = dict(model.named_parameters())
        self.pieces = world.size if sharded else 1
        self.number = world.rank if sharded else 0  # of this rank's piece
        self.masters = {n: self._piece(p.detach()).float() for n, p in self.parameters.items()}
        self.sums: dict[str, torch.Tensor] = {}  # of this rank's backward passes
        self.adamw = torch.optim.AdamW(
            list(self.masters.values()),
            lr=schedule.lr,
            betas=tuple(schedule.betas),
            weight_decay=schedule.weight_decay,
            fused=True,
        )

    @contextmanager
    def summing(self):
        """Inside, what a backward pass leaves in a parameter's `grad` goes into its sum at once."""
        with ExitStack() as hooks:
            for name, p in self.parameters.items():
                hook = p.register_post_accumulate_grad_hook(partial(self._take, name))
                hooks.enter_context(hook)
            yield

    def _take(self, name: str, p: torch.Tensor) -> None:
        if name not in self.sums:
            self.sums[name] = self._zeros(p)
        self.sums[name] += p.grad
        p.grad = None

    def _piece(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's piece (n,) of a parameter (...); all of it, flat, if there is one piece."""
        flat = x.flatten()
        if self.pieces == 1:
            return flat
        padding = -x.numel() % self.pieces
        return F.pad(flat, (0, padding)).chunk(self.pieces)[self.number].clone()

    @staticmethod
    def _zeros(p: torch.Tensor) -> torch.Tensor:
        dtype = torch.float64 if p.device.type == "cpu" else torch.float32
        return torch.zeros(p.shape, dtype=dtype, device=p.device)

    def discard(self) -> None:
        """Forget the backward passes since the last `collect`, also one that ended halfway."""
        self.sums.clear()
        for p in self.parameters.values():
            p.grad = None

    def collect(self) -> float:
        """The backward passes of all ranks become the gradient; returns its Euclidean norm."""
        names = [*self.parameters]
        together = sum(p.numel() for p in self.parameters.values()) <= MESSAGE
        for message in [names] if together else [[name] for name in names]:
            parts = [
                self.sums.pop(name) if name in self.sums else self._zeros(self.parameters[name])
                for name in message
            ]
            flat = torch.cat([x.flatten() for x in parts]) if together else parts[0].flatten()
            sums = self.world.sum(flat).split([x.numel() for x in parts])
            for name, x in zip(message, sums):
                self.masters[name].grad = self._piece(x).float()
        return self.grad_norm()

    def grad_norm(self, *names: str) -> float:
        """Euclidean norm of the gradient, before clipping: of the parameters called so, or all."""
        gradients = [self.masters[name].grad for name in names or self.masters]
        norms = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in gradients]
        squares = torch.stack(norms).square().sum()
        return math.sqrt(self.world.sum(squares) if self.pieces > 1 else squares)

    def not_finite(self) -> list[str]:
        """Names of the parameters whose gradient, or this rank's piece, has NaN or infinities."""
        return [name for name, x in self.masters.items() if not x.grad.isfinite().all()]

    @torch.no_grad()
    def update(self, step: int, grad_norm: float) -> float:
        """Update number `step` with the collected gradient, clipped; returns the learning rate."""
        for master in self.masters.values():
            master.grad *= min(1.0, self.schedule.max_grad_norm / (grad_norm + 1e-12))
        lr = self.schedule.learning_rate(step)
        self.adamw.param_groups[0]["lr"] = lr
        self.adamw.step()
        self.adamw.zero_grad()
        self._hand_out()
        return lr

    @torch.no_grad()
    def _hand_out(self) -> None:
        """Masters -> the model's weights."""
        for name, p in self.parameters.items():
            piece = self.masters[name].to(p.dtype)
            if self.pieces > 1:
                piece = self.world.join(piece)[: p.numel()]
            if piece.data_ptr() != p.data_ptr():
                p.copy_(piece.view_as(p))

    def state(self) -> dict[str, torch.Tensor]:
        """This rank's masters and moments, flat, float32: "weight/NAME", "exp_avg/NAME", ..."""
        tensors = {}
        for name, master in self.masters.items():
            tensors[f"weight/{name}"] = master
            moments = {key: x for key, x in self.adamw.state[master].items() if key != "step"}
            tensors |= {f"{key}/{name}": x for key, x in moments.items()}
        return tensors

    @torch.no_grad()
    def load(self, read, step: int) -> None:
        """Bring back what `state` gave after `step` updates, the model's weights included.
        read(key): the flat tensor of that key, whole; what is behind its numbers is dropped."""
        for name, p in self.parameters.items():
            master = self.masters[name]
            saved = {"step": torch.tensor(float(step), device=master.device)}
            for key in ("weight", "exp_avg", "exp_avg_sq"):
                whole = read(f"{key}/{name}")[: p.numel()]
                saved[key] = self._piece(whole).to(master)
            master.copy_(saved.pop("weight"))
            self.adamw.state[master] = saved
        self._hand_out()
