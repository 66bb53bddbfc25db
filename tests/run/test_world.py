"""Which rank takes what; devices, the launcher's environment and terminals as people have them."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import refuses
from runs import ENVIRONMENT, ROOT, python

from minisoft.errors import InputError
from minisoft.run import world
from minisoft.run.world import World, open_output, read_device, share


def world_of(size, rank=0):
    world = World("cpu")
    world.size, world.rank = size, rank
    return world


def test_every_sample_belongs_to_one_rank():
    """The paper's B = 2, G = 32 on 1 to 64 ranks; a world that does not divide it is refused."""
    for size in (1, 2, 4, 8, 64):
        seen = []
        for rank in range(size):
            parts = share(rank, size, 2, 32)
            assert sum(len(samples) for _, samples in parts) == 64 // size
            seen += [(b, g) for b, samples in parts for g in samples]
        assert seen == [(b, g) for b in range(2) for g in range(32)]
    with pytest.raises(InputError, match="2 x 32: .*3 ranks, found 64"):
        share(0, 3, 2, 32)


def test_problems_are_dealt_so_that_ranks_get_alike_much():
    problems = [7, 1, 5, 3, 8, 2, 6, 4]
    assert world_of(1).balance(problems, lambda p: p) == [8, 7, 6, 5, 4, 3, 2, 1]
    assert world_of(2).balance(problems, lambda p: p) == [8, 5, 4, 1, 7, 6, 3, 2]  # 18 and 18
    assert world_of(3).balance(problems, lambda p: p) == problems


def test_a_world_of_one_rank_gives_everything_back():
    world = world_of(1)
    assert world.gather_objects([1, 2]) == world.gather_objects([1, 2], to_all=False) == [1, 2]
    assert world.from_main(lambda: 3) == world.in_turn(lambda: 3) == world.all_or_none(lambda: 3)
    with pytest.raises(OSError, match="no room"):
        world.all_or_none(lambda: (_ for _ in ()).throw(OSError("no room")))


@pytest.mark.parametrize("name", [*"mps xpu hpu meta gpu cuda:x cuda:-1 CPU".split(), ""])
def test_a_device_that_is_neither_cpu_nor_cuda_is_one_line(name):
    for by in (read_device, World):
        refuses(name, f"--device: expected cpu or cuda, found '{name}'", by=by)


def test_devices_need_not_be_there_to_be_read(monkeypatch):
    assert read_device("cuda:3") == torch.device("cuda", 3) and read_device("cpu:0").type == "cpu"
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert read_device(None).type == expected
    refuses("cuda", "--device: expected cuda:0 to be there, or --device cpu, found: ", by=World)


TWO = dict(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="29512")
ODD = [({"WORLD_SIZE": x}, f"WORLD_SIZE: expected .* 1, found '?{x}'?") for x in ("abc", "0", "")]
ODD += [({"RANK": "2"}, "RANK: expected .* at most 1, found 2")]  # would wait for ever
ODD += [({"RANK": "1", "WORLD_SIZE": "1"}, "RANK: expected .* at most 0, found 1")]
for name, value in (("RANK", "-1"), ("RANK", None), ("LOCAL_RANK", "x"), ("LOCAL_RANK", None)):
    found = "-1" if value == "-1" else repr(value)
    ODD.append(({name: value}, f"{name}: expected a whole number of at least 0.*, found {found}"))
for name in ("MASTER_ADDR", "MASTER_PORT"):
    ODD.append(({name: None}, f"expected 2 ranks to meet, found: .*{name} expected"))
ODD += [({"MASTER_PORT": "x"}, "expected 2 ranks to meet, found: invalid literal")]


@pytest.mark.parametrize("changes, message", ODD)
def test_an_environment_that_no_launcher_sets_is_one_line(monkeypatch, changes, message):
    for name, value in {**TWO, **changes}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message) as error:
        World("cpu")
    assert "\n" not in str(error.value)


def test_a_program_with_an_odd_world_size_ends_with_its_line():
    code = "from minisoft.run.world import as_program; as_program(lambda: exit('one line'))"
    done = python("-c", code, env={**ENVIRONMENT, "WORLD_SIZE": "abc"})
    assert (done.returncode, done.stderr) == (1, "one line\n")


def test_one_more_ctrl_c_does_not_break_off_the_end_of_a_program():
    code = """
import atexit, os, signal
from minisoft.run.world import as_program
atexit.register(os.kill, os.getpid(), signal.SIGINT)
as_program(lambda: "interrupted")"""
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (1, "interrupted\n")


