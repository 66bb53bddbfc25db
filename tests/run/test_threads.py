"""How many ranks `python train.py` and `python eval.py` make of themselves, one a GPU or, on a CPU,
of one thread each, and how these end."""

import ast
import os
import re
import signal
import sys
import time
from contextlib import suppress

import pytest
import torch
from runs import ENVIRONMENT, metrics, python, run_on_gpus, start_on_gpus, wait_for

import eval
import train
from minisoft.run import plan, ranks

OWN_CHOICE = {k: v for k, v in ENVIRONMENT.items() if k != "OMP_NUM_THREADS"}


@pytest.fixture
def own_choice(monkeypatch):
    """As in a shell where `python train.py` is typed."""
    for name in ("OMP_NUM_THREADS", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, *sys.argv])
    return monkeypatch


def fitting(*flags, script=train):
    args = script.read_flags([*flags])
    return ranks.fitting(args[0] if script is train else args)


# cores, flags, environment: ranks; the embedded model's B is 16, and there is no GPU
CORES = """2 : 2;2 --prompts 3 --device cpu: 1;6 --prompts 16: 4;6 --prompts 12: 6;1 : 1
64 --prompts 16: 8;2 OMP_NUM_THREADS=2: 1;2 WORLD_SIZE=1: 1;2 --device cuda: 1"""
# GPUs, flags, environment: ranks of train.py, and why no more; of eval.py, where nothing is there,
# as many as GPUs; B x G of the model's folder are 16 x 32
GPUS = """8 --prompts 2 --group 32: 8: ;8 OMP_NUM_THREADS=4: 8: ;1 : 1;4 --device cuda:1: 1
6 --device cuda: 4: : no more divide B x G = 16 x 32;0 --device cuda: 1;4 WORLD_SIZE=1: 1
4 --prompts 1 --group 5: 1: : no more divide B x G = 1 x 5;4 --device cpu OMP_NUM_THREADS=1: 1"""


def on_machine(own_choice, words, gpus, cores=2):
    """The flags of these words; the others are set in the environment."""
    flags = [word for word in words.split() if "=" not in word]
    for word in set(words.split()) - {*flags}:
        own_choice.setenv(*word.split("="))
    own_choice.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    own_choice.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    own_choice.setattr(torch.cuda, "device_count", lambda: gpus)
    return flags


@pytest.mark.parametrize("row", re.split("[;\n]", CORES))
def test_as_many_ranks_as_cores_and_problems_allow(own_choice, capsys, row):
    cores, words, expected = re.fullmatch(r"(\d+) (.*): (\d+)", row).groups()
    flags = on_machine(own_choice, words, 0, int(cores))
    assert fitting(*flags) == int(expected)
    assert fitting(script=eval) == 1 and not capsys.readouterr().out


@pytest.mark.parametrize("row", re.split("[;\n]", GPUS))
def test_as_many_ranks_as_gpus_and_samples_allow(own_choice, capsys, row):
    gpus, words, expected, why = re.fullmatch(r"(\d+) (.*?): (\d+)(?:: (.*))?", row).groups()
    flags = on_machine(own_choice, words, int(gpus))
    assert fitting(*flags) == int(expected)
    said = "" if why is None else f"{expected} ranks, each with one of {gpus} GPUs{why}\n"
    assert capsys.readouterr().out == said
    if "--prompts" not in flags:  # problems of an evaluation are shared out over any number
        assert fitting(*flags, script=eval) == (1 if why is None else int(gpus))
        said = "" if why is None else f"{gpus} ranks, each with one of {gpus} GPUs\n"
        assert capsys.readouterr().out == said


CONTAINERS = [("200000 100000", 2, 2**33), ("max 100000", 4, 2**33), ("50000 100000", 1, "max")]


@pytest.mark.parametrize("limit, ranks_there, memory", [*CONTAINERS, (None, 4, None)])
def test_a_container_says_what_there_is(own_choice, tmp_path, limit, ranks_there, memory):
    """As cgroup v2 has it: cores in microseconds of a period, bytes."""
    own_choice.setattr(plan, "CGROUP", tmp_path)
    own_choice.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    own_choice.setattr(os, "sysconf", lambda name: 2**20)  # 2**40 bytes of RAM
    for name, content in (("cpu.max", limit), ("memory.max", memory)):
        if content:
            (tmp_path / name).write_text(f"{content}\n")
    assert fitting("--device", "cpu") == ranks_there
    assert plan.memory_bytes(torch.device("cpu")) == (memory if memory == 2**33 else 2**40)


def test_large_models_and_ids_of_the_hub_have_threads(own_choice, tmp_path):
    assert fitting("--model", "owner/name", "--device", "cpu") == 1
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(ranks.SMALL + 1)
    assert fitting("--model", str(tmp_path), "--device", "cpu") == 1


HEAD = """import os, sys, time, torch
from minisoft.run import ranks, world
from minisoft.run.ranks import several
from minisoft.run.world import RankError, World
"""


def ended(code, status=1):
    """What ranks of this code left, which ended with this status, and not after the 30 minutes
    that ranks wait for each other by default."""
    begun = time.monotonic()
    done = python("-c", HEAD + code, env=OWN_CHOICE)
    assert done.returncode == status and time.monotonic() - begun < 60, done.stderr
    return done


