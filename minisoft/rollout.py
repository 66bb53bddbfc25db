"""Prompt -> chain of thought -> prefill -> answer, recorded so that training can replay it (section 4, appendix B).

All rows of a call start together and take one position a step.  A row passes through three roles: COT (it takes
actions), FORCED (the prefilled tokens are fed; they are no actions) and ANSWER (ordinary tokens are drawn).
Dimensions: N rows, n rows of one problem, S positions after the prompt, C CoT positions, d width, V vocabulary.
"""

import hashlib
from dataclasses import dataclass, field

import torch

from minisoft.data import PREFILL_EARLY, PREFILL_LATE, STOP, boxed
from minisoft.model import RowCache, Transformer
from minisoft.soft import Categorical, entropy
from minisoft.tokenizer import Tokenizer

ANSWER_TOKENS = 32  # section 4
PAD, COT, FORCED, ANSWER = range(4)  # roles of a position


def generator_for(device, *key) -> torch.Generator:
    """A generator that depends on the key alone, (seed, step, problem): the only source of randomness."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class Request:
    """Roll out samples `samples` (a range within 0..group-1) of one problem.

    key: (seed, step, problem), which with the sample number decides every draw, however rows are batched or sharded.
    """

    prompt: list[int]
    key: tuple
    samples: range
    group: int


@dataclass(frozen=True)
class Rollout:
    """What happened to the n rows of one problem; all that the replay of `minisoft.reinforce` needs.

    ids, role (n, S): token (in the CoT: the shadow token) and role of every position; actions (n, C) or (n, C, d):
    tokens or noisy inputs h0~ of the CoT; log_prob (n, S) of the actions and answer tokens; entropy (n, S) in nats.
    """

    prompt: list[int]
    samples: range
    ids: torch.Tensor
    role: torch.Tensor
    actions: torch.Tensor
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
        # Only a token that brings the last character can complete a phrase; `in_cot` and `in_answer` then read the
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


class _Noise:
    """The draws of one request: a generator per problem draws for the whole group, each row takes its slice."""

    def __init__(self, request: Request, device):
        self.request = request
        self.generator = generator_for(device, *request.key)
        uniform = torch.rand(request.group, ANSWER_TOKENS, generator=self.generator, device=device)
        self.answer = self._mine(uniform)  # (n, 32)

    def cot(self, kind, d: int) -> torch.Tensor:
        """The draws of the next CoT step, (n, ...)."""
        return self._mine(kind.draw(self.generator, self.request.group, d))

    def _mine(self, whole: torch.Tensor) -> torch.Tensor:
        return whole[self.request.samples.start: self.request.samples.stop]


@dataclass
class _Row:
    """Where one row stands."""

    index: int  # its place in the record
    request: int
    role: int = COT
    forced: list[int] = field(default_factory=list)  # prefilled tokens still to be fed
    cot: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)


@torch.no_grad()
def rollout(model: Transformer, form: Format, kind, requests: list[Request], cot_tokens: int,
            greedy: bool = False, greedy_answer: bool = False) -> list[Rollout]:
    """Roll out every request; returns one Rollout for each.

    cot_tokens: CoT budget; greedy: the CoT takes the mode of its distribution (no noise); greedy_answer: so does the
    answer, otherwise it is drawn at temperature 1.
    """
    device = model.E.device
    prompts = [model.prefill(torch.tensor([r.prompt], device=device)) for r in requests]
    counts = [len(r.samples) for r in requests]
    owner = torch.repeat_interleave(torch.arange(len(requests)), torch.tensor(counts)).to(device)
    hidden = torch.cat([h[:, -1] for h, _ in prompts])[owner]  # (N, d), predicts the first position
    batch = _Batch(model, form, kind, requests, cot_tokens, greedy, greedy_answer, owner.tolist())
    cache = RowCache([c for _, c in prompts], owner, batch.capacity)
    while True:
        x = batch.step(hidden)  # (N, d), the inputs of this position
        alive = torch.tensor([row.role != PAD for row in batch.rows], device=device)
        if not alive.all():
            if not alive.any():
                return batch.records()
            order = cache.keep(alive)
            batch.rows = [batch.rows[i] for i in order.tolist()]
            x = x[order]
        hidden = model(x[:, None], cache)[:, 0]  # (N, d), predicts the next position
        cache.advance()


class _Batch:
    """The rows that are still under way, and the record of all rows."""

    def __init__(self, model, form, kind, requests, cot_tokens, greedy, greedy_answer, owner):
        self.model, self.form, self.kind, self.requests = model, form, kind, requests
        self.cot_tokens, self.greedy, self.greedy_answer = cot_tokens, greedy, greedy_answer
        self.capacity = cot_tokens + max(map(len, form.prefill)) + ANSWER_TOKENS
        self.rows = [_Row(i, request) for i, request in enumerate(owner)]
        self.noise = [_Noise(r, model.E.device) for r in requests]
        N, device = len(owner), model.E.device
        self.first = [owner.index(i) for i in range(len(requests))]
        self.ids = torch.zeros(N, self.capacity, dtype=torch.long, device=device)
        self.role = torch.full((N, self.capacity), PAD, dtype=torch.int8, device=device)
        self.log_prob = torch.zeros(N, self.capacity, device=device)
        self.entropy = torch.zeros(N, self.capacity, device=device)
        self.truncated = torch.zeros(N, dtype=torch.bool, device=device)
        self.actions = None  # (N, C) or (N, C, d), made when the first action is known
        self.t = 0  # the position that `step` fills

    def step(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (N, d) of the rows under way -> their inputs (N, d) at this position; records it."""
        at = {role: [i for i, row in enumerate(self.rows) if row.role == role] for role in (COT, FORCED, ANSWER)}
        logits = {role: self.model.logits(_take(hidden, at[role])) for role in (COT, ANSWER) if at[role]}
        x = torch.empty_like(hidden)
        if at[COT]:
            x[at[COT]] = self._think(at[COT], logits[COT])
        if at[ANSWER]:
            x[at[ANSWER]] = self._answer(at[ANSWER], logits[ANSWER])
        if at[FORCED]:
            x[at[FORCED]] = self._force(at[FORCED])
        self.t += 1
        return x

    def _think(self, at: list[int], logits: torch.Tensor) -> torch.Tensor:
        """One CoT action of each row in `at`; logits (m, V) -> inputs (m, d)."""
        rows = [self.rows[i] for i in at]
        distribution = self.kind.distribution(self.model, logits)
        action = distribution.mode() if self.greedy else distribution.sample(self._cot_noise(rows))
        shadow = self.kind.shadow(action, logits)
        index = self._record(rows, COT, shadow, distribution.log_prob(action))
        self.entropy[index, self.t] = entropy(logits)
        if self.actions is None:
            self.actions = action.new_zeros(len(self.ids), self.cot_tokens, *action.shape[1:])
        self.actions[index, self.t] = action
        for row, token in zip(rows, shadow.tolist()):
            row.cot.append(token)
            early = self.form.cot_ends(row.cot)
            if early or len(row.cot) == self.cot_tokens:
                row.role, row.forced = FORCED, list(self.form.prefill[0 if early else 1])
                self.truncated[row.index] = not early
        return self.kind.embed(self.model, action[:, None])[:, 0]

    def _cot_noise(self, rows: list[_Row]) -> torch.Tensor:
        """The draws of these rows at this step; every request with a row in its CoT advances its generator."""
        d = self.model.config.hidden_size
        drawn = {request: self.noise[request].cot(self.kind, d) for request in sorted({row.request for row in rows})}
        whole = torch.cat(list(drawn.values()))
        start, offset = {}, 0
        for request, noise in drawn.items():
            start[request], offset = offset, offset + len(noise)
        return whole[[start[row.request] + row.index - self.first[row.request] for row in rows]]

    def _answer(self, at: list[int], logits: torch.Tensor) -> torch.Tensor:
        """One answer token of each row in `at`; logits (m, V) -> inputs (m, d)."""
        rows = [self.rows[i] for i in at]
        distribution = Categorical(logits)
        if self.greedy_answer:
            token = distribution.mode()
        else:
            token = distribution.sample(torch.stack(
                [self.noise[row.request].answer[row.index - self.first[row.request], len(row.answer)] for row in rows]))
        self._record(rows, ANSWER, token, distribution.log_prob(token))
        for row, i in zip(rows, token.tolist()):
            row.answer.append(i)
            if self.form.answer_ends(row.answer):
                row.role = PAD
        return self.model.embed(token[:, None])[:, 0]

    def _force(self, at: list[int]) -> torch.Tensor:
        """The next prefilled token of each row in `at` -> inputs (m, d)."""
        rows = [self.rows[i] for i in at]
        token = torch.tensor([row.forced.pop(0) for row in rows], device=self.ids.device)
        self._record(rows, FORCED, token, torch.zeros(len(rows), device=self.ids.device))
        for row in rows:
            row.role = row.role if row.forced else ANSWER
        return self.model.embed(token[:, None])[:, 0]

    def _record(self, rows, role, token, log_prob) -> torch.Tensor:
        index = torch.tensor([row.index for row in rows], device=self.ids.device)
        self.ids[index, self.t], self.log_prob[index, self.t], self.role[index, self.t] = token, log_prob, role
        return index

    def records(self) -> list[Rollout]:
        """The record, cut into one Rollout for each request."""
        found = []
        for request, first in zip(self.requests, self.first):
            rows = slice(first, first + len(request.samples))
            S = int((self.role[rows] != PAD).sum(1).max())
            C = int((self.role[rows] == COT).sum(1).max())
            found.append(Rollout(request.prompt, request.samples, self.ids[rows, :S], self.role[rows, :S],
                                 self.actions[rows, :C], self.log_prob[rows, :S], self.entropy[rows, :S],
                                 self.truncated[rows]))
        return found


def _take(x: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return x if len(rows) == len(x) else x[rows]
