"""torch.distributed data parallelism: who am I, which samples are mine, sums over all ranks (one without torchrun)."""

import ctypes
import datetime
import os
import sys

import torch
import torch.distributed as dist
from tqdm import tqdm

from minisoft.errors import InputError, expecting


def keep_memory() -> None:
    """From now on what is freed stays with the process.  glibc would hand large blocks back to the system at once and get
    them again page by page, which is a sixth of a replay on CPUs; where there is no glibc, nothing happens."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if mallopt(-3, 2**30) or mallopt(-3, 2**25):  # M_MMAP_THRESHOLD; before glibc 2.35 at most 32 MiB
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


class World:
    """rank, size and device of this process; use as a context manager.

    `device`: "cpu", "cuda" (rank r of a node takes GPU r) or None for cuda where there is one; `patience`: minutes that
    ranks wait for each other.
    """

    def __init__(self, device: str | None = None, patience: int = 30):
        keep_memory()
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.main = self.rank == 0  # the rank that speaks and writes
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if kind.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"device: expected a CUDA GPU for {kind!r}, found none; use --device cpu")
        with expecting("cpu or cuda", f"device {kind}"):
            self.device = torch.device(kind)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo",
                                    timeout=datetime.timedelta(minutes=patience))

    def __enter__(self) -> "World":
        return self

    def __exit__(self, kind, *_) -> None:
        if self.size > 1 and kind in (None, SystemExit):  # after an error, do not wait for the others
            dist.destroy_process_group()

    def share(self, prompts: int, group: int) -> list[tuple[int, range]]:
        """This rank's part of the step's B x G samples: [(problem, its samples)], sizes equal on all ranks.

        B and G are global (paper: B = 2, G = 32, also on 8 ranks).  Raises InputError when ranks do not divide B G.
        """
        total = prompts * group
        if total % self.size:
            raise InputError(f"prompts x group = {prompts} x {group} = {total} samples a step: expected a multiple of "
                             f"the number of ranks, found {self.size} ranks")
        first, last = self.rank * total // self.size, (self.rank + 1) * total // self.size
        parts = [(b, range(max(first - b * group, 0), min(last - b * group, group))) for b in range(prompts)]
        return [(b, samples) for b, samples in parts if len(samples)]

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Pieces (n, ...) of all ranks, joined in rank order on the CPU."""
        return torch.cat(self.gather_objects([x.cpu()]))

    def gather_objects(self, x: list) -> list:
        """The lists of all ranks, joined in rank order."""
        if self.size == 1:
            return x
        pieces = [None] * self.size
        dist.all_gather_object(pieces, x)
        return [item for piece in pieces for item in piece]

    def gather_to_main(self, x: list) -> list:
        """The lists of all ranks, joined in rank order, on the main rank; [] elsewhere."""
        if self.size == 1:
            return x
        pieces = [None] * self.size if self.main else None
        dist.gather_object(x, pieces)
        return [item for piece in pieces or [] for item in piece]

    def from_main(self, make):
        """make() of the main rank, on every rank."""
        return self.gather_objects([make()] if self.main else [])[0]

    def sum_gradients(self, parameters) -> None:
        """Gradients become their sums over all ranks, the same bits on every rank."""
        if self.size > 1:
            for p in parameters:
                dist.all_reduce(p.grad)

    def check_identical(self, parameters) -> None:
        """Raises RuntimeError unless the weights of all ranks have the same checksums."""
        if self.size > 1:
            sums = self.gather_objects([[p.detach().view(torch.uint8).sum().item() for p in parameters]])
            if any(other != sums[0] for other in sums):
                raise RuntimeError("ranks hold different weights: expected bit-identical copies")

    def say(self, text: str) -> None:
        """Print it once, above any progress bar."""
        if self.main:
            tqdm.write(text, file=sys.stdout)
