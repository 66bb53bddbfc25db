"""REINFORCE with a leave-one-out baseline over recorded rollouts (section 3, appendix A, eqs. 8-15).

Dimensions: P problems, G samples of each, n rows of one problem, S positions after the prompt, d width, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from minisoft.model import PromptCache, Transformer
from minisoft.rollout import ANSWER, COT, PAD, Rollout
from minisoft.soft import Categorical

LOGITS_AT_ONCE = 2**24  # numbers: 64 MiB of float32 logits, whatever V
TERMS = {"both": (COT, ANSWER), "cot": (COT,), "answer": (ANSWER,)}  # which log-probabilities learn
ESTIMATORS = ("rloo", "prefix")  # of the gradient, see `advantages`


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards (P, G) -> advantages (P, G): reward minus the mean reward of the other G - 1 samples (eqs. 12-13).

    Raises ValueError for G < 2, where there is no other sample.
    """
    G = rewards.shape[-1]
    if G < 2:
        raise ValueError(f"leave_one_out: expected at least 2 samples a problem, found {G}")
    return rewards - (rewards.sum(-1, keepdim=True) - rewards) / (G - 1)


def advantages(estimator: str, rewards: torch.Tensor, rollout: Rollout) -> torch.Tensor:
    """Rewards (G,) of all samples of a problem -> advantages (n,) or (n, S) of the rows of a Rollout, float32, by one of
    ESTIMATORS, which both have the gradient of eq. 8 as their mean: rloo, the paper's, or prefix (`prefix_advantages`, which
    needs the Rollout of all samples)."""
    if estimator == "prefix":
        return prefix_advantages(rewards, rollout).float()
    return leave_one_out(rewards)[rollout.samples.start: rollout.samples.stop].float()


def prefix_advantages(rewards: torch.Tensor, rollout: Rollout, prior: float = 1.0) -> torch.Tensor:
    """Rewards (G,) of all samples of a problem -> advantages (G, S), one for each position.

    The baseline at a position is the mean reward of those *other* samples whose (shadow) tokens before it are the same;
    the mean of all others (eq. 13) counts as `prior` more of them.  It does not depend on the sample's action there, so
    the gradient stays unbiased; what the tokens before have already decided no longer adds to its variance.
    """
    others = 1 - torch.eye(len(rewards), dtype=rewards.dtype, device=rewards.device)  # (G, G)
    whole = rewards - leave_one_out(rewards)  # (G,), eq. 13
    tokens = rollout.ids * 4 + rollout.role  # (G, S)
    same = (tokens[:, None] == tokens).to(rewards.dtype).cumprod(-1)  # (G, G, S): up to and with this position
    same = F.pad(same[..., :-1], (1, 0), value=1.0) * others[..., None]  # before it
    baseline = (torch.einsum("ghs,h->gs", same, rewards) + prior * whole[:, None]) / (same.sum(1) + prior)
    return rewards[:, None] - baseline


@dataclass
class Mismatch:
    """|log-prob replayed - log-prob at rollout| over action tokens: 0 if rollout and replay are the same function."""

    total: float = 0.0
    tokens: int = 0
    largest: float = 0.0

    def add(self, difference: torch.Tensor) -> None:
        self.total += difference.abs().sum().item()
        self.tokens += difference.numel()
        self.largest = max(self.largest, difference.abs().max().item())

    def __add__(self, other: "Mismatch") -> "Mismatch":
        return Mismatch(self.total + other.total, self.tokens + other.tokens, max(self.largest, other.largest))

    def over_ranks(self, world) -> "Mismatch":
        """The same over the tokens of all ranks."""
        parts = world.gather(torch.tensor([[self.total, self.tokens, self.largest]], dtype=torch.float64))
        return Mismatch(parts[:, 0].sum().item(), int(parts[:, 1].sum()), parts[:, 2].max().item())


def log_prob(model: Transformer, kind, rollout: Rollout, rows: torch.Tensor, hidden: torch.Tensor,
             weight: torch.Tensor | None = None, terms: tuple[int, ...] = (COT, ANSWER)) -> torch.Tensor:
    """Log-probability (m, S) of every recorded action of the given rows (m,), from their `encodings` hidden (m, S, d)
    (eqs. 9-10); positions that are no action get 0.

    What has V numbers a position exists for one chunk of positions at a time.  Hence with weight (m, S) each chunk is
    differentiated at once: the gradients of  sum_mS weight log_prob, over positions whose role is in `terms`, are added to
    those of `hidden`, a leaf, and of the decoding and embedding matrices.
    """
    role, chunk = rollout.role[rows, : hidden.shape[1]], _chunk(model)
    out = torch.zeros(role.shape, dtype=torch.float64, device=hidden.device)
    distribution = {COT: lambda h: kind.distribution(model, h, model.logits(h)),
                    ANSWER: lambda h: Categorical(model.logits(h))}
    actions = {COT: _thoughts(rollout, rows, role == COT), ANSWER: rollout.ids[rows, : role.shape[1]][role == ANSWER]}
    for term in (COT, ANSWER):
        for at, action in zip((role == term).nonzero().split(chunk), actions[term].split(chunk)):
            row, position = at.T  # each (chunk,)
            score = distribution[term](hidden[row, position]).log_prob(action)  # (chunk,)
            out[row, position] = score.detach()
            if weight is not None and term in terms and len(at):
                (weight[row, position] * score).sum().backward()
    return out


