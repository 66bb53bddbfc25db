"""Prompt -> chain of thought -> prefill -> answer, recorded for the replay (section 4, appendix B).

A row takes one role after the other: COT (it takes actions), FORCED (the prefilled tokens are fed;
they are no actions) and ANSWER (ordinary tokens are drawn).  `role_at` says which, `choose` makes
the next input, and `rollout` is the definition: the text so far is run again at every position.
`minisoft.engine.decode` calls the same functions for many problems at once, on a cache.
Dimensions: N rows, n rows of one problem, S positions after the prompt, C CoT positions, d width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from minisoft.data import Format
from minisoft.draws import Draws, key
from minisoft.soft import Categorical, measure

PAD, COT, FORCED, ANSWER = range(4)  # roles of a position
RECORDED = ("ids", "role", "actions", "log_prob", "measures")  # of every position


@dataclass(frozen=True)
class Request:
    """Roll out the samples numbered `samples` of one problem.

    key: with the sample number it decides every draw; (seed, step, problem) in training, (seed,
    setting, problem) in evaluation.
    """

    prompt: list[int]
    key: tuple
    samples: range

    @property
    def keys(self) -> torch.Tensor:
        """Of the draws of each row, (n,) int64."""
        return torch.tensor([key(*self.key, sample) for sample in self.samples])


@dataclass(frozen=True)
class Decoding:
    """cot_tokens: the CoT budget; greedy: the CoT takes the mode of its distribution (no noise);
    greedy_answer: so does the answer, which is otherwise drawn at temperature 1."""

    cot_tokens: int
    greedy: bool = False
    greedy_answer: bool = False


@dataclass(frozen=True)
class Rollout:
    """What happened to the n rows of one problem: all that the replay needs.

    keys (n,) int64, of the rows' draws; truncated (n,) bool: the CoT budget was spent before the
    stop phrase; ids (n, S) int64: tokens, in the CoT the shadow tokens; role (n, S) int8; actions
    (n, C, ...), int64 tokens or float32 noisy inputs h0~ or other actions of the CoT (None where
    they were not wanted); log_prob (n, S) float64 of the actions and answer tokens; measures
    (n, S, 3) float32 of the CoT's positions (`soft.measure`), elsewhere 0.
    """

    prompt: list[int]
    samples: Sequence[int]
    keys: torch.Tensor
    truncated: torch.Tensor
    ids: torch.Tensor
    role: torch.Tensor
    actions: torch.Tensor | None
    log_prob: torch.Tensor
    measures: torch.Tensor

    def on_host(self) -> "Rollout":
        """The same with everything that is read as text on the CPU; actions stay where they are."""
        names = ("ids", "role", "truncated", "measures")
        return replace(self, **{name: getattr(self, name).cpu() for name in names})

    def select(self, rows: torch.Tensor) -> "Rollout":
        """Some rows (m,), with as many positions as the longest of them has."""
        S = int((self.role[rows] != PAD).sum(1).max())
        parts = {name: getattr(self, name)[rows, :S] for name in RECORDED}
        parts |= {"keys": self.keys[rows], "truncated": self.truncated[rows]}
        return replace(self, samples=[self.samples[row] for row in rows.tolist()], **parts)

    def tokens(self, row: int, role: int) -> list[int]:
        """The ids of one row that have the given role."""
        return self.ids[row][self.role[row] == role].tolist()

    def taken(self, role: int) -> torch.Tensor:
        """The actions of all positions of a role, row after row: thoughts (k, ...) or ids (k,)."""
        if role == COT:
            return self.actions[self.role[:, : self.actions.shape[1]] == COT]
        return self.ids[self.role == role]

    def draws(self, role: int) -> Draws:
        """The draws that `taken(role)` were sampled with."""
        row, position = (self.role == role).nonzero().T
        return Draws(self.keys[row], position)


def role_at(after_cot, prefilled):
    """The role of a position, ints or tensors (N,): `after_cot` positions after the end of the CoT
    (before it: less than 0), where `prefilled` tokens follow the CoT."""
    return COT + (after_cot >= 0) + (after_cot >= prefilled)  # COT, FORCED, ANSWER, in this order


@dataclass
class Row:
    """One row so far, and what its next position is (appendix B)."""

    budget: int
    form: Format
    cot: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    position: int = 0  # so many it has after the prompt
    stopped: bool = False  # the stop phrase has been seen
    done: bool = False

    @property
    def cot_length(self) -> int:
        """Positions of its CoT: the budget until the stop phrase has been seen."""
        return len(self.cot) if self.stopped else self.budget

    @property
    def prefill(self) -> list[int]:
        return self.form.prefill[0 if self.stopped else 1]

    @property
    def role(self) -> int:
        after_cot = self.position - self.cot_length
        return PAD if self.done else role_at(after_cot, len(self.prefill))

    @property
    def next_forced(self) -> int:
        """The prefilled token to be fed next; 0 in other roles."""
        return self.prefill[self.position - self.cot_length] if self.role == FORCED else 0

    def take(self, token: int) -> None:
        """Its next position holds this token (in the CoT: this shadow token)."""
        role = self.role
        self.position += 1
        if role == COT:
            self.cot.append(token)
            self.stopped = self.form.cot_ends(self.cot)
        elif role == ANSWER:
            self.answer.append(token)
            self.done = self.form.answer_ends(self.answer)


@dataclass(frozen=True)
class Roles:
    """What the next position of N rows is: role (N,); forced (N,), the token that a FORCED row is
    fed; cot, answer: may any of them be in its CoT, in its answer?"""

    role: torch.Tensor
    forced: torch.Tensor
    cot: bool = True
    answer: bool = True


@dataclass(frozen=True)
class Chosen:
    """The next position of N rows: the action of its CoT (N, ...), or None; token (N,); input
    embedding x (N, d); log_prob (N,) float64 of action or answer token, else 0; what it was chosen
    by, the logits (N, V), and the weights (N, m) of the mixture that the action feeds, or None."""

    action: torch.Tensor | None
    token: torch.Tensor
    x: torch.Tensor
    log_prob: torch.Tensor
    logits: torch.Tensor
    weights: torch.Tensor | None = None


def choose(model, kind, hidden: torch.Tensor, roles: Roles, draws: Draws, decoding) -> Chosen:
    """From the encodings (N, d) of each row's last position to the next one (eqs. 3-6, 10)."""
    logits = model.logits(hidden)  # (N, V)
    role, token = roles.role, roles.forced
    action = weights = None
    log_prob = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)
    if roles.answer:
        word = Categorical(logits)  # the answer is ordinary tokens
        drawn = word.mode() if decoding.greedy_answer else word.sample(draws)
        token = torch.where(role == ANSWER, drawn, token)
        log_prob = torch.where(role == ANSWER, word.log_prob(drawn), log_prob)
    if roles.cot:
        thought = kind.distribution(model, hidden, logits)  # eqs. 3-5
        action = thought.mode() if decoding.greedy else thought.sample(draws)  # eqs. 4, 6
        token = torch.where(role == COT, kind.shadow(model, action, logits), token)
        log_prob = torch.where(role == COT, thought.log_prob(action), log_prob)  # eq. 10
    x = model.embed(token)  # (N, d)
    if roles.cot:
        x = torch.where((role == COT)[:, None], kind.embed(model, action), x)
        weights, _ = kind.weights(model, action, logits)
    return Chosen(action, token, x, log_prob, logits, weights)


