"""The gradient of `minisoft.reinforce.loss`, in the memory that there is.

The loss is never formed as one number.  Its gradient is assembled backwards in three pieces, each
of which is an ordinary vector-Jacobian product:

    prompt --(1)--> keys, values, last encoding --(2)--> encodings hL of a few rows --(3)--> log pi

    (3) log pi of a few positions at a time, so that little of what has V numbers a position exists
    (2) the rows of a micro-batch, from the gradients that (3) has left in their encodings
    (1) the prompt, run once for all rows of a problem, from those that (2) has left in its keys

Dimensions: n rows of one problem, m of them at once, S positions after the prompt, k actions.
"""

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from minisoft.draws import Draws
from minisoft.model import Block, Prompt, Recording, Transformer
from minisoft.reinforce import Mismatch, action_log_probs
from minisoft.rollout import ANSWER, COT, PAD, Rollout

LOGITS_AT_ONCE = 2**24  # numbers: 64 MiB of float32 logits, whatever V
ON_GPU = 8  # times as many on a GPU, where each chunk's gradient of E and W_d is expensive


def at_once(model: Transformer, block: int = 1) -> int:
    """Positions whose logits may exist at once, a multiple of `block`."""
    numbers = LOGITS_AT_ONCE * (ON_GPU if model.E.is_cuda else 1)
    return max(numbers // model.config.vocab_size // block, 1) * block


def backward(
    model: Transformer,
    kind,
    rollouts: list[Rollout],
    advantages: list[torch.Tensor],
    scale: float,
    *,
    micro_batch: int = 16,
    terms: tuple[int, ...] = (COT, ANSWER),
) -> Mismatch:
    """Add to the model's gradients what `minisoft.reinforce.backward` does; returns the Mismatch
    of the rows with an advantage, or, if there are none, of the first rollout.

    micro_batch: rows that go through the model at once, which does not change the gradient.
    terms: the roles whose log-probabilities count in the loss.
    """
    mismatch = Mismatch()
    replay = Replay(model, kind, micro_batch, terms)
    with reproducible(model.E.device):
        for rollout, of_problem in zip(rollouts, advantages, strict=True):
            coefficients = -scale * of_problem.to(model.E.device).float()  # (n,), of eq. 14
            replay.backward(rollout, coefficients, mismatch)
    if not mismatch.tokens:
        replay.measure(rollouts[0], mismatch)
    return mismatch


@dataclass(frozen=True)
class Replay:
    """The recorded rows of a problem, run through the model once more; see `backward`."""

    model: Transformer
    kind: object
    micro_batch: int
    terms: tuple[int, ...]

    def backward(self, rollout: Rollout, coefficients: torch.Tensor, mismatch: Mismatch) -> None:
        """Differentiate  sum_g c_g ell_g, the rows with c_g = 0 left out."""
        rows = coefficients.nonzero()[:, 0]
        if not len(rows):
            return
        last, keys, values = self._prompt(rollout)
        leaf_last, *leaves = (x.detach().requires_grad_() for x in (last, *keys, *values))
        leaf_prompt = ReplayPrompt(leaves[: len(keys)], leaves[len(keys) :])
        lengths = (rollout.role[rows] != PAD).sum(1)
        for some in rows[lengths.argsort(descending=True)].split(self.micro_batch):  # alike
            part = rollout.select(some)
            hidden = self._encodings(part, leaf_prompt, leaf_last)  # (m, S, d)
            leaf = hidden.detach().requires_grad_()
            replayed = self._log_probs(part, leaf, coefficients[some])  # (3)
            mismatch.add(replayed, part.log_prob, part.role)
            if leaf.grad is not None:
                hidden.backward(leaf.grad)  # (2)
        pairs = zip((last, *keys, *values), (leaf_last, *leaves), strict=True)
        used = [(out, leaf.grad) for out, leaf in pairs if leaf.grad is not None]
        torch.autograd.backward(*zip(*used))  # (1)

    @torch.no_grad()
    def measure(self, rollout: Rollout, mismatch: Mismatch) -> None:
        """The replay mismatch of all rows, without a gradient."""
        last, keys, values = self._prompt(rollout)
        hidden = self._encodings(rollout, ReplayPrompt(keys, values), last)
        mismatch.add(self._log_probs(rollout, hidden), rollout.log_prob, rollout.role)

    def _prompt(self, rollout: Rollout) -> tuple:
        """The prompt's last encoding (1, d), and its keys and values of each layer."""
        ids = torch.tensor([rollout.prompt], device=self.model.E.device)
        hidden, prompt = self.model.run_prompt(ids)
        return hidden[:, -1], prompt.keys, prompt.values

    def _encodings(self, part: Rollout, prompt: Prompt, last: torch.Tensor) -> torch.Tensor:
        """The encodings hL (m, S, d) that predict each position of some rows, in one
        teacher-forced pass; last (1, d): that of the prompt's last position."""
        chunks = part.taken(COT).split(at_once(self.model))
        inputs = partial(checkpoint, self.kind.embed, self.model, use_reentrant=False)
        thoughts = torch.cat([inputs(actions) for actions in chunks])  # (k, d), computed again
        x = self.model.embed(part.ids)  # (m, S, d)
        x = x.masked_scatter((part.role == COT)[..., None], thoughts)
        hidden = self.model(x[:, :-1], prompt)  # (m, S-1, d), predicts positions 1..S-1
        return torch.cat((last.expand(len(x), 1, -1), hidden), dim=1)

    def _log_probs(self, part: Rollout, hidden: torch.Tensor, coefficients=None) -> torch.Tensor:
        """The log-probabilities (m, S) of the actions of some rows, float64; else 0.

        hidden (m, S, d): their encodings, a leaf.  With coefficients c (m,), what  sum c_g ell_g
        sends back through each chunk is added to the gradients of `hidden`, W_d and E at once.
        """
        log_probs = torch.zeros(part.role.shape, dtype=torch.float64, device=hidden.device)
        for term in (COT, ANSWER):
            places = (part.role == term).nonzero().split(at_once(self.model))
            actions = part.taken(term).split(at_once(self.model))
            for place, action in zip(places, actions, strict=True):
                row, position = place.T  # each (k,)
                draws = Draws(part.keys[row], position)
                encoding = hidden[row, position]
                of_chunk = action_log_probs(self.model, self.kind, term, encoding, action, draws)
                log_probs[row, position] = of_chunk.detach()
                if coefficients is not None and term in self.terms and len(place):
                    (coefficients[row] * of_chunk).sum().backward()  # eqs. 14-15
        return log_probs


class ReplayPrompt(Prompt):
    """In 16 bits on a GPU by PyTorch's FlashAttention, which aligns the causal triangle with the
    last key and needs no mask in memory.  (Its kernel for float32 does not give the same bits
    twice.)  In 16 bits on a CPU in float32: there the gradient is ten times as slow in 16."""

    def __call__(self, layer: int, q, k, v) -> torch.Tensor:
        if q.element_size() > 2:
            return super().__call__(layer, q, k, v)
        if not q.is_cuda:
            prompt = Prompt((self.keys[layer].float(),), (self.values[layer].float(),))
            return prompt(0, q.float(), k.float(), v.float()).to(q.dtype)
        from torch.nn.attention.bias import causal_lower_right  # a second: it loads the compiler

        k, v = self.before(layer, k, v)
        seen = causal_lower_right(q.shape[2], k.shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)


@contextmanager
def reproducible(device: torch.device):
    """Inside, backward passes on a GPU give the same bits each time, so that a resumed run does."""
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():  # of operations that are not so in general, but as used here
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn)
            torch.utils.deterministic.fill_uninitialized_memory = fill


class FrugalBlock(Block):
    """A layer that keeps only its inputs for the backward pass, and is computed again there."""

    def forward(self, x: torch.Tensor, rope: tuple, attend) -> torch.Tensor:
        recording = isinstance(attend, Recording)  # what is recorded is recorded once
        if recording or not torch.is_grad_enabled():
            return super().forward(x, rope, attend)
        return checkpoint(super().forward, x, rope, attend, use_reentrant=False)


def recompute_layers(model: Transformer, again: bool = True) -> None:
    """From now on compute the layers of a model again in its backward passes, or no more."""
    for layer in model.model.layers:
        layer.__class__ = FrugalBlock if again else Block
