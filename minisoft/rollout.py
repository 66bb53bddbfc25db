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
from minisoft.io.tokenizer import Tokenizer
from minisoft.model import RowCache, Transformer
from minisoft.soft import Categorical, entropy

ANSWER_TOKENS = 32  # section 4
PAD, COT, FORCED, ANSWER = range(4)  # roles of a position
LOOK = {"cuda": 8}  # steps that a device runs without waiting for the host to read the text; 1 elsewhere


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
    and answer tokens; entropy (n, S) of the next token in nats, 0 where it was prefilled.
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
    """Where one row stands, as far as the host knows."""

    request: int
    sample: int
    cot_length: int  # the budget until the stop phrase has been seen
    truncated: bool = True  # no stop phrase has been seen
    position: int = 0
    cot: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    done: bool = False


def rollout(*args, **options) -> list[Rollout]:
    """One Rollout for each request, in their order; arguments as those of `stream`."""
    return [record for _, record in sorted(stream(*args, **options), key=lambda found: found[0])]


@torch.no_grad()
def stream(model: Transformer, form: Format, kind, requests: list[Request], cot_tokens: int, greedy: bool = False,
           greedy_answer: bool = False, rows: int | None = None, record_actions: bool = True, look: int | None = None
           ) -> Iterator[tuple[int, Rollout]]:
    """Roll out every request; yields (its number, its Rollout) when the last of its rows has finished.

    cot_tokens: CoT budget; greedy: the CoT takes the mode of its distribution (no noise); greedy_answer: so does the
    answer, otherwise it is drawn at temperature 1; rows: at most so many at once (None: all); look: steps between two
    looks at the text (None: LOOK), which changes nothing but the time.
    """
    with model.packed():
        batch = _Batch(model, form, kind, requests, cot_tokens, greedy, greedy_answer, rows, record_actions,
                       look or LOOK.get(model.E.device.type, 1))
        batch.fill()
        while any(batch.rows):
            yield from batch.advance()