@torch.no_grad()
def rollout(model, form: Format, kind, requests: list[Request], decoding: Decoding):
    """One Rollout for each request, by the definition: no cache, no batching over problems."""
    return [_rollout(model, form, kind, request, decoding) for request in requests]


def _rollout(model, form: Format, kind, request: Request, decoding: Decoding) -> Rollout:
    device = model.E.device
    rows = [Row(decoding.cot_tokens, form) for _ in request.samples]
    keys = request.keys.to(device)
    inputs = model.embed(torch.tensor([request.prompt], device=device)).expand(len(rows), -1, -1)
    positions = []
    while not all(row.done for row in rows):
        role = torch.tensor([row.role for row in rows], device=device)
        forced = torch.tensor([row.next_forced for row in rows], device=device)
        hidden = model(inputs)[:, -1]  # (n, d), eqs. 1-2
        draws = Draws(keys, torch.full_like(keys, len(positions)))
        chosen = choose(model, kind, hidden, Roles(role, forced), draws, decoding)
        for row, token in zip(rows, chosen.token.tolist(), strict=True):
            row.take(token)
        inputs = torch.cat((inputs, chosen.x[:, None]), dim=1)
        measured = measure(chosen.logits, chosen.weights)
        positions.append(
            {
                "ids": chosen.token.masked_fill(role == PAD, 0),
                "role": role.to(torch.int8),
                "actions": chosen.action,
                "log_prob": chosen.log_prob,
                "measures": measured.masked_fill((role != COT)[:, None], 0.0),
            }
        )
    recorded = {name: torch.stack([at[name] for at in positions], 1) for name in RECORDED}
    recorded["actions"] = recorded["actions"][:, : max(len(row.cot) for row in rows)]
    truncated = torch.tensor([not row.stopped for row in rows], device=device)
    return Rollout(request.prompt, request.samples, keys, truncated, **recorded)
