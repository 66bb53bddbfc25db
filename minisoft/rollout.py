"""Prompt -> chain of thought -> prefill -> answer, recorded so that training can replay it (section 4, appendix B).

A row passes through three roles: COT (it takes actions), FORCED (the prefilled tokens are fed; they are no actions) and
ANSWER (ordinary tokens are drawn).  Rows of many problems decode together, one position a step, and a finished row makes
room for the next one that waits (continuous batching); nothing a row does depends on the others.
Dimensions: N rows at once, n rows of one problem, S positions after the prompt, C CoT positions, d width, V vocabulary.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.nn.utils.rnn import pad_sequence

from minisoft.data import PREFILL_EARLY, PREFILL_LATE, STOP, boxed
from minisoft.draws import Draws, key
from minisoft.model import RowCache, Transformer
from minisoft.soft import Categorical, entropy
from minisoft.tokenizer import Tokenizer

ANSWER_TOKENS = 32  # section 4
PAD, COT, FORCED, ANSWER = range(4)  # roles of a position


@dataclass(frozen=True)
class Request:
    """Roll out the samples numbered `samples` of one problem.

    key: (seed, step, problem), which with the sample number decides every draw, however rows are batched or sharded.
    """

    prompt: list[int]
    key: tuple
    samples: range


@dataclass(frozen=True)
class Rollout:
    """What happened to the n rows of one problem; all that the replay of `minisoft.reinforce` needs.

    ids, role (n, S): token (in the CoT: the shadow token) and role of every position; actions (n, C) or (n, C, ...):
    tokens, noisy inputs h0~ or other actions of the CoT (None where they were not wanted); log_prob (n, S) of the actions
    and answer tokens; entropy (n, S) in nats.
    """

    prompt: list[int]
    samples: range
    ids: torch.Tensor
    role: torch.Tensor
    actions: torch.Tensor | None
    log_prob: torch.Tensor
    entropy: torch.Tensor
    truncated: torch.Tensor  # (n,) bool: the CoT budget was spent before the stop phrase

    def tokens(self, row: int, role: int) -> list[int]:
        """The ids of one row that have the given role."""
        return self.ids[row][self.role[row] == role].tolist()


class Format:
    """The tokens of the answer format, for one tokenizer: how a CoT ends, what is prefilled, how a box closes."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.prefill = [tokenizer.encode_after(STOP, PREFILL_EARLY), tokenizer.encode_after(":", PREFILL_LATE)]
        # Only a token that brings the last character can complete a phrase; `cot_ends` and `answer_ends` then read the
        # text itself, so the test is exact however the phrase is tokenised.
        self.may_stop = frozenset(tokenizer.ids_with(STOP[-1]))
        self.may_close = frozenset(tokenizer.ids_with("}"))

    def cot_ends(self, ids: list[int]) -> bool:
        """Does the (shadow) text of the CoT end with the stop phrase?"""
        return ids[-1] in self.may_stop and self.tokenizer.decode(ids).endswith(STOP)

    def answer_ends(self, ids: list[int]) -> bool:
        """EOS, or the box closed, or 32 tokens."""
        return ids[-1] in self.tokenizer.eos_ids or len(ids) == ANSWER_TOKENS or (
            ids[-1] in self.may_close and boxed(self.tokenizer.decode(ids)) is not None)

    def answer_text(self, ids: list[int]) -> str:
        """The text after the prefilled box, without EOS."""
        return self.tokenizer.decode([i for i in ids if i not in self.tokenizer.eos_ids])


@dataclass
class _Row:
    """Where one row stands."""

    request: int
    sample: int
    role: int = COT
    forced: list[int] = field(default_factory=list)  # prefilled tokens still to be fed
    cot: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    position: int = 0
    truncated: bool = False


def rollout(*args, **options) -> list[Rollout]:
    """One Rollout for each request, in their order; arguments as those of `stream`."""
    return [record for _, record in sorted(stream(*args, **options), key=lambda found: found[0])]


