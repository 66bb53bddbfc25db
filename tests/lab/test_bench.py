"""The benchmark: what it writes, and what it counts."""

import json
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from minisoft import kinds
from minisoft.engine.cache import RowCache
from minisoft.io import WEIGHTS
from minisoft.lab import bench, bench_train, rivals
from minisoft.lab.busy import busy, instructions, told
from minisoft.rollout import COT
from minisoft.training import world

pytestmark = pytest.mark.filterwarnings("error::FutureWarning")  # of transformers


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """What the machine can do is measured on little, and answers are short."""
    monkeypatch.setitem(bench.SIZES, "cpu", (2**20, 256))
    for module in (bench, rivals):
        monkeypatch.setattr(module, "ANSWER_TOKENS", 4)


def test_an_update_is_timed_against_transformers(tmp_path, capsys):
    bench.main(
        [
            "--cot",
            "4",
            "--group",
            "4",
            "--repeats",
            "2",
            "--against",
            "transformers",
            "--prompts",
            "2",
            "1",
            "--load",
            "1",
            "--json",
            str(tmp_path / "b.json"),
        ]
    )
    found = json.loads((tmp_path / "b.json").read_text())
    for name in ("hard", "soft"):
        kind = found["kinds"][name]
        assert all(
            kind[part] > 0
            for part in ("rollout", "replay", "optimizer", "step", "floor_ms", "decode_share")
        )
        assert len(found["seconds"][name]["step"]) == 2
        assert kind["tokens_per_s"] == pytest.approx(8 * found["steps"] / kind["rollout"])
    assert {"transformers hard loop", "transformers hard generate", "transformers soft loop"} < set(
        found["seconds"]
    )
    best = min(
        ("loop", "generate"),
        key=lambda way: sum(found["seconds"][f"transformers hard {way}"]["rollout"]),
    )
    assert found["rollout_ratio"] == found["rollout_ratios"][f"transformers hard {best}"]
    pairs = zip(found["seconds"]["soft"]["step"], found["seconds"]["hard"]["step"], strict=True)
    assert found["soft_over_hard_step"] == pytest.approx(sum(a / b for a, b in pairs) / 2)
    said = capsys.readouterr().out
    assert "soft over hard step" in said and "1 x 4" in said and "kernels, avx512_bf16" in said
    loaded = found["loaded"]["seconds"]["hard"]["step"]
    pairs = zip(loaded, found["seconds"]["hard"]["step"], strict=True)
    assert found["loaded_over_idle"]["hard"]["step"] == pytest.approx(
        sum(a / b for a, b in pairs) / 2
    )
    rival = "transformers soft loop"
    of_pass = found["pass_ratios"][rival] / found["rollout_ratios"][rival]
    assert of_pass == pytest.approx(found["steps"] / 8)  # 4 CoT tokens and 4 of the answer
    (other,) = found["others"]
    assert other["prompts"] == 1 and other["loaded"]["kinds"]["soft"]["step"] > 0


def test_every_row_has_its_full_length():
    work = bench.prepare(flags("--cot", "5", "--group", "3"))
    for name in ("hard", "soft"):
        for record in work.rollout(work.kind(name), 0):
            assert record.ids.shape == (3, work.steps) and ((record.role == COT).sum(1) == 5).all()


def test_passes_are_counted(monkeypatch):
    """A position a pass here; in the loop the prefilled tokens go through in one."""
    work = bench.prepare(flags("--cot", "5", "--group", "3"))
    calls = []
    forward = RowCache.forward
    monkeypatch.setattr(RowCache, "forward", lambda *x: calls.append("ours") or forward(*x))
    work.rollout(work.kind("soft"), 0)
    rival = rivals.Rivals(work, flags())
    rival.model.register_forward_pre_hook(lambda *_: calls.append("loop"))
    rival.loop(work.kind("soft"), 5, 4)
    assert calls.count("ours") == work.steps == work.passes + len(work.form.prefill[1])
    assert calls.count("loop") == 1 + work.passes  # and the prompt's


def flags(*given):
    return bench.read_flags(list(given))


def test_floor_counts_weights_prompts_and_own_positions():
    work = bench.prepare(flags("--cot", "5", "--group", "3"))
    c, can = work.model.config, {"bandwidth": 1.0, "throughput": 1e30}
    read = bench.floor(work, "hard", can)["decode"]
    cached = sum(map(len, work.prompts)) + 6 * work.steps / 2
    assert read == pytest.approx(
        4
        * (
            sum(p.numel() for p in work.model.parameters())
            + cached * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
        )
    )
    assert (
        bench.floor(work, "soft", can)["decode"] > read
    )  # p E can only begin when all logits are known
    can = {"bandwidth": 1e30, "throughput": 1.0}
    assert bench.floor(work, "soft", can)["replay"] > bench.floor(work, "hard", can)["replay"] > 0


def test_a_kind_of_token_that_is_not_the_papers(tmp_path, monkeypatch):
    monkeypatch.setitem(kinds.KINDS, "firm", kinds.KINDS["soft"])
    monkeypatch.setitem(kinds.TAU, "firm", 0.1)
    for path in (WEIGHTS / "tiny").iterdir():
        if path.is_file() and path.name != "minisoft.json":
            shutil.copy(path, tmp_path)
    size = ["--cot", "2", "--group", "2", "--repeats", "1", "--against", "transformers"]
    bench.main(["--model", str(tmp_path), "--tokens", "firm", *size])


