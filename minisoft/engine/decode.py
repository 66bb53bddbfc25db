"""Rollouts as `minisoft.rollout` defines them, many rows at once and one position a step.

It is a second timetable, not a second algorithm: `Row` and `choose` are those of the definition.
Rows of many problems decode together on a cache, and a finished row makes room for the next one
that waits (continuous batching).
Dimensions: N places for rows, S positions after the prompt, d width.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence

from minisoft.data import ANSWER_TOKENS, Format
from minisoft.draws import Draws, key
from minisoft.engine.cache import FusedCache, RowCache
from minisoft.engine.fused import entropy
from minisoft.engine.linear import FastTransformer, packed
from minisoft.model import Prompt
from minisoft.rollout import ANSWER, COT, FORCED, Decoding, Request, Rollout, Row, Turn, choose

AHEAD = {"cuda": 8}  # steps that a device runs before the host reads the text; 1 elsewhere
CACHES = {"cuda": FusedCache}  # RowCache elsewhere
PROMPTS_AT_ONCE = 4096  # positions of prompts that are run together
GRAPHS = True  # on a GPU steps are recorded as CUDA graphs


def rollout(
    model, form: Format, kind, requests: list[Request], how: Decoding, **options
) -> list[Rollout]:
    """One Rollout for each request, in their order; options as those of `stream`."""
    numbered = stream(model, form, kind, requests, how, **options)
    return [record for _, record in sorted(numbered, key=lambda pair: pair[0])]


@torch.no_grad()
def stream(
    model,
    form: Format,
    kind,
    requests: list[Request],
    how: Decoding,
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
        ahead = ahead or AHEAD.get(model.E.device.type, 1)
        places = Places(model, form, kind, how, requests, rows, ahead, record_actions)
        while places.busy():
            yield from places.advance()


@dataclass
class Guest:
    """A row under way: which sample of which request it is."""

    request: int
    sample: int
    row: Row

    @property
    def position(self) -> int:
        """So many positions after the prompt it has."""
        return len(self.row.cot) + self.row.forced + len(self.row.answer)

    @property
    def answer_start(self) -> int:
        """The position where its answer begins."""
        return self.cot_length + len(self.row.prefill)

    @property
    def most_left(self) -> int:
        """So many positions it may still take, if nothing ends early."""
        return self.answer_start + ANSWER_TOKENS - self.position

    @property
    def cot_length(self) -> int:
        """Positions of its CoT; the budget until the stop phrase has been seen."""
        return len(self.row.cot) if self.row.stopped else self.row.budget


class Places:
    """The rows under way, each in a place 0..N-1 of the board, and those that wait.

    A step takes all N places one position further, whatever their roles, and needs nothing from
    the host, which reads the text every `ahead` steps only:

        device   position  7   8   9   10  11  ...   takes every place `ahead` steps further
        host     reads the tokens 7..11, finds that the stop phrase ended with 8, and sets the
                 row back to 9, where the prefill begins

    Setting back costs nothing but those steps: draws depend on the position alone, what was left
    in the cache and the record is written again before it is read, and the next input is a
    prefilled token, which no encoding has to choose.
    """

    def __init__(self, model, form, kind, how, requests, rows, ahead, record_actions):
        self.model, self.requests, self.ahead = model, requests, ahead
        self.waiting = deque(
            Guest(i, sample, Row(how.cot_tokens, form))
            for i, request in enumerate(requests)
            for sample in request.samples
        )
        self.limit = min(rows or len(self.waiting), len(self.waiting))
        self.unfinished = [len(request.samples) for request in requests]
        self.finished: list[list[tuple]] = [[] for _ in requests]
        # request -> (number of its prompt in the cache, encoding of the prompt's last position)
        self.prompts: dict[int, tuple[int, torch.Tensor]] = {}
        after = max(map(len, form.prefill)) + ANSWER_TOKENS + ahead
        prompt = max(len(request.prompt) for request in requests)
        task = Task(kind, how, form.prefill, record_actions)
        self.board = board_for(model, task, self.limit, how.cot_tokens + after, prompt)
        self.cache, self.device = self.board.cache, model.E.device
        self.guests: list[Guest | None] = [None] * len(self.cache.owner)
        self.moved = False  # rows came or changed places since the cache seated them
        self._fill()

    def busy(self) -> bool:
        return any(self.guests)

    def _under_way(self) -> list[Guest]:
        return [guest for guest in self.guests if guest]

    def _fill(self) -> None:
        """Waiting rows take free places."""
        free = [place for place, guest in enumerate(self.guests) if guest is None]
        free = free[: min(self.limit - len(self._under_way()), len(self.waiting))]
        guests = [self.waiting.popleft() for _ in free]
        self._run_prompts({guest.request for guest in guests} - set(self.prompts))
        keys = []
        for place, guest in zip(free, guests, strict=True):
            self.guests[place] = guest
            self.cache.owner[place], self.board.hidden[place] = self.prompts[guest.request]
            keys.append(key(*self.requests[guest.request].key, guest.sample))
        if free:
            places = torch.tensor(free, device=self.device)
            self.board.keys[places] = torch.tensor(keys).to(self.device)
            self._tell()
            self.moved = True

    def _run_prompts(self, requests: set[int]) -> None:
        """Prompts padded to a multiple of BLOCK, which changes nothing, as attention is causal;
        those of one length at once, as another length might round otherwise."""
        alike: dict[int, list[int]] = {}
        for i in sorted(requests):
            alike.setdefault(RowCache.round_up(len(self.requests[i].prompt)), []).append(i)
        for length, numbers in alike.items():
            most = max(1, PROMPTS_AT_ONCE // length)
            for first in range(0, len(numbers), most):
                self._run_alike(numbers[first : first + most], length)

    def _run_alike(self, requests: list[int], length: int) -> None:
        """Prompts padded to one length, together."""
        prompts = [self.requests[i].prompt for i in requests]
        ids = torch.tensor([prompt + [0] * (length - len(prompt)) for prompt in prompts])
        hidden, recorded = self.model.prefill(ids.to(self.device))
        for n, (i, prompt) in enumerate(zip(requests, prompts, strict=True)):
            one = (tuple(x[n : n + 1] for x in part) for part in (recorded.keys, recorded.values))
            self.prompts[i] = self.cache.add(Prompt(*one), len(prompt)), hidden[n, len(prompt) - 1]

    def _tell(self) -> None:
        """The device learns where every row stands."""
        self.board.tell(
            (guest.position, guest.cot_length, 0 if guest.row.stopped else 1)
            if guest
            else (0, 0, 0)
            for guest in self.guests
        )

    def advance(self) -> list[tuple[int, Rollout]]:
        """`ahead` steps and a look at what came of them; then waiting rows take the free places,
        or these are given up.  Returns the requests whose last row is done."""
        if self.moved:
            self.cache.seat()
            self.moved = False
        guests = self._under_way()
        steps = max(1, min(self.ahead, max(guest.most_left for guest in guests)))
        thinks = any(guest.position < guest.cot_length for guest in guests)
        speaks = any(guest.position + steps > guest.answer_start for guest in guests)
        self.cache.widen(max(guest.position for guest in guests) + steps)
        for _ in range(steps):
            self.board.step(self.model, thinks, speaks)
        done = self._read(steps)
        if not self.waiting:
            self._shrink()
        elif len(self._under_way()) < self.limit:
            self._fill()
        return done

    def _read(self, steps: int) -> list[tuple[int, Rollout]]:
        """Read what the rows have written in so many steps since the last look; returns the
        requests whose last row is done."""
        latest = self.board.latest(steps)
        done, changed = [], False
        for place, guest in enumerate(self.guests):
            if guest is None:
                continue
            for token in latest[place]:
                was_stopped = guest.row.stopped
                guest.row.take(token)
                if guest.row.done or guest.row.stopped != was_stopped:
                    changed = True  # the tokens after the stop phrase are not those of the prefill
                    break
            if guest.row.done:
                done += self._finish(place, guest)
        if changed:
            self._tell()
        return done

    def _shrink(self) -> None:
        """Give up empty places."""
        order = self.cache.shrink() if self.busy() else None
        if order is None:
            return
        self.guests, self.moved = [self.guests[i] for i in order], True
        self.board.reorder(order)

    def _finish(self, place: int, guest: Guest) -> list[tuple[int, Rollout]]:
        """The row leaves its place; [(request, Rollout)] if it was the last one of its request."""
        i = guest.request
        self.finished[i].append((guest.sample, self.board.record(place, guest)))
        self.guests[place] = self.cache.owner[place] = None
        self.unfinished[i] -= 1
        if self.unfinished[i]:
            return []
        self.cache.drop(self.prompts.pop(i)[0])
        return [(i, self._join(self.requests[i], self.finished[i]))]

    def _join(self, request: Request, rows: list[tuple]) -> Rollout:
        """The records of all rows of a request, in the order of their samples."""
        records = [record for _, record in sorted(rows, key=lambda row: row[0])]
        rows.clear()
        ids, role, actions, log_prob, entropy, truncated, softness = zip(*records, strict=True)
        return Rollout(
            request.prompt,
            request.samples,
            pad_sequence(ids, batch_first=True),  # (n, S); the padding is 0, which is PAD
            pad_sequence(role, batch_first=True),
            None if actions[0] is None else pad_sequence(actions, batch_first=True),
            pad_sequence(log_prob, batch_first=True),
            pad_sequence(entropy, batch_first=True),
            torch.tensor(truncated, device=self.device),
            request.keys.to(self.device),
            pad_sequence(softness, batch_first=True),
        )


def board_for(model, task: "Task", rows: int, capacity: int, prompt: int) -> "Board":
    """A board with places for so many rows of `capacity` positions after prompts of `prompt`.  On a
    GPU the last one is kept with the model, for its CUDA graphs, and used again where it fits."""
    if model.E.device.type not in CACHES or not isinstance(model, FastTransformer):
        return Board(model, rows, capacity, prompt).begin(task)
    weights = [p.data_ptr() for p in model.parameters()]  # which the graphs have read
    board, asked = model.board, (RowCache.round_up(rows), weights, GRAPHS)
    fits = board and board.asked == asked and board.capacity >= capacity and board.prompt >= prompt
    if not fits:
        model.board = None  # so that its memory is free before the next one is made
        board = model.board = Board(model, rows, capacity, RowCache.round_up(prompt))
        board.asked = asked
    return board.begin(task)


class Task:
    """What all rows of a rollout have in common: kind of token, how to decode, prefills, are
    actions recorded?  And what a device keeps of them."""

    def __init__(self, kind, how: Decoding, prefills: list[list[int]], record_actions: bool):
        self.kind, self.how, self.record_actions = kind, how, record_actions
        self.name = repr((kind, how, prefills, record_actions))
        prefill = [torch.tensor(ids) for ids in prefills]
        self.prefill = pad_sequence(prefill, batch_first=True)  # (2, F)
        self.prefill_length = torch.tensor([len(ids) for ids in prefills])  # (2,)
        self.actions = None  # (N, C + 1) or (N, C + 1, ...), made when the first action is known
        self.graphs: dict[tuple, torch.cuda.CUDAGraph | None] = {}

    def to(self, device: torch.device) -> "Task":
        self.prefill, self.prefill_length = self.prefill.to(device), self.prefill_length.to(device)
        return self


class Board:
    """What the device knows of N places and writes down of them, and the step that takes all of
    them one position further."""

    TASKS = 4  # whose graphs are kept: training, and validations

    def __init__(self, model, rows: int, capacity: int, prompt: int):
        config, dtype, device = model.config, model.E.dtype, model.E.device
        self.device, self.capacity, self.prompt = device, capacity, prompt
        cache = CACHES.get(device.type, RowCache)
        self.cache = cache(config, rows, capacity, prompt, device, dtype)
        N, self.tasks, self.recorder = len(self.cache.owner), {}, Graphs(device)
        whole = {"dtype": torch.long, "device": device}
        self.keys, self.cot_length = torch.zeros(N, **whole), torch.zeros(N, **whole)
        self.late = torch.zeros(N, **whole)  # which prefill: 0 after the stop phrase, else 1
        self.hidden = torch.zeros(N, config.hidden_size, dtype=dtype, device=device)
        self.ids = torch.zeros(N, capacity, **whole)
        self.log_prob = torch.zeros(N, capacity, dtype=torch.float64, device=device)
        self.entropy = torch.zeros(N, capacity, device=device)
        self.softness = torch.zeros(N, capacity, 2, device=device)

    def begin(self, task: Task) -> "Board":
        """A rollout begins; what was kept of the last one like it is used again."""
        self.cache.clear()
        if task.name not in self.tasks:
            for name in list(self.tasks)[: len(self.tasks) + 1 - self.TASKS]:
                del self.tasks[name]
            self.tasks[task.name] = task.to(self.device)
        self.task = self.tasks[task.name]
        return self

    def tell(self, stand) -> None:
        """(position, CoT length, which prefill) of every place."""
        position, cot_length, late = torch.tensor(list(stand)).T
        self.cache.position.copy_(position)
        self.cot_length.copy_(cot_length)
        self.late.copy_(late)

    def step(self, model, thinks: bool, speaks: bool) -> None:
        """Every place one position further; thinks, speaks: see `Turn`."""
        shape = (thinks, speaks, self.cache.width)
        self.recorder.run(self.task.graphs, shape, partial(self._step, model, thinks, speaks))

    def _step(self, model, thinks: bool, speaks: bool) -> None:
        """Choose the input of this position for every row, record it, feed it."""
        at, places = self.cache.position, torch.arange(len(self.keys), device=self.device)
        task = self.task
        past = at - self.cot_length  # (N,); the roles are those of Row.role, on the device
        role = torch.where(past < task.prefill_length[self.late], FORCED, ANSWER)
        role = torch.where(past < 0, COT, role)
        forced = task.prefill[self.late, past.clamp(0, task.prefill.shape[1] - 1)]
        turn = Turn(role, forced, thinks, speaks)
        draws = Draws(self.keys, at)
        move = choose(model, task.kind, self.hidden, turn, draws, task.how)
        if thinks and task.record_actions:
            self._record(places, move.action, at)
        self.ids[places, at] = move.token
        self.log_prob[places, at] = move.log_prob
        self.entropy[places, at] = entropy(move.logits)
        if thinks:
            self.softness[places, at] = move.softness
        self.hidden.copy_(self.cache.feed(model, move.x))  # (N, d), predicts the next position
        at += 1

    def _record(self, places: torch.Tensor, action: torch.Tensor, at: torch.Tensor) -> None:
        """All places at once: what is written after the CoT of a row is never read."""
        C, task = self.task.how.cot_tokens, self.task
        if task.actions is None:
            task.actions = action.new_zeros(len(action), C + 1, *action.shape[1:])
        task.actions[places, at.clamp(max=C)] = action

    def latest(self, steps: int) -> list[list[int]]:
        """The tokens of the last so many positions of every place."""
        back = torch.arange(steps, 0, -1, device=self.device)
        return self.ids.gather(1, self.cache.position[:, None] - back).tolist()  # (N, steps)

    def record(self, place: int, guest: Guest) -> tuple:
        """What a row has written: ids, roles, actions, log_prob, entropy, was it truncated?, and
        softness."""
        S, C = guest.position, guest.cot_length
        role = torch.full((S,), FORCED, dtype=torch.int8, device=self.device)
        role[:C] = COT
        role[S - len(guest.row.answer) :] = ANSWER
        return (
            self.ids[place, :S].clone(),
            role,
            self.task.actions[place, :C].clone() if self.task.record_actions else None,
            self.log_prob[place, :S].clone(),
            self.entropy[place, :S].masked_fill(role == FORCED, 0.0),
            not guest.row.stopped,
            self.softness[place, :S].masked_fill((role != COT)[:, None], 0.0),
        )

    def reorder(self, order: list[int]) -> None:
        """Places i become those that were order[i]."""
        kept = "keys cot_length late hidden ids log_prob entropy softness"
        for name in kept.split():
            setattr(self, name, getattr(self, name)[order])
        if self.task.actions is not None:
            self.task.actions = self.task.actions[order]


class Graphs:
    """Steps given to a GPU as a whole: recorded once for each shape, after a first ordinary time,
    as CUDA graphs.  Elsewhere every step is an ordinary one."""

    def __init__(self, device: torch.device):
        self.device, self.used = device, GRAPHS and device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.used else None

    def run(self, graphs: dict, shape: tuple, step) -> None:
        """graphs: {shape: its graph, or None after the first ordinary step}, which this fills."""
        if not self.used or shape not in graphs:
            step()
            graphs[shape] = None
            return
        if graphs[shape] is None:
            graph = torch.cuda.CUDAGraph()
            stream = torch.cuda.Stream(self.device)
            how = {"pool": self.pool, "stream": stream, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(graph, **how):  # NCCL's thread may go on meanwhile
                step()
            graphs[shape] = graph
        graphs[shape].replay()