@torch.no_grad()
def stream(model: Transformer, form: Format, kind, requests: list[Request], cot_tokens: int, greedy: bool = False,
           greedy_answer: bool = False, rows: int | None = None, record_actions: bool = True
           ) -> Iterator[tuple[int, Rollout]]:
    """Roll out every request; yields (its number, its Rollout) when the last of its rows has finished.

    cot_tokens: CoT budget; greedy: the CoT takes the mode of its distribution (no noise); greedy_answer: so does the
    answer, otherwise it is drawn at temperature 1; rows: at most so many at once (None: all).
    """
    batch = _Batch(model, form, kind, requests, cot_tokens, greedy, greedy_answer, rows, record_actions)
    batch.fill()
    while any(batch.rows):
        done = batch.step()
        batch.advance()
        yield from done


class _Batch:
    """The rows under way, each in a place 0..N-1 of the cache and of the record, and those that wait.

    Every step computes all N places, whatever their roles, and then picks: shapes stay the same from step to step.
    """

    def __init__(self, model, form, kind, requests, cot_tokens, greedy, greedy_answer, rows, record_actions):
        self.model, self.form, self.kind, self.requests = model, form, kind, requests
        self.cot_tokens, self.greedy, self.greedy_answer = cot_tokens, greedy, greedy_answer
        self.record_actions = record_actions
        self.waiting = deque(_Row(i, sample) for i, r in enumerate(requests) for sample in r.samples)
        self.limit = min(rows or len(self.waiting), len(self.waiting))
        capacity = cot_tokens + max(map(len, form.prefill)) + ANSWER_TOKENS
        self.device = model.E.device
        self.cache = RowCache(model.config, self.limit, capacity, self.device, model.E.dtype)
        N, self.moved = len(self.cache.owner), False  # moved: rows came or went since the cache seated them
        self.rows: list[_Row | None] = [None] * N
        self.prompts: dict[int, tuple[int, torch.Tensor]] = {}  # request -> (its number in the cache, last encoding (d,))
        self.unfinished = {i: len(r.samples) for i, r in enumerate(requests)}
        self.finished: dict[int, list] = {i: [] for i in range(len(requests))}
        self.hidden = torch.zeros(N, model.config.hidden_size, device=self.device, dtype=model.E.dtype)
        self.keys = torch.zeros(N, dtype=torch.long, device=self.device)
        zeros = lambda *shape, dtype: torch.zeros(N, *shape, dtype=dtype, device=self.device)
        self.ids, self.log_prob = zeros(capacity, dtype=torch.long), zeros(capacity, dtype=torch.float64)
        self.entropy = zeros(capacity, dtype=torch.float32)
        self.actions = None  # (N, C + 1) or (N, C + 1, ...), made when the first action is known

    def fill(self) -> None:
        """Waiting rows take free places; their prompts are run, each by itself and padded to a multiple of BLOCK."""
        free = [i for i, row in enumerate(self.rows) if row is None][: self.limit - sum(map(bool, self.rows))]
        taken = [(place, self.waiting.popleft()) for place in free[: len(self.waiting)]]
        for place, row in taken:
            request = self.requests[row.request]
            if row.request not in self.prompts:
                length = len(request.prompt)
                ids = request.prompt + [0] * (RowCache.round_up(length) - length)  # causal: what follows changes nothing
                hidden, prompt = self.model.prefill(torch.tensor([ids], device=self.device))
                self.prompts[row.request] = self.cache.add(prompt.cut(length)), hidden[0, length - 1]
            self.rows[place] = row
            self.cache.owner[place], self.hidden[place] = self.prompts[row.request]
        if taken:
            places = torch.tensor([place for place, _ in taken], device=self.device)
            self.keys[places] = torch.tensor([key(*self.requests[row.request].key, row.sample) for _, row in taken],
                                             device=self.device)
            self.moved = True

    def step(self) -> list[tuple[int, Rollout]]:
        """Choose the input of this position for every row, record it, and see who is done."""
        roles = [row.role if row else PAD for row in self.rows]
        role = torch.tensor(roles, device=self.device)  # (N,)
        at = torch.tensor([row.position if row else 0 for row in self.rows], device=self.device)
        self.cache.position, self.cache.width = at, 1 + max(row.position for row in self.rows if row)
        logits, draws = self.model.logits(self.hidden), Draws(self.keys, at)  # (N, V)
        token = torch.tensor([row.forced[0] if row and row.forced else 0 for row in self.rows], device=self.device)
        log_prob = self.log_prob.new_zeros(len(roles))
        if ANSWER in roles:
            word, score = self._act(Categorical(logits), draws, self.greedy_answer)
            token, log_prob = (torch.where(role == ANSWER, *pair) for pair in ((word, token), (score, log_prob)))
        x = None
        if COT in roles:
            action, score = self._act(self.kind.distribution(self.model, self.hidden, logits), draws, self.greedy)
            token = torch.where(role == COT, self.kind.shadow(self.model, action, logits), token)
            log_prob = torch.where(role == COT, score, log_prob)
            x = self.kind.embed(self.model, action)  # (N, d)
            self._record_action(action, at)
        inputs = self.model.embed(token)  # (N, d)
        self.inputs = inputs if x is None else torch.where((role == COT)[:, None], x, inputs)
        places = torch.arange(len(roles), device=self.device)
        self.ids[places, at], self.log_prob[places, at], self.entropy[places, at] = token, log_prob, entropy(logits)
        return self._move_on(token.tolist())

    @staticmethod
    def _act(distribution, draws: Draws, greedy: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(actions (N, ...), their log-probs (N,))"""
        action = distribution.mode() if greedy else distribution.sample(draws)
        return action, distribution.log_prob(action)

    def _record_action(self, action: torch.Tensor, at: torch.Tensor) -> None:
        """All places at once: what is written after the CoT of a row is never read."""
        if self.record_actions:
            if self.actions is None:
                self.actions = action.new_zeros(len(action), self.cot_tokens + 1, *action.shape[1:])
            self.actions[torch.arange(len(action), device=self.device), at.clamp(max=self.cot_tokens)] = action

    def _move_on(self, tokens: list[int]) -> list[tuple[int, Rollout]]:
        """Every row takes its token; returns the requests whose last row is done."""
        done = []
        for place, (row, token) in enumerate(zip(self.rows, tokens)):
            if row is None:
                continue
            row.position += 1
            if row.role == COT:
                row.cot.append(token)
                early = self.form.cot_ends(row.cot)
                if early or len(row.cot) == self.cot_tokens:
                    row.role, row.forced, row.truncated = FORCED, list(self.form.prefill[0 if early else 1]), not early
            elif row.role == FORCED:
                row.forced.pop(0)
                row.role = FORCED if row.forced else ANSWER
            else:
                row.answer.append(token)
                if self.form.answer_ends(row.answer):
                    done += self._finish(place, row)
        return done

    def _finish(self, place: int, row: _Row) -> list[tuple[int, Rollout]]:
        """The row leaves its place; [(request, Rollout)] if it was the last one of its request."""
        i, S, C = row.request, row.position, len(row.cot)
        role = torch.full((S,), FORCED, dtype=torch.int8, device=self.device)
        role[:C], role[S - len(row.answer):] = COT, ANSWER
        actions = self.actions[place, :C].clone() if self.record_actions else None
        self.finished[i].append((row.sample, row.truncated, role, actions, *(
            record[place, :S].clone() for record in (self.ids, self.log_prob, self.entropy))))
        self.rows[place] = self.cache.owner[place] = None
        self.moved = True
        self.unfinished[i] -= 1
        if self.unfinished[i]:
            return []
        self.cache.drop(self.prompts.pop(i)[0])
        _, truncated, role, actions, ids, log_prob, entropies = zip(*sorted(self.finished.pop(i), key=lambda r: r[0]))
        join = lambda parts: pad_sequence(parts, batch_first=True)  # (n, longest, ...); PAD is 0
        return [(i, Rollout(self.requests[i].prompt, self.requests[i].samples, join(ids), join(role),
                            join(actions) if self.record_actions else None, join(log_prob), join(entropies),
                            torch.tensor(truncated, device=self.device)))]

    def advance(self) -> None:
        """Feed the inputs of this position; then free places are filled, or given up when no row waits."""
        if not self.waiting and (order := self.cache.shrink()) is not None:
            self.rows = [self.rows[i] for i in order]
            for name in ("keys", "inputs", "ids", "log_prob", "entropy", *(["actions"] if self.record_actions else [])):
                setattr(self, name, getattr(self, name)[order])
        if any(self.rows):
            if self.moved:
                self.cache.seat()
                self.moved = False
            self.hidden = self.model(self.inputs[:, None], self.cache)[:, 0]  # (N, d), predicts the next position
        if self.waiting and sum(map(bool, self.rows)) < self.limit:
            self.fill()