def test_peak_bytes_are_those_held_at_once():
    def work():
        a = torch.empty(2**20)  # 4 MiB
        del a
        b, c = torch.empty(2**20), torch.empty(2**19)  # 6 MiB
        return b, c

    assert 6 * 2**20 <= bench.peak_bytes(work, torch.device("cpu")) < 6.1 * 2**20


def test_random_weights_of_a_shape(monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "llama-3.2-1b", (300, 32, 48, 2, 4, 2, 8, False))
    work = bench.prepare(
        flags(
            "--shape",
            "llama-3.2-1b",
            "--cot",
            "3",
            "--group",
            "2",
            "--dtype",
            "bfloat16",
            "--prompt-tokens",
            "7",
        )
    )
    assert [len(p) for p in work.prompts] == [7, 7] and work.model.E.dtype == torch.bfloat16
    optimizer = bench.Optimizer(work.model, bench.Schedule(1e-9, 10, 0), bench.World("cpu"))
    assert bench.update(work, optimizer, "soft", "update", 0)["step"] > 0


def test_ctrl_c_leaves_the_rounds_that_were_complete(monkeypatch, capsys):
    def update(work, optimizer, name, part, seed):
        if seed == 2 and name == "soft":
            raise KeyboardInterrupt
        return dict.fromkeys(("rollout", "replay", "optimizer", "step"), 0.5)

    monkeypatch.setattr(bench, "update", update)
    bench.main(["--cot", "2", "--group", "2", "--repeats", "5"])
    assert "medians of 2 rounds" in capsys.readouterr().out


def test_spinning_processes_end_with_the_block_and_with_their_parent():
    with pytest.raises(KeyboardInterrupt), busy(2) as spinning:
        assert [process.poll() for process in spinning] == [None, None]
        raise KeyboardInterrupt
    assert None not in [process.returncode for process in spinning]
    parent = (
        "from minisoft.lab.busy import busy\n"
        "with busy(1) as s:\n    print(s[0].pid, flush=True)\n    input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", parent], **pipes) as killed:
        number = int(killed.stdout.readline())
        killed.kill()
    deadline = time.monotonic() + 20
    while runs(number):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(number: int) -> bool:
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True)
    return shown.stdout.strip()[:1] not in ("", "Z")


def test_instructions_of_the_cpu(tmp_path):
    (tmp_path / "cpuinfo").write_text("model name\t: A CPU\nflags\t\t: avx2 amx_bf16\n")
    cpu = instructions(tmp_path / "cpuinfo")
    assert cpu["name"] == "A CPU" and cpu["amx_bf16"] and cpu["avx512_bf16"] is False
    assert cpu["kernels"] == torch.backends.cpu.get_cpu_capability()
    unknown = told(instructions(tmp_path / "nowhere"))
    assert unknown.startswith("CPU unknown, ") and unknown.endswith("amx_bf16 unknown")


TRAIN = """
import pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir()
steps = [9, 2, 3, 4]
(out / "metrics.jsonl").write_text("".join(f'{{"seconds": {s}}}\\n' for s in steps))
sys.exit("no model" if "fuzzy" in sys.argv else 0)
"""


def test_updates_of_train_py_are_timed(tmp_path, monkeypatch, capsys):
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setattr(bench_train, "TRAIN", tmp_path / "train.py")
    to = ["--json", str(tmp_path / "b.json")]
    size = ["--part", "train", "--repeats", "2"]
    bench.main([*size, "--tokens", "soft", "--load", "1", *to])
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["seconds"]["soft"]["step"] == [2, 3, 4] * 2
    assert found["kinds"]["soft"]["step"] == 3 == found["loaded"]["kinds"]["soft"]["step"]
    assert found["loaded_over_idle"]["soft"]["step"] == 1
    assert "beside 1: update, s" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="train.py: expected 5 updates, found: no model"):
        bench.main([*size, "--tokens", "fuzzy"])


def test_train_py_knows_the_flags():
    train = [sys.executable, str(bench_train.TRAIN), "--help"]
    known = subprocess.run(train, capture_output=True, text=True).stdout
    assert all(flag in known for flag in ("--model", "--dtype", "--device", "--tokens", "--steps"))
    assert all(flag in known for flag in ("--validation", "--test", "--out"))


def test_memory_is_kept_where_that_can_be_asked_for(monkeypatch):
    for most, expected in (
        (2**30, [(-3, 2**30), (-1, 2**30)]),
        (2**25, [(-3, 2**30), (-3, 2**25), (-1, 2**30)]),
        (0, [(-3, 2**30), (-3, 2**25)]),
    ):  # the largest threshold that this glibc takes
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


@pytest.mark.parametrize(
    "given, message",
    [
        (["--group", "0"], "--group: expected at least 1, found 0"),
        (
            ["--shape", "smollm2-135m", "--against", "transformers"],
            "--against: expected a model folder",
        ),
        (["--prompts", "2", "0"], "--prompts: expected at least 1, found 0"),
        (["--load", "-1"], "--load: expected at least 0, found -1"),
        (["--part", "train", "--cot", "9"], "--cot: expected none with --part train, found 9"),
        (["--json", "nowhere/b.json"], "--json: expected a file in a folder that exists"),
    ],
)
def test_bad_flags_are_refused(given, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(given)
    assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_bad_input_is_one_line():
    with pytest.raises(SystemExit) as stop:
        bench.main(["--model", "nowhere"])
    assert "nowhere: expected a model folder" in str(stop.value) and "\n" not in str(stop.value)
