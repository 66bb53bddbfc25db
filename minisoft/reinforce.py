"""REINFORCE with a leave-one-out baseline over recorded rollouts (section 3, appendix A).

Here stand the definitions: eq. 14 written out, every row's whole text in one pass, differentiated
by autograd, where a CoT action's term has the gradient of its kind's `surrogate` (`soft.Gaussian`).
`minisoft.engine.replay` gives the same gradient with less memory and time, by the same
`action_log_probs`.
Dimensions: B problems, G samples of each, n rows of one problem, S positions after the prompt,
P positions of the prompt, d width.
"""

from dataclasses import dataclass

import torch

from minisoft.draws import Draws
from minisoft.rollout import ANSWER, COT, Rollout
from minisoft.soft import Categorical


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards (..., G) -> advantages (..., G): reward minus the mean reward of the other G - 1
    samples of the same problem.

    Raises ValueError for G < 2, where there is no other sample.
    """
    G = rewards.shape[-1]
    if G < 2:
        raise ValueError(f"leave_one_out: expected at least 2 samples a problem, found {G}")
    baseline = (rewards.sum(-1, keepdim=True) - rewards) / (G - 1)  # eq. 13
    differ = (rewards != rewards[..., :1]).any(-1, keepdim=True)
    return (rewards - baseline) * differ  # eq. 12; 0 for equal ones, however they are rounded


def normalised(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards (..., G) -> GRPO's advantages (..., G), (R - mean) / std over the G samples of the
    same problem (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    Open there, here as in TRL: std is divided by G - 1, and has 10^-4 added.  An update is strictly
    on-policy, so GRPO's ratio is 1 and nothing of it is clipped; its mean over a sample's tokens
    and its KL term are left out.  Raises ValueError for G < 2.
    """
    centred = leave_one_out(rewards) * (1 - 1 / rewards.shape[-1])  # less the mean of all G
    return centred / (rewards.std(-1, keepdim=True) + 1e-4)


ADVANTAGES = {"rloo": leave_one_out, "grpo": normalised}


def action_log_probs(model, kind, role: int, hidden, actions, draws: Draws) -> torch.Tensor:
    """Log-probabilities (k,) of k recorded actions of one role, float64.

    hidden (k, d): the encodings that predict them, a function of the weights; actions (k, ...) of
    a CoT, or token ids (k,) of an answer, and the draws that gave them: constants.
    """
    logits = model.logits(hidden)  # (k, V)
    if role == COT:
        return kind.distribution(model, hidden, logits).surrogate(actions, draws)  # eq. 10
    return Categorical(logits).surrogate(actions, draws)


def encodings(model, kind, rollout: Rollout) -> torch.Tensor:
    """The encodings hL (n, S, d) that predict each position, in one teacher-forced pass.

    The inputs are the recorded ones, so there is no back-propagation through time.
    """
    thinking = rollout.role == COT  # (n, S)
    x = model.embed(rollout.ids)  # (n, S, d)
    x = x.masked_scatter(thinking[..., None], kind.embed(model, rollout.taken(COT)))
    prompt = model.embed(torch.tensor([rollout.prompt], device=x.device)).expand(len(x), -1, -1)
    hidden = model(torch.cat((prompt, x), dim=1))  # (n, P + S, d), eqs. 1-2
    return hidden[:, len(rollout.prompt) - 1 : -1]


def log_prob(model, kind, rollout: Rollout) -> torch.Tensor:
    """Log-probability (n, S) of every recorded action, float64, with the gradient of
    `action_log_probs`; 0 where a position is none."""
    hidden = encodings(model, kind, rollout)
    log_probs = torch.zeros(rollout.ids.shape, dtype=torch.float64, device=hidden.device)
    for role in (COT, ANSWER):
        where = rollout.role == role  # (n, S)
        taken, draws = rollout.taken(role), rollout.draws(role)
        of_role = action_log_probs(model, kind, role, hidden[where], taken, draws)
        log_probs = log_probs.masked_scatter(where, of_role)
    return log_probs


def loss(log_probs: list[torch.Tensor], advantages: list[torch.Tensor], scale: float):
    """-scale * sum_b sum_g A_bg ell_bg, ell_bg the *sum* of a row's log-probabilities (eq. 14).

    For each problem b: log_probs (n, S); advantages (n,), constants.  scale: 1 / (B G), global.
    """
    total = 0.0
    for of_problem, A in zip(log_probs, advantages, strict=True):
        ell = of_problem.sum(1)  # (n,), eq. 9 and the answer's tokens
        total = total + (A.detach().to(ell.device) * ell).sum()
    return -scale * total  # eqs. 8, 14


def backward(model, kind, rollouts: list[Rollout], advantages: list[torch.Tensor], scale: float):
    """Add the gradient of `loss` (eq. 15) to the model's; returns the replay Mismatch."""
    log_probs = [log_prob(model, kind, rollout) for rollout in rollouts]
    loss(log_probs, advantages, scale).backward()
    mismatch = Mismatch()
    for replayed, rollout in zip(log_probs, rollouts, strict=True):
        mismatch.add(replayed.detach(), rollout.log_prob, rollout.role)
    return mismatch


@dataclass
class Mismatch:
    """|log-prob replayed - at rollout| over actions: 0 if both are the same function."""

    total: float = 0.0
    tokens: int = 0
    largest: float = 0.0

    def add(self, replayed: torch.Tensor, recorded: torch.Tensor, role: torch.Tensor) -> None:
        """Log-probabilities of the same positions (n, S), of which those of an action count."""
        difference = (replayed - recorded)[(role == COT) | (role == ANSWER)].abs()
        self.total += difference.sum().item()
        self.tokens += difference.numel()
        self.largest = max(self.largest, difference.max().item())
