"""The benchmark: what it writes, and what it counts."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch

from minisoft import kinds
from minisoft.engine.cache import RowCache
from minisoft.io import WEIGHTS
from minisoft.lab import bench, machine, rivals
from minisoft.rollout import COT

pytestmark = pytest.mark.filterwarnings("error::FutureWarning")  # of transformers
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """What the machine can do is measured on little, and answers are short."""
    monkeypatch.setitem(machine.SIZES, "cpu", (2**20, 256))
    for module in (bench, rivals):
        monkeypatch.setattr(module, "ANSWER_TOKENS", 4)


def flags(text=""):
    return bench.read_flags(["--device", "cpu", *text.split()])


def prepare(text=""):
    args = flags(text)
    args.dtype = args.dtype or "float32"
    return bench.prepare(args, CPU)


def test_an_update_is_timed_against_transformers(tmp_path, capsys):
    size = "--device cpu --cot 4 --group 4 --repeats 2 --prompts 2 1 --load 1 --profile"
    bench.main([*size.split(), "--against", "transformers", "--json", str(tmp_path / "b.json")])
    found, shown = json.loads((tmp_path / "b.json").read_text()), capsys.readouterr().out
    assert [size["rows"] for size in found["sizes"]] == ["2 x 4", "1 x 4"]
    table = {(row["tokens"], row["beside"]): row for row in found["sizes"][0]["table"]}
    for name, load in ((name, load) for name in ("hard", "soft") for load in (0, 1)):
        row = table[name, load]
        parts = "rollout replay optimizer update floor_ms decode_share replay_share".split()
        assert all(row[part] > 0 for part in parts) and len(row["seconds"]["update"]) == 2
        assert row["tokens_per_s"] == pytest.approx(8 * found["steps"] / row["rollout"])
    assert {f"transformers {x}" for x in ("hard loop", "hard generate", "soft loop")} <= {
        name for name, _ in table
    }
    pairs = zip(table["soft", 0]["seconds"]["update"], table["hard", 0]["seconds"]["update"])
    mean = sum(a / b for a, b in pairs) / 2
    (line,) = [x for x in found["sizes"][0]["ratios"] if x.startswith("soft / hard:")]
    assert line.endswith(f"update {mean:.3f}") and line in shown
    assert "kernels, avx512_bf16" in shown and "Self CPU" in shown
    assert found["passes"] == 8  # 4 CoT tokens and 4 of the answer


def test_ratios_are_of_the_same_round():
    def parts(*values):
        return {"rollout": list(values)}

    times = {("hard", 0): parts(1, 2), ("soft", 0): parts(3, 4), ("hard", 2): parts(5, 8)}
    times["transformers soft loop", 0] = parts(6, 12)
    assert bench.ratios(times, ["hard", "soft"]) == [
        "soft / hard: rollout 2.500",
        "hard beside 2 / hard: rollout 4.500",
        "transformers soft loop / soft: rollout 2.500",
    ]


def test_every_row_has_its_full_length():
    work = prepare("--cot 5 --group 3")
    for name in ("hard", "soft"):
        for record in work.rollout(work.policy(name), 0):
            assert record.ids.shape == (3, work.steps) and ((record.role == COT).sum(1) == 5).all()


def test_passes_are_counted(monkeypatch):
    """A position a pass here; in the loop the prefilled tokens go through in one."""
    work = prepare("--cot 5 --group 3")
    calls = []
    forward = RowCache.forward
    monkeypatch.setattr(RowCache, "forward", lambda *x: calls.append("ours") or forward(*x))
    work.rollout(work.policy("soft"), 0)
    args = flags()
    args.dtype = "float32"
    rival = rivals.Rivals(work, args)
    rival.model.register_forward_pre_hook(lambda *_: calls.append("loop"))
    rival.loop(work.policy("soft").kind, 5, 4)
    assert calls.count("ours") == work.steps == work.passes + len(work.form.prefill[1])
    assert calls.count("loop") == 1 + work.passes  # and the prompt's


def test_floor_counts_weights_prompts_and_own_positions():
    work = prepare("--cot 5 --group 3")
    c, can = work.model.config, {"bandwidth": 1.0, "throughput": 1e30}
    read = bench.floor(work, "hard", can)["decode"]
    numbers = sum(p.numel() for p in work.model.parameters())
    cached = sum(map(len, work.prompts)) + 6 * work.steps / 2
    numbers += cached * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
    assert read == pytest.approx(4 * numbers)
    assert bench.floor(work, "soft", can)["decode"] > read  # p E needs all logits first
    can = {"bandwidth": 1e30, "throughput": 1.0}
    assert bench.floor(work, "soft", can)["replay"] > bench.floor(work, "hard", can)["replay"] > 0


def test_a_kind_of_token_that_is_not_the_papers(tmp_path, monkeypatch):
    monkeypatch.setitem(kinds.KINDS, "firm", kinds.KINDS["soft"])
    monkeypatch.setitem(kinds.TAU, "firm", 0.1)
    for path in (WEIGHTS / "tiny").iterdir():
        if path.is_file() and path.name != "minisoft.json":
            shutil.copy(path, tmp_path)
    size = "--tokens firm --cot 2 --group 2 --repeats 1 --device cpu --against transformers"
    bench.main(["--model", str(tmp_path), *size.split()])


def test_random_weights_of_a_shape(monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "llama-3.2-1b", (300, 32, 48, 2, 4, 2, 8, False))
    size = "--cot 3 --group 2 --dtype bfloat16 --prompt-tokens 7"
    work = prepare(f"--shape llama-3.2-1b {size}")
    assert [len(p) for p in work.prompts] == [7, 7] and work.model.E.dtype == torch.bfloat16
    assert work.micro_batch == 16  # as train.py chooses
    optimizer = bench.Optimizer(work.model, bench.Schedule(1e-9, 10, 0), bench.World("cpu"))
    assert bench.update(work, optimizer, "soft", "update", 0)["update"] > 0


def test_ctrl_c_leaves_the_rounds_that_were_complete(monkeypatch, capsys):
    def update(work, optimizer, name, part, seed):
        if seed == 2 and name == "soft":
            raise KeyboardInterrupt
        return dict.fromkeys(("rollout", "replay", "optimizer", "update"), 0.5)

    monkeypatch.setattr(bench, "update", update)
    bench.main("--cot 2 --group 2 --repeats 5 --device cpu".split())
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if "| soft" in line]
    assert [line[4].strip() for line in lines] == ["2"]


def test_spinning_processes_end_with_the_block_and_with_their_parent():
    with pytest.raises(KeyboardInterrupt), machine.busy(2) as spinning:
        assert [process.poll() for process in spinning] == [None, None]
        raise KeyboardInterrupt
    assert None not in [process.returncode for process in spinning]
    parent = (
        "from minisoft.lab.machine import busy\n"
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
    kernels = torch.backends.cpu.get_cpu_capability()
    found = machine.processor(CPU, tmp_path / "cpuinfo")
    assert found == f"A CPU, {kernels} kernels, avx512_bf16 no, amx_bf16 yes"
    unknown = machine.processor(CPU, tmp_path / "nowhere")
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
    monkeypatch.setattr(bench, "TRAIN", tmp_path / "train.py")
    size = "--part train --repeats 2 --device cpu --tokens".split()
    bench.main([*size, "soft", "--load", "1", "--json", str(tmp_path / "b.json")])
    idle, loaded = json.loads((tmp_path / "b.json").read_text())["sizes"][0]["table"]
    assert idle["seconds"]["update"] == loaded["seconds"]["update"] == [3, 3]
    assert "soft beside 1 / soft: update 1.000" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="train.py: expected 5 updates, found: no model"):
        bench.main([*size, "fuzzy"])


def test_train_py_knows_the_flags():
    train = [sys.executable, str(bench.TRAIN), "--help"]
    known = subprocess.run(train, capture_output=True, text=True).stdout
    asked = "--model --dtype --device --tokens --steps --validation --test --out".split()
    assert all(flag in known for flag in asked)


@pytest.mark.parametrize(
    "given, name",
    [
        ("--group 0", "--group"),
        ("--shape smollm2-135m --against transformers", "--against"),
        ("--prompts 2 0", "--prompts"),
        ("--load -1", "--load"),
        ("--part train --cot 9", "--cot"),
        ("--json nowhere/b.json", "--json"),
    ],
)
def test_bad_flags_are_refused(given, name, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(given.split())
    assert stop.value.code == 2
    assert f"{name}: expected" in capsys.readouterr().err.splitlines()[-1]


def test_bad_input_is_one_line():
    with pytest.raises(SystemExit) as stop:
        bench.main(["--model", "nowhere"])
    assert "nowhere: expected" in str(stop.value) and "\n" not in str(stop.value)