class _Batch:
    """The rows under way, each in a place 0..N-1 of the cache and of the record, and those that wait.

    `_step` takes all N places one position further, whatever their roles, and needs nothing from the host, which looks at
    the text every `look` steps only.  A row that has gone on past its stop phrase by then is set back: its draws depend on
    the position alone, what it has left in the cache and the record is written again before it is read, and its next input
    is a prefilled token, which no encoding has to choose.
    """

    def __init__(self, model, form, kind, requests, cot_tokens, greedy, greedy_answer, rows, record_actions, look):
        self.model, self.form, self.kind, self.requests = model, form, kind, requests
        self.cot_tokens, self.greedy, self.greedy_answer = cot_tokens, greedy, greedy_answer
        self.record_actions, self.look = record_actions, look
        self.waiting = deque(_Row(i, sample, cot_tokens) for i, r in enumerate(requests) for sample in r.samples)
        self.limit = min(rows or len(self.waiting), len(self.waiting))
        capacity = cot_tokens + max(map(len, form.prefill)) + ANSWER_TOKENS + look
        self.device = device = model.E.device
        self.cache = RowCache(model.config, self.limit, capacity, device, model.E.dtype)
        N, self.moved = len(self.cache.owner), False  # moved: rows came or changed places since the cache seated them
        self.rows: list[_Row | None] = [None] * N
        self.prompts: dict[int, tuple[int, torch.Tensor]] = {}  # request -> (its number in the cache, last encoding (d,))
        self.unfinished = {i: len(r.samples) for i, r in enumerate(requests)}
        self.finished: dict[int, list] = {i: [] for i in range(len(requests))}
        self.prefill = pad_sequence([torch.tensor(ids) for ids in form.prefill], batch_first=True).to(device)  # (2, F)
        self.prefill_length = torch.tensor([len(ids) for ids in form.prefill], device=device)  # (2,)
        zeros = lambda *shape, dtype=torch.long: torch.zeros(N, *shape, dtype=dtype, device=device)
        self.keys, self.cot_length, self.late, self.cache.position = zeros(), zeros(), zeros(), zeros()
        self.hidden = zeros(model.config.hidden_size, dtype=model.E.dtype)
        self.ids, self.log_prob = zeros(capacity), zeros(capacity, dtype=torch.float64)
        self.entropy = zeros(capacity, dtype=torch.float32)
        self.graphs, self.pool = {}, torch.cuda.graph_pool_handle() if device.type == "cuda" else None
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
            self._tell()
            self.moved = True

    def _tell(self) -> None:
        """The device learns where every row stands."""
        stand = [(row.position, row.cot_length, row.truncated) if row else (0, 0, 0) for row in self.rows]
        for mine, new in zip((self.cache.position, self.cot_length, self.late), torch.tensor(stand).T):
            mine.copy_(new)

    def advance(self) -> list[tuple[int, Rollout]]:
        """`look` steps and a look at what came of them; then waiting rows take the free places, or these are given up.
        Returns the requests whose last row is done."""
        if self.moved:
            self.cache.seat()
            self.graphs.clear()
            self.moved = False
        standing = [(row.position, row.cot_length, len(self.form.prefill[row.truncated])) for row in self.rows if row]
        thinking = any(position < cot for position, cot, _ in standing)
        answering = any(position + self.look > cot + forced for position, cot, forced in standing)
        self.cache.widen(max(position for position, _, _ in standing) + self.look)
        for _ in range(self.look):
            self._run(thinking, answering)
        done = self._look()
        if self.waiting and sum(map(bool, self.rows)) < self.limit:
            self.fill()
        elif not self.waiting and any(self.rows) and (order := self.cache.shrink()) is not None:
            self.rows, self.moved = [self.rows[i] for i in order], True
            for name in ("keys", "cot_length", "late", "hidden", "ids", "log_prob", "entropy",
                         *(["actions"] if self.record_actions else [])):
                setattr(self, name, getattr(self, name)[order])
        return done

    def _run(self, *roles: bool) -> None:
        """One step.  A GPU is given it as a whole: recorded once for each shape, after a first ordinary time, as a CUDA
        graph, unless rows still come, which would soon make it useless."""
        shape = (*roles, self.cache.width)
        if self.device.type != "cuda" or self.waiting or shape not in self.graphs:
            self._step(*roles)
            self.graphs[shape] = None
            return
        if self.graphs[shape] is None:
            self.graphs[shape] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[shape], pool=self.pool, stream=torch.cuda.Stream(self.device)):
                self._step(*roles)
        self.graphs[shape].replay()

    def _step(self, thinking: bool, answering: bool) -> None:
        """Choose the input of this position for every row, record it, feed it; thinking, answering: is any row?"""
        at, model = self.cache.position, self.model
        places, past = torch.arange(len(at), device=self.device), at - self.cot_length  # (N,)
        in_cot, in_answer = past < 0, past >= self.prefill_length[self.late]
        logits, draws = model.logits(self.hidden), Draws(self.keys, at)  # (N, V)
        token = self.prefill[self.late, past.clamp(0, self.prefill.shape[1] - 1)]
        log_prob = torch.zeros_like(self.log_prob[:, 0])
        if answering:
            word, score = self._act(Categorical(logits), draws, self.greedy_answer)
            token, log_prob = torch.where(in_answer, word, token), torch.where(in_answer, score, log_prob)
        if thinking:
            action, score = self._act(self.kind.distribution(model, self.hidden, logits), draws, self.greedy)
            token = torch.where(in_cot, self.kind.shadow(model, action, logits), token)
            log_prob = torch.where(in_cot, score, log_prob)
            self._record_action(places, action, at)
        x = model.embed(token)  # (N, d)
        if thinking:
            x = torch.where(in_cot[:, None], self.kind.embed(model, action), x)
        self.ids[places, at], self.log_prob[places, at], self.entropy[places, at] = token, log_prob, entropy(logits)
        self.hidden.copy_(model(x[:, None], self.cache)[:, 0])  # (N, d), predicts the next position
        at += 1

    @staticmethod
    def _act(distribution, draws: Draws, greedy: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(actions (N, ...), their log-probs (N,))"""
        action = distribution.mode() if greedy else distribution.sample(draws)
        return action, distribution.log_prob(action)

    def _record_action(self, places: torch.Tensor, action: torch.Tensor, at: torch.Tensor) -> None:
        """All places at once: what is written after the CoT of a row is never read."""
        if self.record_actions:
            if self.actions is None:
                self.actions = action.new_zeros(len(action), self.cot_tokens + 1, *action.shape[1:])
            self.actions[places, at.clamp(max=self.cot_tokens)] = action

    def _look(self) -> list[tuple[int, Rollout]]:
        """Read what the rows have written since the last look; returns the requests whose last row is done."""
        done, told = [], True
        latest = self.cache.position[:, None] - torch.arange(self.look, 0, -1, device=self.device)  # (N, look)
        for place, (row, tokens) in enumerate(zip(self.rows, self.ids.gather(1, latest).tolist())):
            if row is not None:
                told &= not self._read(row, tokens)
                if row.done:
                    done += self._finish(place, row)
                    told = False
        if not told:
            self._tell()
        return done

    def _read(self, row: _Row, tokens: list[int]) -> bool:
        """The row takes the tokens that count; does the device have to be told?"""
        for token in tokens:
            if row.position < row.cot_length:
                row.cot.append(token)
                if self.form.cot_ends(row.cot):
                    row.cot_length, row.truncated = len(row.cot), False
            elif row.position >= row.cot_length + len(self.form.prefill[row.truncated]):
                row.answer.append(token)
            row.position += 1
            if not row.truncated and row.position == row.cot_length:
                return True  # the tokens after the stop phrase are not those of the prefill
            if row.answer and self.form.answer_ends(row.answer):
                row.done = True
                break
        return False

    def _finish(self, place: int, row: _Row) -> list[tuple[int, Rollout]]:
        """The row leaves its place; [(request, Rollout)] if it was the last one of its request."""
        i, S, C = row.request, row.position, row.cot_length
        role = torch.full((S,), FORCED, dtype=torch.int8, device=self.device)
        role[:C], role[S - len(row.answer):] = COT, ANSWER
        actions = self.actions[place, :C].clone() if self.record_actions else None
        entropies = self.entropy[place, :S].masked_fill(role == FORCED, 0.0)
        self.finished[i].append((row.sample, row.truncated, role, actions, self.ids[place, :S].clone(),
                                 self.log_prob[place, :S].clone(), entropies))
        self.rows[place] = self.cache.owner[place] = None
        self.unfinished[i] -= 1
        if self.unfinished[i]:
            return []
        self.cache.drop(self.prompts.pop(i)[0])
        _, truncated, role, actions, ids, log_prob, entropies = zip(*sorted(self.finished.pop(i), key=lambda r: r[0]))
        join = lambda parts: pad_sequence(parts, batch_first=True)  # (n, longest, ...); PAD is 0
        return [(i, Rollout(self.requests[i].prompt, self.requests[i].samples, join(ids), join(role),
                            join(actions) if self.record_actions else None, join(log_prob), join(entropies),
                            torch.tensor(truncated, device=self.device)))]
