"""Several ranks where `python train.py` or `python eval.py` would have one GPU of several, or
train.py several threads, which a small model has wait for each other thousands of times an update.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from argparse import Namespace
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing import _prctl_pr_set_pdeathsig as end_with_parent  # on Linux

from minisoft.io import checkpoint
from minisoft.run.plan import container_limit
from minisoft.run.settings import fill
from minisoft.run.world import RankError, read_device

SMALL = 2**26  # bytes of weights; the embedded model has 3 MB
MOST = 8  # on a CPU
LEFT = 30  # seconds that a rank may take to end after another one


def fitting(args: Namespace) -> int:
    """How many ranks a program makes of itself (and says of GPUs): one a GPU, of all there are; on
    a CPU one a core, for a small model that train.py trains.  They divide train.py's B x G,
    on a CPU B.  1 where torchrun or --device cuda:N has decided, or something looks on (pdb)."""
    device, trains = read_device(args.device), "group" in args
    options = sys.orig_argv[1 : -len(sys.argv)]  # python OPTIONS train.py ...
    watched = sys.flags.inspect or not all(option.startswith("-") for option in options)
    gpus = device.type == "cuda"
    if watched or "WORLD_SIZE" in os.environ or (gpus and device.index is not None):
        return 1
    there = torch.cuda.device_count() if gpus else _cores(args) if trains else 1
    if there < 2:
        return 1
    count = there
    if trains:
        args = Namespace(**vars(args))
        fill(args, checkpoint.read_about(checkpoint.find(args.model)), device.type)
        shared = args.prompts * args.group if gpus else args.prompts
        count = next(n for n in range(there, 0, -1) if shared % n == 0)
    why = "" if count == there else f": no more divide B x G = {args.prompts} x {args.group}"
    if gpus:
        print(f"{count} ranks, each with one of {there} GPUs{why}")
    return count


def _cores(args: Namespace) -> int:
    """How many ranks of one thread would train; 1 for a large model and with OMP_NUM_THREADS."""
    weights = [*Path(args.model).glob("*.safetensors")]
    large = not weights or sum(path.stat().st_size for path in weights) > SMALL
    if large or "OMP_NUM_THREADS" in os.environ:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return int(max(1, min(cores, MOST, container_limit("cpu.max"))))


@contextmanager
def several(count: int):
    """Inside, this process is rank 0 of `count`; the others run the same command, come here as what
    they are, and are gone afterwards, also where this one is killed."""
    if count == 1 or "WORLD_SIZE" in os.environ:
        yield
        return
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port())}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
    command = [sys.executable, *sys.orig_argv[1:]]
    with tempfile.TemporaryFile() as said:
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": said}
        options["preexec_fn"] = partial(end_with_parent, signal.SIGKILL)
        others, left, patience = [], threading.Event(), LEFT
        try:
            for rank in range(1, count):
                env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                others.append(subprocess.Popen(command, env=env, **options))
            threading.Thread(target=_watch, args=(others, said, left), daemon=True).start()
            yield
        except BaseException as error:
            if not isinstance(error, SystemExit):  # of a signal, which all have got, and they save
                patience = 0
            if isinstance(error, RankError):  # then the reason is what another rank has said
                _tell(said)
            raise
        finally:
            left.set()
            for other in others:
                with suppress(subprocess.TimeoutExpired):
                    other.wait(patience)
                other.kill()
                other.wait()


def _watch(others: list[subprocess.Popen], said, left: threading.Event) -> None:
    """Ends this process where another one has failed and nothing else would for long: before all
    have met, who waits for the meeting hears nothing; later, who waits in NCCL."""
    met = False
    while not left.wait(0.2):
        met = met or dist.is_initialized()
        failed = [rank for rank, other in enumerate(others, 1) if other.poll()]
        if failed and not (met and left.wait(LEFT)):
            where = f"{os.path.basename(sys.argv[0])}: error: rank {failed[0]}"
            found = f"that it has ended, exit status {others[failed[0] - 1].returncode}"
            _tell(said, f"{where}: expected it to go on, found {found}\n")
            for other in others:
                other.kill()
            os._exit(1)


def _tell(said, more: str = "") -> None:
    """Print what the other ranks have said so far, and more."""
    before = os.pread(said.fileno(), 2**20, 0).decode(errors="replace")
    print(before + more, end="", file=sys.stderr, flush=True)
