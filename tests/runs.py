"""Small runs of train.py, and what they leave."""

import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def weights(out, name="last"):
    return load_file(out / name / "model.safetensors")


def assert_same_weights(out, reference, name="last"):
    expected = weights(reference, name)
    for key, value in weights(out, name).items():
        assert torch.equal(expected[key], value), key


def newest(out):
    return max((out / "state").iterdir())


def saved(out, what):
    """The tensors of the newest state that are called what/..., one after the other, flat."""
    pieces = [load_file(path) for path in sorted(newest(out).glob("piece-*"))]
    names = sorted(name for name in pieces[0] if name.startswith(f"{what}/"))
    return torch.cat([piece[name] for name in names for piece in pieces])


def metrics(out, *but):
    """The lines of metrics.jsonl, without clocks, memory, and what begins with one of `but`."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    but = ("seconds", "memory", *but)
    return [{k: v for k, v in m.items() if not k.startswith(but)} for m in lines]


def summary(out):
    """summary.json, without clocks."""
    found = json.loads((out / "summary.json").read_text())
    del found["seconds"]
    return found


def config(out):
    return json.loads((out / "config.json").read_text())


# ------------------------------------------------------------------------------- ranks


def as_rank(rank, size, port, folder, grace, argv):
    """What one rank does in a process of its own; stderr goes to folder/rank-N."""
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    os.dup2(os.open(folder / f"rank-{rank}", os.O_CREAT | os.O_WRONLY), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT)]
    torch.set_num_threads(1)
    import train
    from minisoft.training import world

    class World(world.World):
        def __init__(self, device, patience):
            super().__init__(device, patience, grace)

    train.World = World
    world.as_program(lambda: train.main(argv))


def start_ranks(folder, size, *argv, grace=10):
    """Processes with the ranks of `train.py argv`, without torchrun, which would end them all as
    soon as one dies, and would load torch once for each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "train"])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder.mkdir(exist_ok=True)
    ranks = []
    for rank in range(size):
        place = (rank, size, port, folder, grace, [str(word) for word in argv])
        ranks.append(context.Process(target=as_rank, args=place, daemon=True))
        ranks[-1].start()
    return ranks


def run_ranks(folder, size, *argv):
    """Run `train.py argv` on so many ranks."""
    ranks = start_ranks(folder, size, *argv)
    for rank, process in enumerate(ranks):
        process.join(300)
        assert process.exitcode == 0, (folder / f"rank-{rank}").read_text()[-2000:]


def wait_for(path, seconds=90):
    end = time.monotonic() + seconds
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.05)
