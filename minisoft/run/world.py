"""torch.distributed data parallelism: who am I, which samples are mine, sums over all ranks."""

import ctypes
import datetime
import io
import os
import re
import signal
import sys
import time
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, suppress

import torch
import torch.distributed as dist
from tqdm import tqdm

from minisoft.errors import InputError, expect, expecting
from minisoft.kinds.options import COUNT, NATURAL, Number, Option

LINE_EVERY = 10  # seconds between two lines of a bar that no terminal shows
GRACE = 10  # seconds that a rank has to say that its exchange failed too


def keep_memory() -> None:
    """From now on what is freed stays with the process.  glibc would hand large blocks back and get
    them again page by page, a sixth of a replay on CPUs; those of 256 MiB and more it may, as there
    the holes between them count.  Without glibc nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: False)
    # M_MMAP_THRESHOLD, before glibc 2.35 at most 32 MiB; M_TRIM_THRESHOLD
    if mallopt(-3, 2**28) or mallopt(-3, 2**25):
        mallopt(-1, 2**30)


class Output(io.FileIO):
    """Standard output or error, without a buffer.  What cannot be written there (a closed terminal,
    `| head`, `| tee` after Ctrl-C, a full disk) is dropped: it must not decide what is saved."""

    def write(self, data) -> int:
        left = memoryview(data)
        with suppress(OSError):
            while left:
                left = left[super().write(left) or len(left) :]
        return len(data)


def open_output(number: int, errors: str, stream) -> io.TextIOWrapper:
    """What stands for `stream`, which has that number, in a program."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= number:
        pass  # it was closed, and the next file would have got what is printed
    os.close(spare)
    encoding = getattr(stream, "encoding", None)
    raw = Output(number, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding, errors, line_buffering=True)


def as_program(main) -> None:
    """main() as a program.  What a terminal cannot show is printed as "?", on stderr escaped.  A
    rank among several leaves without the destructors of C++, in which one in thirty was seen to
    abort ("terminate called without an active exception", torch 2.13, gloo)."""
    sys.stdout = open_output(1, "replace", sys.stdout)
    sys.stderr = open_output(2, "backslashreplace", sys.stderr)
    try:
        status = main()
    except SystemExit as end:
        status = end.code
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        hint = "fewer rows (--group, --batch, --eval-batch) or tokens (--cot), or --dtype bfloat16"
        found = " ".join(str(error).split())[:200]
        status = f"{os.path.basename(sys.argv[0])}: error: out of memory; set {hint}: {found}"
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C would break off the end
    sys.stdout.flush()
    sys.stderr.flush()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os._exit(status or 0)
    sys.exit(status)


class Lines(tqdm):
    """A progress bar for a log: its first line, one every LINE_EVERY seconds, its last one."""

    def display(self, *_, **__) -> None:
        print(self, file=sys.stderr)


def bar(*of, **options) -> tqdm:
    """A progress bar, with tqdm's arguments."""
    if sys.stderr.isatty():
        return tqdm(*of, **options)
    # tqdm's carriage returns go nowhere
    return Lines(*of, **options, file=io.StringIO(), mininterval=LINE_EVERY, miniters=1)


