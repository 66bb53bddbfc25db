"""Small runs of train.py, and what they leave."""

import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def tiny_at(folder, about=None):
    """A copy of the embedded model, with `about` for its minisoft.json."""
    shutil.copytree(ROOT / "weights/tiny", folder, ignore=shutil.ignore_patterns("study"))
    if about is not None:
        (folder / "minisoft.json").write_text(json.dumps(about))
    return folder


def weights(out, name="last"):
    return load_file(out / name / "model.safetensors")


def assert_same_weights(out, reference, name="last"):
    expected = weights(reference, name)
    for key, value in weights(out, name).items():
        assert torch.equal(expected[key], value), key


def newest(out):
    return max((out / "state").iterdir())


def saved(out, what, step=None):
    """The tensors of a state, or the newest, that are called what/..., one after another, flat."""
    state = newest(out) if step is None else out / f"state/step-{step:06d}"
    pieces = [load_file(path) for path in sorted(state.glob("piece-*"))]
    names = sorted(name for name in pieces[0] if name.startswith(f"{what}/"))
    return torch.cat([piece[name] for name in names for piece in pieces])


def metrics(out, *but):
    """The lines of metrics.jsonl, without clocks, memory, and what begins with one of `but`."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    but = ("seconds", "memory", *but)
    return [{k: v for k, v in m.items() if not k.startswith(but)} for m in lines]


def config(out):
    return json.loads((out / "config.json").read_text())


def summary(out):
    """summary.json, without clocks."""
    read = json.loads((out / "summary.json").read_text())
    del read["seconds"]
    return read


# ----------------------------------------------------------------- in other processes


def python(*words, env=ENVIRONMENT, cwd=ROOT):
    """What `python words` printed, and its exit status."""
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def start(act, *args, stderr=os.devnull):
    """A process that calls act(*args), a function of this file; torch is loaded once for all, and
    what its optimizers load."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "train", "eval"])
    process = context.Process(target=_apart, args=(act, args, stderr), daemon=True)
    process.start()
    return process


def _apart(act, args, stderr):
    os.dup2(os.open(stderr, os.O_CREAT | os.O_WRONLY), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT)]
    torch.set_num_threads(1)
    act(*args)


def as_rank(rank, size, port, grace, argv, script="train"):
    """`train.py argv`, or `eval.py argv`, as one of several ranks."""
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    from minisoft.run import world

    program, world.GRACE = importlib.import_module(script), grace
    world.as_program(lambda: program.main(argv))


def start_ranks(folder, size, *argv, grace=10, script="train"):
    """The ranks of `train.py argv`, without torchrun, which would end them all as soon as one
    dies; stderr of rank r goes to folder/rank-r."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder.mkdir(exist_ok=True)
    argv = [str(word) for word in argv]
    return [
        start(as_rank, rank, size, port, grace, argv, script, stderr=folder / f"rank-{rank}")
        for rank in range(size)
    ]


def run_ranks(folder, size, *argv, **options):
    """Run `train.py argv` on so many ranks."""
    for rank, process in enumerate(start_ranks(folder, size, *argv, **options)):
        process.join(300)
        assert process.exitcode == 0, (folder / f"rank-{rank}").read_text()[-2000:]


PRETENDED = """
import sys
sys.path.insert(0, {root!r})
import {script} as program
import torch
from minisoft.run import ranks, world
torch.cuda.device_count = lambda: {gpus}
ranks.read_device = lambda name: torch.device("cuda")
world.as_program(program.main)
"""


def start_on_gpus(folder, gpus, *argv, script="train"):
    """`python train.py argv`, or `python eval.py argv`, on a machine that it takes to have so many
    GPUs: its ranks are on the CPU, and run this file too."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{script}-on-gpus.py"
    path.write_text(PRETENDED.format(root=str(ROOT), script=script, gpus=gpus))
    command = [sys.executable, str(path), *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes)


def run_on_gpus(folder, gpus, *argv, **options):
    """Run it to its end; returns what it printed."""
    process = start_on_gpus(folder, gpus, *argv, **options)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return out


def with_small_files(argv):
    """`train.py argv` where no file may have more than a megabyte: a disk that is full."""
    import train
    from minisoft.run.world import as_program

    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    as_program(lambda: train.main(argv))


def killed_in(place, times, argv):
    """`train.py argv`, with SIGKILL before the call number `times`, from 0, of a function."""
    import train
    from minisoft import engine
    from minisoft.io import atomic, checkpoint, state
    from minisoft.run import metrics

    owners = {"train": train, "metrics": metrics.MetricsFile, "path": Path}
    owners |= {"engine": engine, "state": state, "checkpoint": checkpoint, "atomic": atomic}
    owners["shutil"] = atomic.shutil
    owner, name = place.split(".")
    owner, left = owners[owner], [None] * times
    real = getattr(owner, name)

    def killing(*args, **options):
        if not left:
            if place == "metrics.write":
                args[0].path.open("a").write('{"step": ')
            os.kill(os.getpid(), signal.SIGKILL)
        left.pop()
        return real(*args, **options)

    setattr(owner, name, killing)
    train.main(argv)


def wait_for(path, seconds=90):
    end = time.monotonic() + seconds
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.05)
