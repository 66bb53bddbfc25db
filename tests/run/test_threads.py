"""`python train.py` on a CPU: how many ranks of one thread it makes of itself, and how they end."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace

import pytest
import torch
from runs import ENVIRONMENT, ROOT

from minisoft.io import WEIGHTS
from minisoft.run import metrics, ranks

OWN_CHOICE = {k: v for k, v in ENVIRONMENT.items() if k != "OMP_NUM_THREADS"}


@pytest.mark.parametrize(
    "cores, prompts, environment, device, expected",
    [
        (2, None, {}, None, 2),  # the embedded model's B is 16
        (2, 3, {}, "cpu", 1),
        (6, 16, {}, None, 4),
        (6, 12, {}, None, 6),
        (64, 16, {}, None, 8),
        (1, 16, {}, None, 1),
        (2, 16, {"OMP_NUM_THREADS": "2"}, None, 1),
        (2, 16, {"WORLD_SIZE": "1"}, None, 1),
        (2, 16, {}, "cuda", 1),
    ],
)
def test_as_many_ranks_as_cores_and_problems_allow(
    monkeypatch, cores, prompts, environment, device, expected
):
    for name in ("OMP_NUM_THREADS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, *sys.argv])
    args = Namespace(model=str(WEIGHTS / "tiny"), prompts=prompts, device=device)
    assert ranks.fitting(args) == expected


@pytest.mark.parametrize(
    "limit, ranks_there, memory",
    [
        ("200000 100000", 2, 2**33),
        ("max 100000", 4, 2**33),
        ("50000 100000", 1, "max"),
        (None, 4, None),
    ],
)
def test_a_container_says_what_there_is(monkeypatch, tmp_path, limit, ranks_there, memory):
    """As cgroup v2 has it: cores in microseconds of a period, bytes."""
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(metrics, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 2**20)  # 2**40 bytes of RAM
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, *sys.argv])
    for name, content in (("cpu.max", limit), ("memory.max", memory)):
        if content:
            (tmp_path / name).write_text(f"{content}\n")
    args = Namespace(model=str(WEIGHTS / "tiny"), prompts=16, device="cpu")
    assert ranks.fitting(args) == ranks_there
    assert metrics.memory_bytes(torch.device("cpu")) == (memory if memory == 2**33 else 2**40)


def test_large_models_and_ids_of_the_hub_have_threads(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    args = Namespace(model="owner/name", prompts=16, device="cpu")
    assert ranks.fitting(args) == 1
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(ranks.SMALL + 1)
    args.model = str(tmp_path)
    assert ranks.fitting(args) == 1


def python(code, **more):
    head = "import os, sys, torch; from minisoft.run.ranks import several\n"
    command = [sys.executable, "-c", head + code]
    how = {"cwd": ROOT, "env": OWN_CHOICE, "capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(command, **how, **more)


def test_the_other_ranks_run_the_same_and_are_gone_afterwards():
    code = """
from minisoft.run.world import World
with several(3):
    with World("cpu") as world:
        print(world.gather_objects([(world.rank, torch.get_num_threads(), os.getpid())]))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    found = eval(done.stdout)
    assert [(rank, threads) for rank, threads, _ in found] == [(0, 1), (1, 1), (2, 1)]
    for *_, pid in found:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_another_rank_says_at_its_end_is_told():
    code = """
from minisoft.run.world import RankError, World
with several(2):
    with World("cpu", grace=1) as world:
        if world.rank == 1:
            sys.exit("rank 1 cannot go on")
        try:
            world.gather_objects([0])
        except RankError as error:
            print(error)
            raise
"""
    done = python(code)
    assert done.returncode == 1 and "none of rank 1" in done.stdout
    assert "rank 1 cannot go on" in done.stderr


@pytest.mark.parametrize("end", ["sys.exit('no memory left')", "os.kill(os.getpid(), 9)"])
def test_a_rank_that_ends_before_they_meet_is_told_at_once(end):
    """Not after the 30 minutes that ranks wait for each other by default."""
    code = f"""
from minisoft.run.world import World
with several(3):
    if os.environ["RANK"] == "2":
        {end}
    World("cpu")
"""
    begun = time.monotonic()
    done = python(code)
    assert done.returncode == 1 and time.monotonic() - begun < 60
    last = done.stderr.splitlines()[-1]
    assert last.startswith("train.py: error: rank 2: ")
    assert ("no memory left" in done.stderr) == ("exit status 1" in last)
    assert ("exit status -9" in last) == ("kill" in end)


@pytest.mark.parametrize(
    "started, expected",
    [
        ("python train.py --seed 1", 2),
        ("python -u -O train.py --seed 1", 2),
        ("python -m pdb train.py --seed 1", 1),
        ("python -m cProfile -o out train.py --seed 1", 1),
        ("python /bin/coverage run train.py --seed 1", 1),
    ],
)
def test_below_a_debugger_or_profiler_it_is_one_process(monkeypatch, started, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(sys, "orig_argv", started.split())
    monkeypatch.setattr(sys, "argv", "train.py --seed 1".split())
    args = Namespace(model=str(WEIGHTS / "tiny"), prompts=16, device="cpu")
    assert ranks.fitting(args) == expected


def test_an_error_of_this_rank_does_not_wait_for_the_others():
    code = """
with several(2):
    if "RANK" in os.environ and os.environ["RANK"] == "1":
        import time
        time.sleep(100)
    raise OSError("here")
"""
    start = time.monotonic()
    done = python(code)
    assert done.returncode == 1 and "OSError: here" in done.stderr
    assert time.monotonic() - start < 60


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_train_py_gives_the_same_bits_by_ranks_and_by_one_thread(tmp_path):
    flags = "--steps 2 --prompts 2 --group 4 --validation 2 --test 2 --warmup 1 --device cpu"
    weights = []
    for name, env in (("ranks", OWN_CHOICE), ("thread", ENVIRONMENT)):
        out = tmp_path / name
        command = [sys.executable, "train.py", *flags.split(), "--out", str(out)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        weights.append((out / "last" / "model.safetensors").read_bytes())
        lines = (out / "metrics.jsonl").read_text().splitlines()
        assert any(json.loads(line)["grad_norm"] > 0 for line in lines)
    assert weights[0] == weights[1]