def share(rank: int, size: int, prompts: int, group: int) -> list[tuple[int, range]]:
    """The part of a step's B x G samples that rank `rank` of `size` takes: [(problem, its
    samples)], equal in number for all.  Raises InputError where they do not divide B G."""
    total = prompts * group
    where = f"prompts x group = {prompts} x {group}"
    expect(total % size == 0, where, f"a multiple of the {size} ranks", total)
    first, last = rank * total // size, (rank + 1) * total // size
    return [
        (b, range(max(first - b * group, 0), min(last - b * group, group)))
        for b in range(first // group, -(-last // group))
    ]


def from_launcher(name: str, default: int | None, numbers: Number = NATURAL) -> int:
    """What torchrun sets.  Raises InputError for what is not one of these numbers."""
    return Option(name, numbers, "").read(os.environ.get(name, default), f"environment: {name}")


def read_device(name: str | None) -> torch.device:
    """cpu, cuda or cuda:N, there or not; None is cuda if there.  Raises InputError for others."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    known = re.fullmatch(r"cpu(:0)?|cuda(:(0|[1-9][0-9]?))?", name)
    expect(known, "--device", "cpu or cuda", name)
    return torch.device(name)


def find_device(device: str | None, of_node: int) -> torch.device:
    """See World.  Raises InputError for a device that is not there."""
    found = read_device(device)
    if found.type == "cuda":
        found = torch.device("cuda", of_node if found.index is None else found.index)
        with expecting(f"{found} to be there, or --device cpu", "--device"):
            torch.cuda.init()
            torch.cuda.set_device(found)
    return found


def is_out_of_memory(error: Exception) -> bool:
    """Is it for lack of memory, of a GPU or of the host?"""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


class RankError(RuntimeError):
    """Ranks do not work together: one has ended or hangs, or they hold different weights."""


class World(AbstractContextManager):
    """rank, size and device of this process; a context manager.  device: "cpu", "cuda" (rank r of a
    node takes GPU r) or None for cuda where there is one.  patience: minutes that ranks wait for
    each other, before RankError."""

    def __init__(self, device: str | None = None, patience: float = 30):
        keep_memory()
        self.size = from_launcher("WORLD_SIZE", 1, COUNT)
        alone = 0 if self.size == 1 else None  # else the launcher says it
        self.rank = from_launcher("RANK", alone, Number(int, 0, self.size - 1))
        self.of_node = from_launcher("LOCAL_RANK", alone)
        self.main = self.rank == 0  # the rank that speaks and writes
        self.device = find_device(device, self.of_node)
        if self.size > 1:
            # what lies on the CPU goes by gloo, which notices at once that a rank has gone
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            timeout = datetime.timedelta(minutes=patience)
            with expecting(f"{self.size} ranks to meet", "torch.distributed"):
                dist.init_process_group(backend, timeout=timeout)

    def __exit__(self, kind, *_) -> None:
        nobody_waits = self.device.type == "cpu" or kind in (None, SystemExit)  # NCCL would
        if self.size > 1 and nobody_waits:
            dist.destroy_process_group()

    @contextmanager
    def _exchange(self):
        """An exchange with the other ranks that fails names those that have not reported GRACE
        seconds later that theirs failed too: they have ended, hang, or are still busy."""
        try:
            yield
        except RuntimeError as error:
            silent = [0]  # without torchrun it has the store that all ask
            with suppress(RuntimeError):
                store = dist.distributed_c10d._get_default_store()
                store.set(f"failed/{self.rank}", "")
                time.sleep(GRACE)
                silent = [r for r in range(self.size) if not store.check([f"failed/{r}"])]
            if self.main:
                time.sleep(GRACE)  # others still ask
            named = " and ".join(f"rank {r}" for r in silent) or "some"
            raise RankError(
                f"rank {self.rank}: expected an answer of every rank, found none of {named} "
                f"(ended, or busy for too long): {str(error).splitlines()[0]:.200}"
            ) from None

    def balance(self, problems: list, size) -> list:
        """The problems of a step, large ones dealt out first, in alternating directions: the ranks'
        parts, if of whole problems, are alike in size(problem)."""
        if len(problems) % self.size:
            return problems
        in_order = sorted(problems, key=size, reverse=True)
        ranks = [*range(self.size), *reversed(range(self.size))]
        dealt = sorted(range(len(in_order)), key=lambda i: ranks[i % len(ranks)])  # is stable
        return [in_order[i] for i in dealt]

    def gather_objects(self, x: list, to_all: bool = True) -> list:
        """The lists of all ranks, joined in rank order; not to_all: [] but on the main rank."""
        if self.size == 1:
            return x
        pieces = [None] * self.size if to_all or self.main else None
        with self._exchange():
            dist.all_gather_object(pieces, x) if to_all else dist.gather_object(x, pieces)
        return [item for piece in pieces or [] for item in piece]

    def all_or_none(self, make):
        """make() of this rank; an OSError or InputError of any rank is raised on all."""
        result, errors = None, []
        try:
            result = make()
        except (OSError, InputError) as error:
            errors.append(error)
        if of_all := self.gather_objects(errors):
            raise (errors or of_all)[0]
        return result

    def from_main(self, make):
        """make() of the main rank, on every rank; so are its OSError and InputError."""
        return self.gather_objects([self.all_or_none(lambda: make() if self.main else None)])[0]

    def in_turn(self, make):
        """make(), first on the main rank, then on the first rank of every node, then on the others:
        whoever comes later finds what an earlier one has fetched, and says nothing of it again."""
        turn = 0 if self.main else 1 if self.of_node == 0 else 2
        with open(os.devnull, "w") as quiet, redirect_stderr(sys.stderr if self.main else quiet):
            made = [self.all_or_none(make if now == turn else lambda: None) for now in range(3)]
        return made[turn]

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """x, summed over all ranks in place, the same bits on every rank."""
        if self.size > 1:
            with self._exchange():
                dist.all_reduce(x)
        return x

    def join(self, piece: torch.Tensor) -> torch.Tensor:
        """Pieces (n,) of all ranks -> (size n,), in rank order."""
        parts = list(piece.new_empty(self.size, len(piece)))
        with self._exchange():
            dist.all_gather(parts, piece)
        return torch.cat(parts)

    def check_identical(self, parameters) -> None:
        """Raises RankError unless the weights of all ranks have the same checksums."""
        if self.size > 1:
            own = [p.detach().view(torch.uint8).sum().item() for p in parameters]
            if any(other != own for other in self.gather_objects([own])):
                raise RankError("ranks hold different weights: expected bit-identical copies")

    def say(self, text: str) -> None:
        """Print it once, above any progress bar."""
        if self.main:
            tqdm.write(text, file=sys.stdout)