def encodings(model: Transformer, kind, rollout: Rollout, rows: torch.Tensor, prompt: PromptCache,
              last: torch.Tensor) -> torch.Tensor:
    """The encodings hL (m, S, d) that predict each recorded position of the given rows (m,), in one teacher-forced pass.

    prompt, last (1, d): keys and values of the prompt and the encoding of its last position.  The inputs are the
    recorded ones, so there is no back-propagation through time.
    """
    S = int((rollout.role[rows] != PAD).sum(1).max())
    thinking = rollout.role[rows, :S] == COT
    thoughts = _in_chunks(model, lambda actions: kind.embed(model, actions), _thoughts(rollout, rows, thinking))
    x = model.embed(rollout.ids[rows, :S])  # (m, S, d)
    x = x.masked_scatter(thinking[..., None], thoughts)
    hidden = model(x[:, :-1], prompt)  # (m, S-1, d), predicts positions 1..S-1
    return torch.cat((last.expand(len(rows), 1, -1), hidden), dim=1)


def _thoughts(rollout: Rollout, rows: torch.Tensor, thinking: torch.Tensor) -> torch.Tensor:
    """The recorded actions of all CoT positions of the given rows, one after the other; thinking (m, S)."""
    C = min(thinking.shape[1], rollout.actions.shape[1])
    return rollout.actions[rows, :C][thinking[:, :C]]


def _chunk(model) -> int:
    """Positions whose logits may exist at once."""
    return max(1, LOGITS_AT_ONCE // model.config.vocab_size)


def _in_chunks(model, function, x) -> torch.Tensor:
    """function(x), one chunk of its first dimension at a time, in the backward pass too, where it is computed again."""
    return torch.cat([checkpoint(function, part, use_reentrant=False) for part in x.split(_chunk(model))])


def backward(model: Transformer, kind, rollout: Rollout, advantages: torch.Tensor, scale: float, micro_batch: int,
             mismatch: Mismatch, terms: tuple[int, ...] = (COT, ANSWER)) -> None:
    """Add to the gradients those of  -scale * sum_g A_g * l_g  (eqs. 14-15), l_g the *sum* of the log-probs of row g.

    advantages (n,), or (n, S) where they differ by position, constants; scale 1 / (B G), global; rows go through the model
    `micro_batch` at a time, which does not change the gradient; terms: which roles count in l_g.  The prompt is run once:
    the gradients that the rows send into its keys and values add up there and go back through it together.  Rows with
    advantage 0 are left out; `mismatch` collects the others' replay mismatch.
    """
    advantages = advantages.view(len(advantages), -1).expand(rollout.role.shape)  # (n, S)
    useful = advantages.any(1).nonzero()[:, 0]
    if not len(useful):
        return
    whole, cache = model.prefill(torch.tensor([rollout.prompt], device=model.E.device))
    last = whole[:, -1].detach().requires_grad_()  # (1, d)
    prompt = cache.detached()
    useful = useful[(rollout.role[useful] != 0).sum(1).argsort(descending=True)]  # rows of similar length together
    for rows in useful.split(micro_batch):
        hidden = encodings(model, kind, rollout, rows, prompt, last)  # (m, S, d)
        leaf = hidden.detach().requires_grad_()
        replayed = log_prob(model, kind, rollout, rows, leaf, -scale * advantages[rows], terms)  # (m, S), eqs. 9, 10, 14
        if leaf.grad is not None:
            hidden.backward(leaf.grad)
        role = rollout.role[rows, : replayed.shape[1]]
        mismatch.add((replayed - rollout.log_prob[rows, : replayed.shape[1]])[(role == COT) | (role == ANSWER)])
    leaves = [last, *prompt.keys, *prompt.values]
    outputs = [whole[:, -1], *cache.keys, *cache.values]
    used = [(o, leaf.grad) for o, leaf in zip(outputs, leaves) if leaf.grad is not None]
    torch.autograd.backward([o for o, _ in used], [gradient for _, gradient in used])


@torch.no_grad()
def measure_mismatch(model: Transformer, kind, rollout: Rollout, mismatch: Mismatch) -> None:
    """The replay mismatch of one rollout without a gradient, for steps in which every advantage is zero."""
    hidden, cache = model.prefill(torch.tensor([rollout.prompt], device=model.E.device))
    rows = torch.arange(len(rollout.ids), device=model.E.device)
    prompt = PromptCache(keys=cache.keys, values=cache.values)
    replayed = log_prob(model, kind, rollout, rows, encodings(model, kind, rollout, rows, prompt, hidden[:, -1]))
    mismatch.add((replayed - rollout.log_prob)[(rollout.role == COT) | (rollout.role == ANSWER)])
