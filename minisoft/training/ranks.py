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
from argparse import Namespace
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from minisoft.io.checkpoint import read_about
from minisoft.training.settings import PAPER
from minisoft.training.world import RankError, read_device

SMALL = 2**26  # bytes of weights; the embedded model has 3 MB
MOST = 8
LEFT = 30  # seconds that another rank may take to end after this one


def fitting(args: Namespace) -> int:
    """How many ranks `train.py` makes of itself: the most that its cores and B allow, for a small
    model on a CPU; 1 elsewhere, and where torchrun or the user's OMP_NUM_THREADS has decided."""
    if {"WORLD_SIZE", "OMP_NUM_THREADS"} & {*os.environ} or read_device(args.device).type != "cpu":
        return 1
    weights = [*Path(args.model).glob("*.safetensors")]
    if not weights or sum(path.stat().st_size for path in weights) > SMALL:
        return 1
    defaults = PAPER | read_about(Path(args.model)).get("defaults", {})
    prompts = args.prompts or defaults["prompts"]
    cores = min(len(os.sched_getaffinity(0)), MOST) if hasattr(os, "sched_getaffinity") else 1
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
        others = [subprocess.Popen(command, env=os.environ | env, **quiet) for env in as_rank[1:]]
        os.environ.update(as_rank[0])
        torch.set_num_threads(1)
        try:
            yield
            _wait(others)
        except SystemExit:  # a signal has stopped all of them, and they save
            _wait(others)
            raise
        except RankError:  # then the reason is what another rank has said
            said.seek(0)
            sys.stderr.write(said.read().decode(errors="replace"))
            raise
        finally:
            for other in others:
                other.kill()
                other.wait()


def _wait(others: list[subprocess.Popen]) -> None:
    for other in others:
        with suppress(subprocess.TimeoutExpired):
            other.wait(LEFT)
