"""Prompt -> chain of thought -> prefill -> answer, recorded for the replay (section 4, appendix B).

A row takes one role after the other: COT (it takes actions), FORCED (the prefilled tokens are fed;
they are no actions) and ANSWER (ordinary tokens are drawn).  `Row` says which, `choose` makes the
next input, and `rollout` is the definition: the text so far is run again at every position.
`minisoft.engine.decode` calls the same `Row` and `choose` on a faster timetable.
Dimensions: N rows, n rows of one problem, S positions after the prompt, C CoT positions, d width.
"""

from dataclasses import dataclass, field, replace
from itertools import count

import torch

from minisoft.data import Format
from minisoft.draws import Draws, key
from minisoft.soft import Categorical, entropy, softness

PAD, COT, FORCED, ANSWER = range(4)  # roles of a position


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

    ids (n, S) int64: tokens, in the CoT the shadow tokens; role (n, S) int8; actions (n, C) int64
    or (n, C, ...) float32: tokens, noisy inputs h0~ or other actions of the CoT (None where they
    were not wanted); log_prob (n, S) float64 of the actions and answer tokens; entropy (n, S)
    float32 of the next token in nats, 0 where it was prefilled; truncated (n,) bool: the CoT
    budget was spent before the stop phrase; keys (n,) int64, of the rows' draws; softness
    (n, S, 2) float32: of what was fed in the CoT (`soft.softness`), elsewhere 0.
    """

    prompt: list[int]
    samples: range
    ids: torch.Tensor
    role: torch.Tensor
    actions: torch.Tensor | None
    log_prob: torch.Tensor
    entropy: torch.Tensor
    truncated: torch.Tensor
    keys: torch.Tensor
    softness: torch.Tensor

    def on_host(self) -> "Rollout":
        """The same with everything that is read as text on the CPU; actions stay where they are."""
        names = ("ids", "role", "entropy", "truncated", "softness")
        return replace(self, **{name: getattr(self, name).cpu() for name in names})

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


@dataclass
class Row:
    """One row so far, and what its next position is (appendix B)."""

    budget: int
    form: Format
    cot: list[int] = field(default_factory=list)
    forced: int = 0  # so many prefilled tokens were fed
    answer: list[int] = field(default_factory=list)
    stopped: bool = False  # the stop phrase has been seen
    done: bool = False

    @property
    def prefill(self) -> list[int]:
        return self.form.prefill[0 if self.stopped else 1]

    @property
    def role(self) -> int:
        if self.done:
            return PAD
        if not self.stopped and len(self.cot) < self.budget:
            return COT
        return FORCED if self.forced < len(self.prefill) else ANSWER

    @property
    def next_forced(self) -> int:
        """The prefilled token to be fed next; 0 in other roles."""
        return self.prefill[self.forced] if self.role == FORCED else 0

    def take(self, token: int) -> None:
        """Its next position holds this token (in the CoT: this shadow token)."""
        role = self.role
        if role == COT:
            self.cot.append(token)
            self.stopped = self.form.cot_ends(self.cot)
        elif role == FORCED:
            self.forced += 1
        elif role == ANSWER:
            self.answer.append(token)
            self.done = self.form.answer_ends(self.answer)


@dataclass(frozen=True)
class Turn:
    """What N rows do next: role (N,); forced (N,), the token that a FORCED row is fed; thinks,
    speaks: may any of them be in its CoT, in its answer?"""

    role: torch.Tensor
    forced: torch.Tensor
    thinks: bool = True
    speaks: bool = True


@dataclass(frozen=True)
class Move:
    """The next position of N rows: the action of its CoT (N, ...), or None; token (N,); input
    embedding x (N, d); log_prob (N,) float64 of action or answer token, else 0; the logits (N, V)
    that it was chosen by; the softness (N, 2) of what the action feeds, or None."""

    action: torch.Tensor | None
    token: torch.Tensor
    x: torch.Tensor
    log_prob: torch.Tensor
    logits: torch.Tensor
    softness: torch.Tensor | None = None


def choose(model, kind, hidden: torch.Tensor, turn: Turn, draws: Draws, how: Decoding) -> Move:
    """From the encodings (N, d) of each row's last position to its next position (eqs. 3-6, 10)."""
    logits = model.logits(hidden)  # (N, V)
    action, token, carried = None, turn.forced, None
    log_prob = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)
    if turn.speaks:
        word = Categorical(logits)  # the answer is ordinary tokens
        said = word.mode() if how.greedy_answer else word.sample(draws)
        token = torch.where(turn.role == ANSWER, said, token)
        log_prob = torch.where(turn.role == ANSWER, word.log_prob(said), log_prob)
    if turn.thinks:
        thought = kind.distribution(model, hidden, logits)  # eqs. 3-5
        action = thought.mode() if how.greedy else thought.sample(draws)  # eqs. 4, 6
        token = torch.where(turn.role == COT, kind.shadow(model, action, logits), token)
        log_prob = torch.where(turn.role == COT, thought.log_prob(action), log_prob)  # eq. 10
    x = model.embed(token)  # (N, d)
    if turn.thinks:
        x = torch.where((turn.role == COT)[:, None], kind.embed(model, action), x)
        weights, _ = kind.weights(model, action, logits)
        carried = softness(weights)
    return Move(action, token, x, log_prob, logits, carried)


@torch.no_grad()
def rollout(model, form: Format, kind, requests: list[Request], how: Decoding) -> list[Rollout]:
    """One Rollout for each request, by the definition: no cache, no batching over problems."""
    return [_rollout(model, form, kind, request, how) for request in requests]


def _rollout(model, form: Format, kind, request: Request, how: Decoding) -> Rollout:
    device = model.E.device
    rows = [Row(how.cot_tokens, form) for _ in request.samples]
    keys = request.keys.to(device)
    inputs = model.embed(torch.tensor([request.prompt], device=device)).expand(len(rows), -1, -1)
    positions = []
    for t in count():
        role = torch.tensor([row.role for row in rows], device=device)
        if (role == PAD).all():
            break
        forced = torch.tensor([row.next_forced for row in rows], device=device)
        hidden = model(inputs)[:, -1]  # (n, d), eqs. 1-2
        draws = Draws(keys, torch.full_like(keys, t))
        move = choose(model, kind, hidden, Turn(role, forced), draws, how)
        for row, token in zip(rows, move.token.tolist(), strict=True):
            row.take(token)
        inputs = torch.cat((inputs, move.x[:, None]), dim=1)
        entry = (role, move.token, move.action, move.log_prob, entropy(move.logits), move.softness)
        positions.append(entry)
    roles, tokens, actions, scores, entropies, carried = zip(*positions, strict=True)
    role = torch.stack(roles, 1)  # (n, S)
    idle = (role == PAD) | (role == FORCED)
    C = max(len(row.cot) for row in rows)
    return Rollout(
        request.prompt,
        request.samples,
        torch.stack(tokens, 1).masked_fill(role == PAD, 0),
        role.to(torch.int8),
        torch.stack(actions[:C], 1),
        torch.stack(scores, 1),
        torch.stack(entropies, 1).masked_fill(idle, 0.0),
        torch.tensor([not row.stopped for row in rows], device=device),
        keys,
        torch.stack(carried, 1).masked_fill((role != COT)[..., None], 0.0),
    )