@pytest.mark.parametrize("encoding, shown", [("ascii", "Gr??e ?"), ("latin-1", "Größe ?")])
def test_a_program_prints_what_its_terminal_can_show(encoding, shown):
    code = r"""
from tqdm import tqdm
from minisoft.run.world import World, as_program
def main():
    for _ in tqdm(range(1)):
        World("cpu").say("Gr\u00f6\u00dfe \u03c0")
as_program(main)
"""
    env = {**ENVIRONMENT, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert done.stdout.decode(encoding).strip() == shown


def test_a_bar_that_no_terminal_shows_is_lines_and_the_last_one_is_there():
    """Between the first and the last one at most in so many seconds; what is said meanwhile is not
    touched."""
    code = """
import time
from minisoft.run import world
from minisoft.run.world import World, as_program
def main():
    world.LINE_EVERY = 0.3
    with world.bar(total=4, desc="rows", leave=False) as progress:
        for number in range(4):
            time.sleep(0.2)
            World("cpu").say(f"said {number}")
            progress.set_postfix(reward=number, refresh=False)
            progress.update()
    for _ in world.bar(range(9), disable=True):
        pass
as_program(main)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True)
    said, bars = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0 and not {"\r", "\x1b"} & {*said, *bars}, bars
    assert said.splitlines() == [f"said {number}" for number in range(4)]
    assert 3 <= len(bars.splitlines()) <= 4 and all("rows: " in x for x in bars.splitlines())
    assert "4/4" in bars.splitlines()[-1] and "reward=3" in bars.splitlines()[-1]


def full_disk():
    return os.open("/dev/full", os.O_WRONLY)


def reader_gone():
    read, write = os.pipe()
    os.close(read)
    return write


def reader_slow():
    """A pipe that does not wait, filled to the brim."""
    _, write = os.pipe()
    os.set_blocking(write, False)
    while True:
        try:
            os.write(write, b"x" * 4096)
        except BlockingIOError:
            return write


def terminal_closed():
    leader, follower = os.openpty()
    os.close(leader)
    return follower


@pytest.mark.parametrize("broken", [full_disk, reader_gone, reader_slow, terminal_closed])
def test_what_cannot_be_printed_is_dropped(broken):
    number = broken()
    with pytest.raises(OSError):
        os.write(number, b"x" * 10**6)
    for text in ("short\n", "x" * 10**6 + "\n"):
        print(text, file=open_output(number, "replace", None), flush=True)
    os.close(number)


def test_what_can_be_printed_comes_whole_and_at_once(tmp_path):
    path = tmp_path / "log"
    with path.open("wb", buffering=0) as file:
        stream = open_output(file.fileno(), "replace", sys.stdout)
        for text in ("ö" * 10**6, "line"):
            print(text, file=stream)
    assert path.read_text(sys.stdout.encoding) == "ö" * 10**6 + "\nline\n"


@pytest.mark.parametrize("how", [">&-", ">&- 2>&- <&-", ">/dev/full 2>&1", "| true"])
def test_a_program_saves_and_ends_well_whatever_becomes_of_what_it_prints(tmp_path, how):
    """A file that it opens gets none of it."""
    code = """
import sys
from minisoft.run.world import World, as_program
def main():
    with open("saved", "w") as file:
        for _ in range(1000):
            World("cpu").say("x" * 1000)
            print("y", file=sys.stderr)
        file.write("all")
as_program(main)
"""
    shell = f"set -o pipefail; '{sys.executable}' -c '{code}' {how}"
    env = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "saved").read_text() == "all"


TOO_LITTLE = ["MemoryError", "torch.OutOfMemoryError", "lambda _: torch.empty(2**55)"]


@pytest.mark.parametrize("error", TOO_LITTLE)
def test_too_little_memory_is_one_line(error):
    code = f"import torch\ndef main():\n    raise ({error})('too little\\nof it')\n"
    done = python("-c", f"{code}from minisoft.run.world import as_program\nas_program(main)")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert ": error: out of memory" in done.stderr


SPINS = 1000
LAB = "bench findings gradient study".split()
PROGRAMS = ["train.py", "eval.py", "-m pytest -s", *(f"-m minisoft.lab.{name}" for name in LAB)]
WAYS = [(program, {}, f"{SPINS} None") for program in PROGRAMS]
WAYS.append(("train.py", {"GOMP_SPINCOUNT": "7"}, "7 None"))
WAYS.append(("eval.py", {"OMP_WAIT_POLICY": "active"}, "None active"))


@pytest.mark.parametrize("program, own, expected", WAYS)
def test_threads_that_wait_let_others_work_unless_told(tmp_path, program, own, expected):
    """What OpenMP reads is there before torch is: this torch says what it finds, and ends."""
    code = "import os; read = os.environ.get; "
    code += "print(read('GOMP_SPINCOUNT'), read('OMP_WAIT_POLICY'), flush=True); os._exit(0)"
    (tmp_path / "torch.py").write_text(code)
    unset = {k: v for k, v in ENVIRONMENT.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    env = {**unset, "PYTHONPATH": str(tmp_path), **own}
    done = python(*program.split(), env=env)
    assert done.stdout.split("\n") == [expected, ""], done.stderr


def test_memory_is_kept_where_that_can_be_asked_for(monkeypatch):
    # by the largest threshold that a glibc takes
    by_most = {2**30: [(-3, 2**28), (-1, 2**30)], 0: [(-3, 2**28), (-3, 2**25)]}
    by_most[2**25] = [(-3, 2**28), (-3, 2**25), (-1, 2**30)]
    for most, expected in by_most.items():
        asked = []

        def mallopt(*option, most=most, asked=asked) -> int:
            asked.append(option)
            return int(option[0] == -1 or option[1] <= most)

        library = SimpleNamespace(mallopt=mallopt)
        monkeypatch.setattr(world.ctypes, "CDLL", lambda name, library=library: library)
        world.keep_memory()
        assert asked == expected
    monkeypatch.setattr(world.ctypes, "CDLL", lambda name: SimpleNamespace())
    world.keep_memory()
