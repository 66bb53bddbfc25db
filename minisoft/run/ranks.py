"""Several ranks of one thread where `python train.py` would have several threads.

A small model's products are too short to be shared out: its threads wait for each other thousands
of times an update, its ranks once.  So ranks are faster on an idle machine, and on a busy one they
are not slowed down to the speed of the slowest thread at every product.  They compute the same
bits, since only whole problems are shared out.
"""

import os
import socket
import subprocess
import sys
import tempfile
import threading
from argparse import Namespace
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist

from minisoft.io.checkpoint import read_about
from minisoft.kinds import TRAINING
from minisoft.run.metrics import container_limit
from minisoft.run.world import RankError, read_device

SMALL = 2**26  # bytes of weights; the embedded model has 3 MB
MOST = 8
LEFT = 30  # seconds that another rank may take to end after this one


def fitting(args: Namespace) -> int:
    """How many ranks `train.py` makes of itself: the most that its cores and B allow, for a small
    model on a CPU; 1 elsewhere, where torchrun or the user's OMP_NUM_THREADS has decided, and where
    something looks on (`python -m pdb train.py`, a profiler, `python -i`)."""
    if {"WORLD_SIZE", "OMP_NUM_THREADS"} & {*os.environ} or read_device(args.device).type != "cpu":
        return 1
    options = sys.orig_argv[1 : -len(sys.argv)]  # python OPTIONS train.py ...
    if sys.flags.inspect or not all(option.startswith("-") for option in options):
        return 1
    weights = [*Path(args.model).glob("*.safetensors")]
    if not weights or sum(path.stat().st_size for path in weights) > SMALL:
        return 1
    defaults = read_about(Path(args.model)).get("defaults", {})
    prompts = args.prompts or defaults.get("prompts", TRAINING["prompts"].default)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    cores = int(max(1, min(cores, MOST, container_limit("cpu.max"))))
    return next((n for n in range(cores, 1, -1) if prompts % n == 0), 1)


@contextmanager
def several(count: int):
    """Inside, this process is rank 0 of `count`; the others run the same command, come here as what
    they are, and are gone afterwards."""
    if count == 1 or "WORLD_SIZE" in os.environ:
        yield
        return
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    same = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "OMP_NUM_THREADS": 1}
    same |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    as_rank = [
        {k: str(v) for k, v in (same | {"RANK": r, "LOCAL_RANK": r}).items()} for r in range(count)
    ]
    command = [sys.executable, *sys.orig_argv[1:]]
    with tempfile.TemporaryFile() as said:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": said}
        others, left = [], threading.Event()
        try:
            for env in as_rank[1:]:
                others.append(subprocess.Popen(command, env=os.environ | env, **quiet))
            os.environ.update(as_rank[0])
            torch.set_num_threads(1)
            threading.Thread(target=_watch, args=(others, said, left), daemon=True).start()
            yield
            _wait(others, left)
        except SystemExit:  # a signal has stopped all of them, and they save
            _wait(others, left)
            raise
        except RankError:  # then the reason is what another rank has said
            _tell(said)
            raise
        finally:
            left.set()
            for other in others:
                other.kill()
                other.wait()


def _watch(others: list[subprocess.Popen], said, left: threading.Event) -> None:
    """Ends this process where another one ends before all have met: nothing else can, since who
    waits for the meeting, for --patience, hears nothing."""
    while not left.wait(0.2) and not dist.is_initialized():
        if ended := [rank for rank, other in enumerate(others, 1) if other.poll() is not None]:
            found = f"that it has ended, exit status {others[ended[0] - 1].returncode}"
            _tell(said, f"train.py: error: rank {ended[0]}: expected to meet it, found {found}\n")
            for other in others:
                other.kill()
            os._exit(1)


def _tell(said, more: str = "") -> None:
    """Print what the other ranks have said so far, and more."""
    text = os.pread(said.fileno(), 2**20, 0).decode(errors="replace")
    print(text + more, end="", file=sys.stderr, flush=True)


def _wait(others: list[subprocess.Popen], left: threading.Event) -> None:
    left.set()
    for other in others:
        with suppress(subprocess.TimeoutExpired):
            other.wait(LEFT)