def test_the_other_ranks_run_the_same_and_are_gone_afterwards():
    code = """
with several(3), World("cpu") as world:
    print(world.gather_objects([(world.rank, torch.get_num_threads(), os.getpid())]))
"""
    done = ended(code, 0)
    found = ast.literal_eval(done.stdout)
    assert [(rank, threads) for rank, threads, _ in found] == [(0, 1), (1, 1), (2, 1)]
    for *_, pid in found:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_another_rank_says_at_its_end_is_told():
    code = """
world.GRACE = 1
with several(2), World("cpu") as world:
    world.gather_objects([0])  # both have met
    if world.rank == 1:
        sys.exit("rank 1 cannot go on")
    try:
        world.gather_objects([0])
    except RankError as error:
        print(error)
        raise
"""
    done = ended(code)
    assert "none of rank 1" in done.stdout and "rank 1 cannot go on" in done.stderr


@pytest.mark.parametrize("end", ["sys.exit('no memory left')", "os.kill(os.getpid(), 9)"])
def test_a_rank_that_ends_before_they_meet_is_told_at_once(end):
    code = f"""
with several(3):
    if os.environ["RANK"] == "2":
        {end}
    World("cpu")
"""
    done = ended(code)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("-c: error: rank 2: ")
    assert ("no memory left" in done.stderr) == ("exit status 1" in last)
    assert ("exit status -9" in last) == ("kill" in end)


STARTED = [("", 2), ("-u -O ", 2), ("-m pdb ", 1), ("-m cProfile -o out ", 1)]


@pytest.mark.parametrize("by, expected", [*STARTED, ("/bin/coverage run ", 1)])
def test_below_a_debugger_or_profiler_it_is_one_process(own_choice, by, expected):
    on_machine(own_choice, "", 0)
    own_choice.setattr(sys, "orig_argv", f"python {by}train.py --seed 1".split())
    own_choice.setattr(sys, "argv", "train.py --seed 1".split())
    assert fitting("--device", "cpu") == expected


def test_a_rank_that_fails_where_nobody_hears_it_ends_the_others():
    """As one that waits inside NCCL does."""
    code = """
ranks.LEFT = 1
with several(2), World("cpu") as world:
    world.gather_objects([0])  # both have met
    if world.rank == 1:
        sys.exit("no GPU left")
    time.sleep(100)
"""
    done = ended(code)
    assert "no GPU left" in done.stderr and "error: rank 1: " in done.stderr.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they end with their next exchange")
def test_ranks_end_with_the_one_that_made_them():
    """Also before all have met, when nothing else would tell them."""
    code = """
with several(2):
    if os.environ["RANK"] == "1":
        time.sleep(100)
    child = open(f"/proc/self/task/{os.getpid()}/children").read().split()[0]
    print(child, flush=True)
    os.kill(os.getpid(), 9)
"""
    done = ended(code, -signal.SIGKILL)
    end = time.monotonic() + 10
    with suppress(FileNotFoundError):
        while ") Z " not in open(f"/proc/{int(done.stdout)}/stat").read():  # nor waits for init
            assert time.monotonic() < end
            time.sleep(0.05)


BRIEF = "--prompts 2 --group 2 --cot 10 --steps 40 --validation 0 --test 0 --warmup 1"


@pytest.mark.parametrize("asked, status", [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_ranks_on_gpus_stop_together_and_go_on(tmp_path, asked, status):
    """Only the process that was started is asked."""
    out = tmp_path / "run"
    process = start_on_gpus(tmp_path, 2, *BRIEF.split(), "--out", out)
    wait_for(out / "metrics.jsonl")
    process.send_signal(asked)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    done = len(metrics(out))
    assert 0 < done < 40 and f"stopped after step {done}" in said
    said = run_on_gpus(tmp_path, 2, "--out", out, "--resume", "--steps", done + 1)
    assert said.startswith("2 ranks, each with one of 2 GPUs\n") and len(metrics(out)) == done + 1


def test_an_error_of_ranks_on_gpus_is_one_line(tmp_path):
    process = start_on_gpus(tmp_path, 2, "--data", "missing.jsonl", "--out", tmp_path / "run")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.fullmatch("train.py: error: missing.jsonl: expected .*\n", errors)


def test_an_error_of_this_rank_does_not_wait_for_the_others():
    code = """
with several(2):
    if os.environ.get("RANK") == "1":
        time.sleep(100)
    raise OSError("here")
"""
    assert "OSError: here" in ended(code).stderr


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_train_py_gives_the_same_bits_by_ranks_and_by_one_thread(tmp_path):
    flags = "--steps 2 --prompts 2 --group 4 --validation 2 --test 2 --warmup 1 --device cpu"
    weights = []
    for name, env in (("ranks", OWN_CHOICE), ("thread", ENVIRONMENT)):
        out = tmp_path / name
        done = python("train.py", *flags.split(), "--out", out, env=env)
        assert done.returncode == 0, done.stderr
        weights.append((out / "last" / "model.safetensors").read_bytes())
        assert any(line["grad_norm"] > 0 for line in metrics(out))
    assert weights[0] == weights[1]
