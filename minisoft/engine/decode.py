"""Rollouts as `minisoft.rollout` defines them, many rows at once and one position a step.

`Row`, `role_at` and `choose` are those of the definition; only the order of the work is another.
Rows of many problems decode together on a cache, and a finished row makes room for the next one
that waits (continuous batching).
Dimensions: N slots for rows, S positions after the prompt, d width.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence

from minisoft.data import ANSWER_TOKENS, Format
from minisoft.draws import Draws, key
from minisoft.engine import cuda
from minisoft.engine.cache import FusedCache, RowCache
from minisoft.engine.fused import measure, one_position
from minisoft.engine.linear import FastTransformer, packed
from minisoft.engine.replay import at_once
from minisoft.model import Prompt
from minisoft.rollout import COT, RECORDED, Decoding, Request, Roles, Rollout, Row, choose, role_at

AHEAD = {"cuda": 8}  # steps that a device runs before the host reads the text; 1 elsewhere
CACHES = {"cuda": FusedCache}  # RowCache elsewhere
PROMPTS_AT_ONCE = 4096  # positions of prompts that are run together


def rollout(
    model, form: Format, kind, requests: list[Request], decoding: Decoding, **options
) -> list[Rollout]:
    """One Rollout for each request, in their order; options as those of `stream`."""
    numbered = stream(model, form, kind, requests, decoding, **options)
    return [record for _, record in sorted(numbered, key=lambda pair: pair[0])]


@torch.no_grad()
def stream(
    model,
    form: Format,
    kind,
    requests: list[Request],
    decoding: Decoding,
    *,
    rows: int | None = None,
    record_actions: bool = True,
    ahead: int | None = None,
) -> Iterator[tuple[int, Rollout]]:
    """Roll out every request; yields (its number, its Rollout) when the last of its rows is done.

    rows: at most so many at once (None: all).  ahead: steps between two looks at the text (None:
    AHEAD), which changes nothing but the time.
    """
    if not requests:  # more ranks than problems
        return
    with packed(model):
        sampling = Sampling(kind, form, decoding, record_actions, model.E.device)
        ahead = ahead or AHEAD.get(model.E.device.type, 1)
        scheduler = Scheduler(model, sampling, requests, rows, ahead)
        while scheduler.under_way():
            yield from scheduler.advance()


@dataclass
class Sequence(Row):
    """A row under way: which sample of which request it is."""

    request: int = 0
    sample: int = 0

    @property
    def answer_start(self) -> int:
        """The position where its answer begins."""
        return self.cot_length + len(self.prefill)


class Sampling:
    """What all rows of a rollout have in common, and what a device keeps for others like it:
    prefilled tokens, recorded actions, CUDA graphs."""

    def __init__(self, kind, form: Format, decoding: Decoding, record_actions: bool, device):
        self.kind, self.form, self.decoding = kind, form, decoding
        self.record_actions = record_actions
        self.alike = (kind, form.prefill, decoding, record_actions)  # equal: the same graphs do
        prefill = [torch.tensor(ids, device=device) for ids in form.prefill]
        self.prefill = pad_sequence(prefill, batch_first=True)  # (2, F)
        self.prefill_length = torch.tensor([len(ids) for ids in prefill], device=device)  # (2,)
        self.actions = None  # (N, C + 1) or (N, C + 1, ...), made when the first action is known
        self.graphs: dict[tuple, torch.cuda.CUDAGraph | None] = {}


class Scheduler:
    """Which sequences are under way, each in a slot 0..N-1, and which wait.

    A step takes all N slots one position further, whatever their roles, and needs nothing from
    the host, which reads the text every `ahead` steps only:

        device   position  7   8   9   10  11  ...   takes every slot `ahead` steps further
        host     reads the tokens 7..11, finds that the stop phrase ended with 8, and sets the
                 row back to 9, where the prefill begins

    Setting back costs nothing but those steps: draws depend on the position alone, what was left
    in the cache and the record is written again before it is read, and the next input is a
    prefilled token, which no encoding has to choose.
    """

    def __init__(self, model, sampling: Sampling, requests: list[Request], rows, ahead: int):
        self.model, self.requests, self.ahead = model, requests, ahead
        form, budget = sampling.form, sampling.decoding.cot_tokens
        self.waiting = deque(
            Sequence(budget, form, request=i, sample=sample)
            for i, request in enumerate(requests)
            for sample in request.samples
        )
        self.limit = min(rows or len(self.waiting), len(self.waiting))
        self.finished: list[dict[int, dict]] = [{} for _ in requests]  # {sample: what it recorded}
        self.encoded: dict[int, torch.Tensor] = {}  # request -> its prompt's last encoding (d,)
        capacity = budget + max(map(len, form.prefill)) + ANSWER_TOKENS + ahead
        prompt = max(len(request.prompt) for request in requests)
        self.slots = slots_for(model, sampling, self.limit, capacity, prompt)
        self.cache, self.device = self.slots.cache, model.E.device
        self.sequences: list[Sequence | None] = [None] * len(self.cache.prompt_of)
        self._admit()

    def under_way(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if sequence]

    def _admit(self) -> None:
        """Waiting rows take free slots."""
        free = [slot for slot, sequence in enumerate(self.sequences) if sequence is None]
        free = free[: min(self.limit - len(self.under_way()), len(self.waiting))]
        if not free:
            return
        sequences = [self.waiting.popleft() for _ in free]
        self._run_prompts({sequence.request for sequence in sequences} - set(self.encoded))
        keys = []
        for slot, sequence in zip(free, sequences, strict=True):
            i = sequence.request
            self.sequences[slot] = sequence
            self.cache.prompt_of[slot] = i
            self.slots.hidden[slot] = self.encoded[i]
            keys.append(key(*self.requests[i].key, sequence.sample))
        self.slots.keys[torch.tensor(free, device=self.device)] = torch.tensor(keys).to(self.device)
        self.cache.bind()
        self.slots.upload(self.sequences)

    def _run_prompts(self, requests: set[int]) -> None:
        """Prompts padded to a multiple of BLOCK, which changes nothing, as attention is causal;
        those of one length at once, as another length might round otherwise."""
        alike: dict[int, list[int]] = {}
        for i in sorted(requests):
            alike.setdefault(RowCache.round_up(len(self.requests[i].prompt)), []).append(i)
        for length, numbers in alike.items():
            n = max(1, PROMPTS_AT_ONCE // length)
            for first in range(0, len(numbers), n):
                self._run_alike(numbers[first : first + n], length)

    def _run_alike(self, requests: list[int], length: int) -> None:
        """Prompts padded to one length, together."""
        prompts = [self.requests[i].prompt for i in requests]
        ids = torch.tensor([prompt + [0] * (length - len(prompt)) for prompt in prompts])
        hidden, recorded = self.model.run_prompt(ids.to(self.device))
        for n, (i, prompt) in enumerate(zip(requests, prompts, strict=True)):
            P, both = len(prompt), (recorded.keys, recorded.values)
            self.cache.prompts[i] = Prompt(*(tuple(x[n : n + 1, :, :P] for x in of) for of in both))
            self.encoded[i] = hidden[n, P - 1].clone()  # or it would hold all of `hidden`

    def advance(self) -> list[tuple[int, Rollout]]:
        """`ahead` steps and a look at what came of them; then waiting rows take the free slots, or
        these are dropped.  Returns the requests whose last row is done."""
        sequences = self.under_way()
        most_left = max(s.answer_start + ANSWER_TOKENS - s.position for s in sequences)
        steps = max(1, min(self.ahead, most_left))
        cot = any(sequence.position < sequence.cot_length for sequence in sequences)
        answer = any(sequence.position + steps > sequence.answer_start for sequence in sequences)
        self.cache.reserve(max(sequence.position for sequence in sequences) + steps)
        for _ in range(steps):
            self.slots.step(self.model, cot, answer)
        done = self._read(steps)
        if self.waiting:
            self._admit()
        elif self.under_way() and (order := self.cache.compact()):  # empty slots are dropped
            self.sequences = [self.sequences[i] for i in order]
            self.slots.reorder(order)
            self.cache.bind()
        return done

    def _read(self, steps: int) -> list[tuple[int, Rollout]]:
        """Read what the rows have written in so many steps since the last look; returns the
        requests whose last row is done."""
        latest = self.slots.latest(steps)
        done, changed = [], False
        for slot, sequence in enumerate(self.sequences):
            for token in latest[slot] if sequence else []:
                was_stopped = sequence.stopped
                sequence.take(token)
                if sequence.done or sequence.stopped != was_stopped:
                    changed = True  # the tokens after the stop phrase are not those of the prefill
                    break
            if sequence and sequence.done:
                done += self._finish(slot, sequence)
        if changed:
            self.slots.upload(self.sequences)
        return done

    def _finish(self, slot: int, sequence: Sequence) -> list[tuple[int, Rollout]]:
        """The row leaves its slot; [(request, Rollout)] if it was the last one of its request."""
        i = sequence.request
        self.finished[i][sequence.sample] = self.slots.record(slot, sequence)
        self.sequences[slot] = self.cache.prompt_of[slot] = None
        if len(self.finished[i]) < len(self.requests[i].samples):
            return []
        del self.cache.prompts[i], self.encoded[i]
        return [(i, self._join(self.requests[i], self.finished[i]))]

    def _join(self, request: Request, recorded: dict[int, dict]) -> Rollout:
        """What the rows of a request have recorded, padded with 0, which is PAD."""
        rows = [recorded.pop(sample) for sample in request.samples]
        truncated = torch.tensor([row["truncated"] for row in rows], device=self.device)
        wanted = [name for name in RECORDED if rows[0][name] is not None]
        padded = {x: pad_sequence([row[x] for row in rows], batch_first=True) for x in wanted}
        keys, padded = request.keys.to(self.device), {"actions": None} | padded
        return Rollout(request.prompt, request.samples, keys, truncated, **padded)


def slots_for(model, sampling: Sampling, rows: int, capacity: int, prompt: int) -> "Slots":
    """Slots for so many rows of `capacity` positions after prompts of `prompt`.  On a GPU the last
    ones are kept with the model, for their CUDA graphs, and used again where they fit."""
    if model.E.device.type not in CACHES or not isinstance(model, FastTransformer):
        return Slots(model, rows, capacity, prompt).begin(sampling)
    weights = [p.data_ptr() for p in model.parameters()]  # which the graphs have read
    slots, asked = model.slots, (RowCache.round_up(rows), weights, cuda.GRAPHS)
    fits = slots and slots.asked == asked and slots.capacity >= capacity and slots.prompt >= prompt
    if not fits:
        model.slots = None  # so that its memory is free before the next one is made
        slots = model.slots = Slots(model, rows, capacity, RowCache.round_up(prompt))
        slots.asked = asked
    return slots.begin(sampling)


class Slots:
    """What the device knows of N rows and records of them, and the step that takes all of them one
    position further."""

    KEPT = 4  # samplings whose graphs are kept: training, and validations

    def __init__(self, model, rows: int, capacity: int, prompt: int):
        config, dtype, device = model.config, model.E.dtype, model.E.device
        self.device, self.capacity, self.prompt = device, capacity, prompt
        cache = CACHES.get(device.type, RowCache)
        self.cache = cache(config, rows, capacity, prompt, device, dtype)
        self.samplings: list[Sampling] = []  # the latest first
        self.graphs = cuda.Graphs(device)
        N, whole = len(self.cache.prompt_of), {"dtype": torch.long, "device": device}
        self.keys = torch.zeros(N, **whole)
        self.cot_length = torch.zeros(N, **whole)
        self.spent = torch.zeros(N, **whole)  # 1 where the CoT took its budget: the other prefill
        self.hidden = torch.zeros(N, config.hidden_size, dtype=dtype, device=device)
        self.ids = torch.zeros(N, capacity, **whole)
        self.log_prob = torch.zeros(N, capacity, dtype=torch.float64, device=device)
        self.measures = torch.zeros(N, capacity, 3, device=device)

    def begin(self, sampling: Sampling) -> "Slots":
        """A rollout begins; what was kept of one like it is used again."""
        self.cache.clear()
        same = [kept for kept in self.samplings if kept.alike == sampling.alike]
        self.sampling = same[0] if same else sampling
        others = [kept for kept in self.samplings if kept is not self.sampling]
        self.samplings = [self.sampling, *others][: self.KEPT]
        return self

    def upload(self, sequences: list[Sequence | None]) -> None:
        """The device gets to know where the row of every slot stands."""
        rows = [(s.position, s.cot_length, not s.stopped) if s else (0, 0, 0) for s in sequences]
        position, cot_length, spent = torch.tensor(rows).T
        self.cache.position.copy_(position)
        self.cot_length.copy_(cot_length)
        self.spent.copy_(spent)

    def step(self, model, cot: bool, answer: bool) -> None:
        """Every slot one position further; cot, answer: see `Roles`."""
        shape = (cot, answer, self.cache.width)
        self.graphs.run(self.sampling.graphs, shape, partial(self._step, model, cot, answer))

    def _step(self, model, cot: bool, answer: bool) -> None:
        """Choose the input of this position for every row, record it, feed it."""
        n = at_once(model, RowCache.BLOCK)  # rows: what has V numbers a row exists for so many
        pieces = [slice(first, first + n) for first in range(0, len(self.keys), n)]
        x = torch.cat([self._choose(model, some, cot, answer) for some in pieces])
        self.hidden.copy_(one_position(model, x, self.cache))  # predicts the next position
        self.cache.position += 1

    def _choose(self, model, some: slice, cot: bool, answer: bool) -> torch.Tensor:
        """Choose the inputs (n, d) of some rows, and record them."""
        at, spent, sampling = self.cache.position[some], self.spent[some], self.sampling
        slots, after_cot = self.cache.rows[some], at - self.cot_length[some]  # (n,)
        role = role_at(after_cot, sampling.prefill_length[spent])
        forced = sampling.prefill[spent, after_cot.clamp(0, sampling.prefill.shape[1] - 1)]
        roles, draws = Roles(role, forced, cot, answer), Draws(self.keys[some], at)
        chosen = choose(model, sampling.kind, self.hidden[some], roles, draws, sampling.decoding)
        self.ids[slots, at] = chosen.token
        self.log_prob[slots, at] = chosen.log_prob
        if cot:
            self.measures[slots, at] = measure(chosen.logits, chosen.weights)
            if sampling.record_actions:
                C = sampling.decoding.cot_tokens  # what comes after a row's CoT is never read
                if sampling.actions is None:
                    shape = len(self.keys), C + 1, *chosen.action.shape[1:]
                    sampling.actions = chosen.action.new_zeros(shape)
                sampling.actions[slots, at.clamp(max=C)] = chosen.action
        return chosen.x

    def latest(self, steps: int) -> list[list[int]]:
        """The tokens of the last so many positions of every slot."""
        back = torch.arange(steps, 0, -1, device=self.device)
        return self.ids.gather(1, self.cache.position[:, None] - back).tolist()  # (N, steps)

    def record(self, slot: int, sequence: Sequence) -> dict:
        """What a row has recorded: {name: (S, ...)}, see `rollout.RECORDED`; `truncated`."""
        S, C = sequence.position, sequence.cot_length
        role = role_at(torch.arange(-C, S - C, device=self.device), len(sequence.prefill))
        recorded = self.sampling.record_actions
        return {
            "ids": self.ids[slot, :S].clone(),
            "role": role.to(torch.int8),
            "actions": self.sampling.actions[slot, :C].clone() if recorded else None,
            "log_prob": self.log_prob[slot, :S].clone(),
            "measures": self.measures[slot, :S].masked_fill((role != COT)[:, None], 0.0),
            "truncated": not sequence.stopped,
        }

    def reorder(self, order: list[int]) -> None:
        """Slots i become those that were order[i]."""
        for name in "keys cot_length spent hidden ids log_prob measures".split():
            setattr(self, name, getattr(self, name)[order])
        if self.sampling.actions is not None:
            self.sampling.actions = self.sampling.actions[order]
