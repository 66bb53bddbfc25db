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

    index: int  # its place in the record
    request: int
    sample: int
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
    owner = torch.tensor([i for i, r in enumerate(requests) for _ in r.samples], device=device)
    hidden = torch.cat([h[:, -1] for h, _ in prompts])[owner]  # (N, d), predicts the first position
    batch = _Batch(model, form, kind, requests, cot_tokens, greedy, greedy_answer)
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
        cache.step += 1


class _Batch:
    """The rows that are still under way, and the record of all rows."""

    def __init__(self, model, form, kind, requests, cot_tokens, greedy, greedy_answer):
        self.model, self.form, self.kind, self.requests = model, form, kind, requests
        self.cot_tokens, self.greedy, self.greedy_answer = cot_tokens, greedy, greedy_answer
        self.capacity = cot_tokens + max(map(len, form.prefill)) + ANSWER_TOKENS
        places = [(i, sample) for i, r in enumerate(requests) for sample in r.samples]
        self.rows = [_Row(index, *place) for index, place in enumerate(places)]
        shape, device = (len(self.rows), self.capacity), model.E.device
        # One generator a problem draws for its whole group, whichever of the samples are rolled out here.
        self.generators = [generator_for(device, *r.key) for r in requests]
        self.uniform = [torch.rand(r.group, ANSWER_TOKENS, generator=g, device=device)
                        for r, g in zip(requests, self.generators)]  # for the answers, (G, 32) each
        self.ids = torch.zeros(shape, dtype=torch.long, device=device)
        self.role = torch.full(shape, PAD, dtype=torch.int8, device=device)
        self.log_prob = torch.zeros(shape, dtype=torch.float64, device=device)
        self.entropy = torch.zeros(shape, device=device)
        self.truncated = torch.zeros(shape[0], dtype=torch.bool, device=device)
        self.actions = None  # (N, C) or (N, C, d), made when the first action is known
        self.t = 0  # the position that `step` fills

    def step(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (N, d) of the rows under way -> their inputs (N, d) at this position; records it."""
        x = torch.empty_like(hidden)
        act = {COT: self._think, FORCED: self._force, ANSWER: self._answer}
        at = {role: [i for i, row in enumerate(self.rows) if row.role == role] for role in act}  # before anyone moves on
        for role, places in at.items():
            if places:
                x[places] = act[role]([self.rows[i] for i in places], hidden if len(places) == len(x) else hidden[places])
        self.t += 1
        return x

    def _think(self, rows: list[_Row], hidden: torch.Tensor) -> torch.Tensor:
        """One CoT action of each of m rows; hidden (m, d) -> inputs (m, d)."""
        logits = self.model.logits(hidden)  # (m, V)
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
        """The draws of these rows at this step, (m, ...): problems with a row in its CoT advance their generators."""
        d = self.model.config.hidden_size
        drawn = {i: self.kind.draw(self.generators[i], self.requests[i].group, d) for i in {row.request for row in rows}}
        return torch.stack([drawn[row.request][row.sample] for row in rows])

    def _force(self, rows: list[_Row], hidden: torch.Tensor) -> torch.Tensor:
        """The next prefilled token of each of m rows -> inputs (m, d); what the model says is not looked at."""
        token = torch.tensor([row.forced.pop(0) for row in rows], device=hidden.device)
        self._record(rows, FORCED, token, 0.0)
        for row in rows:
            row.role = row.role if row.forced else ANSWER
        return self.model.embed(token[:, None])[:, 0]

    def _answer(self, rows: list[_Row], hidden: torch.Tensor) -> torch.Tensor:
        """One answer token of each of m rows; hidden (m, d) -> inputs (m, d)."""
        distribution = Categorical(self.model.logits(hidden))
        uniform = torch.stack([self.uniform[row.request][row.sample, len(row.answer)] for row in rows])
        token = distribution.mode() if self.greedy_answer else distribution.sample(uniform)
        self._record(rows, ANSWER, token, distribution.log_prob(token))
        for row, i in zip(rows, token.tolist()):
            row.answer.append(i)
            if self.form.answer_ends(row.answer):
                row.role = PAD
        return self.model.embed(token[:, None])[:, 0]

    def _record(self, rows, role, token, log_prob) -> torch.Tensor:
        index = torch.tensor([row.index for row in rows], device=self.ids.device)
        self.ids[index, self.t], self.log_prob[index, self.t], self.role[index, self.t] = token, log_prob, role
        return index

    def records(self) -> list[Rollout]:
        """The record, cut into one Rollout for each request."""
        found, start = [], 0
        for request in self.requests:
            rows = slice(start, start := start + len(request.samples))
            S = int((self.role[rows] != PAD).sum(1).max())
            C = int((self.role[rows] == COT).sum(1).max())
            found.append(Rollout(request.prompt, request.samples, self.ids[rows, :S], self.role[rows, :S],
                                 self.actions[rows, :C], self.log_prob[rows, :S], self.entropy[rows, :S],
                                 self.truncated[rows]))
        return found
