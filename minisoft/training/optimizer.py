"""AdamW on float32 master weights, cosine schedule with warm-up, clipping (appendix A), whole on every rank or in pieces."""

import math

import torch
import torch.nn.functional as F

from minisoft.errors import expecting
from minisoft.model import Transformer

MESSAGE = 2**21  # numbers that travel together
ABOVE = 4e9  # parameters from which on masters and moments are kept in pieces where nothing else is said


class Optimizer:
    """Turns the gradients of a step, summed over backward passes and ranks, into new weights.

    Every rank holds the whole model, because rollouts need it at every token, and the whole sum of its backward passes.  What
    an update needs besides are float32 masters (float32 parameters are their own), AdamW's two moments and the gradient
    summed over ranks: all of it on every rank or, sharded, of every parameter the rank's own one of `world.size` equal
    pieces (flat, the last one padded with zeros); the new weights are then put together once a step.

    Backward passes are summed in float64 on CPUs, so that no bit of a weight depends on the number of ranks where none has a
    part of a problem only, and in float32 on GPUs.
    betas, weight_decay and clip (largest gradient norm) are open in the paper.
    """

    def __init__(self, model: Transformer, lr: float, steps: int, warmup: int, betas, weight_decay: float, clip: float,
                 world, sharded: bool = False):
        self.world, self.parameters = world, dict(model.named_parameters())
        self.pieces, self.mine = (world.size, world.rank) if sharded else (1, 0)
        self.masters = {name: self._piece(p.detach()).float() for name, p in self.parameters.items()}
        self.sums: dict[str, torch.Tensor] = {}  # of what backward passes of this rank have left, each like its parameter
        for name, p in self.parameters.items():
            p.register_post_accumulate_grad_hook(lambda p, name=name: self._take(name, p))
        self.messages: list[list[str]] = []  # names of parameters: each message has its price
        for name, p in self.parameters.items():
            if not self.messages or sum(self.parameters[other].numel() for other in self.messages[-1]) + p.numel() > MESSAGE:
                self.messages.append([])
            self.messages[-1].append(name)
        self.lr, self.steps, self.warmup, self.clip = lr, steps, warmup, clip
        with expecting("betas from 0 to below 1 and a weight decay of at least 0", "AdamW"):
            self.adamw = torch.optim.AdamW(list(self.masters.values()), lr=lr, betas=tuple(betas), weight_decay=weight_decay,
                                           fused=True)

    def _piece(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's piece (n,) of a parameter (...); the parameter itself, flat, if there is one piece."""
        flat = F.pad(x.flatten(), (0, -x.numel() % self.pieces)) if x.numel() % self.pieces else x.flatten()
        return flat if self.pieces == 1 else flat.chunk(self.pieces)[self.mine].clone()

    def _take(self, name: str, p: torch.Tensor) -> None:
        """What a backward pass has left in a parameter goes into its sum."""
        if name not in self.sums:
            self.sums[name] = self._zeros(p)
        self.sums[name] += p.grad
        p.grad = None

    @staticmethod
    def _zeros(p: torch.Tensor) -> torch.Tensor:
        return torch.zeros(p.shape, dtype=torch.float64 if p.device.type == "cpu" else torch.float32, device=p.device)

    def discard(self) -> None:
        """Forget the backward passes since the last `collect`, also one that ended halfway."""
        self.sums.clear()
        for p in self.parameters.values():
            p.grad = None

    def collect(self) -> float:
        """The backward passes of all ranks become part of the gradient; returns the Euclidean norm of this part."""
        parts = []
        for names in self.messages:
            totals = [self.sums.pop(name) if name in self.sums else self._zeros(self.parameters[name]) for name in names]
            sizes = [total.numel() for total in totals]
            message = torch.cat([total.flatten() for total in totals]) if len(totals) > 1 else totals[0].flatten()
            parts += [self._piece(total).float() for total in self.world.sum(message).split(sizes)]
        for master, part in zip(self.masters.values(), parts):
            master.grad = part if master.grad is None else master.grad.add_(part)
        return self._norm(parts)

    def _norm(self, pieces: list[torch.Tensor]) -> float:
        squares = torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64) for x in pieces]).square().sum()
        return math.sqrt(self.world.sum(squares) if self.pieces > 1 else squares)

    def grad_norm(self, *names: str) -> float:
        """Euclidean norm of the gradient, before clipping: of the parameters called so, or of all."""
        return self._norm([self.masters[name].grad for name in names or self.masters])

    def not_finite(self) -> list[str]:
        """Names of the parameters whose gradient has NaN or infinities; with pieces, of this rank's."""
        return [name for name, master in self.masters.items() if not master.grad.isfinite().all()]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to 0 at `steps` (appendix A)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    @torch.no_grad()
    def step(self, step: int, grad_norm: float) -> float:
        """One update with the collected gradient, clipped; returns the learning rate used."""
        for master in self.masters.values():
            master.grad *= min(1.0, self.clip / (grad_norm + 1e-12))
        lr = self.adamw.param_groups[0]["lr"] = self.learning_rate(step)
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
        """This rank's masters and moments, flat, float32, as "weight/NAME", "exp_avg/NAME", "exp_avg_sq/NAME"."""
        return {f"{key}/{name}": value for name, master in self.masters.items()
                for key, value in {"weight": master, **self.adamw.state[master]}.items() if key != "step"}

    @torch.no_grad()
    def load(self, read, step: int) -> None:
        """Bring back what `state` gave after `step` updates, the model's weights included, from read(key, first, last):
        numbers first..last - 1 of the flat tensor of that key, by however many ranks it was saved."""
        for name, p in self.parameters.items():
            master = self.masters[name]
            first = self.mine * len(master)
            last = max(first, min(first + len(master), p.numel()))
            get = lambda key: F.pad(read(f"{key}/{name}", first, last), (0, len(master) - (last - first))).to(master.device)
            master.copy_(get("weight"))
            if step:
                self.adamw.state[master] = {"step": torch.tensor(float(step), device=master.device),
                                            "exp_avg": get("exp_avg"), "exp_avg_sq": get("exp_avg_sq")}
        self._hand_out()
