"""The benchmark: what it writes, and what it counts."""

import json

import pytest
import torch

from minisoft.engine import decode
from minisoft.lab import bench, command
from minisoft.rollout import COT

pytestmark = pytest.mark.filterwarnings("error::FutureWarning")  # of transformers
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """What the machine can do is measured on little, and answers are short."""
    monkeypatch.setitem(bench.SIZES, "cpu", (2**20, 256))
    monkeypatch.setattr(bench, "ANSWER_TOKENS", 4)


def flags(text=""):
    return command.read("bench", "", bench.FLAGS, ["--device", "cpu", *text.split()])


def prepare(text=""):
    args = flags(text)
    args.dtype = args.dtype or "float32"
    return bench.prepare(args, CPU)


def test_an_update_is_timed_against_transformers(tmp_path, capsys):
    size = "--device cpu --cot 4 --group 4 --repeats 2 --prompts 2 1"
    bench.main([*size.split(), "--against", "transformers", "--out", str(tmp_path / "b.json")])
    found, shown = json.loads((tmp_path / "b.json").read_text()), capsys.readouterr().out
    assert [row["rows"] for row in found["records"]] == ["2 x 4"] * 4 + ["1 x 4"] * 4
    table = {row["tokens"]: row for row in found["records"][:4]}
    for name in ("hard", "soft"):
        row = table[name]
        parts = "rollout replay optimizer update rollout_share replay_share ms_per_step".split()
        assert all(row[part] > 0 for part in parts) and len(row["all"]["update"]) == 2
        assert row["rollout_tokens_per_s"] == pytest.approx(8 * found["steps"] / row["rollout"])
        assert table[f"transformers {name} loop"]["rollout"] > 0
    assert table["soft"]["update"] == pytest.approx(sum(table["soft"]["all"]["update"]) / 2)
    assert " kernels, " in shown and shown.count("| transformers soft loop |") == 2
    assert f"| {table['hard']['ms_per_step']:,.2f}" in shown


def test_passes_are_counted_and_every_row_has_its_full_length(monkeypatch):
    """A position a pass here; in the loop the prefilled tokens go through in one."""
    work = prepare("--cot 5 --group 3")
    calls = []
    forward = decode.one_position
    monkeypatch.setattr(decode, "one_position", lambda *x: calls.append("ours") or forward(*x))
    for record in work.rollout(work.policy.of_kind("soft"), 0):
        assert record.ids.shape == (3, work.steps) and ((record.role == COT).sum(1) == 5).all()
    args = flags()
    args.dtype = "float32"
    rival = bench.Rival(work, args)
    rival.model.register_forward_pre_hook(lambda *_: calls.append("loop"))
    rival.loop(work.policy.of_kind("soft").kind, 5, 4)
    assert calls.count("ours") == work.steps == 5 + 4 + len(work.policy.form.prefill[1])
    assert calls.count("loop") == 1 + 5 + 4  # and the prompt's


def test_floor_counts_weights_prompts_and_own_positions():
    work = prepare("--cot 5 --group 3")
    c, can = work.policy.model.config, {"bandwidth": 1.0, "throughput": 1e30}
    read = bench.floor(work, "hard", can)["rollout"] / work.steps
    numbers = sum(p.numel() for p in work.policy.model.parameters() if p.dim() == 2)
    cached = sum(map(len, work.prompts)) + 6 * work.steps / 2
    numbers += cached * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
    assert read == pytest.approx(4 * numbers)
    assert bench.floor(work, "soft", can)["rollout"] / work.steps > read  # p E needs all logits
    can = {"bandwidth": 1e30, "throughput": 1.0}
    assert bench.floor(work, "soft", can)["replay"] > bench.floor(work, "hard", can)["replay"] > 0


def test_random_weights_of_a_shape(monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "llama-3.2-1b", (300, 32, 48, 2, 4, 2, 8, False))
    size = "--cot 3 --group 2 --dtype bfloat16"
    monkeypatch.setattr(bench, "PROMPT", 7)
    work = prepare(f"--shape llama-3.2-1b {size}")
    assert [len(p) for p in work.prompts] == [7, 7] and work.policy.model.E.dtype == torch.bfloat16
    assert work.micro_batch == 16  # as train.py chooses
    optimizer = bench.Optimizer(work.policy.model, bench.Schedule(1e-9, 10, 0), bench.World("cpu"))
    assert bench.update(work, optimizer, "soft", "update", 0)["update"] > 0


def test_the_name_of_the_cpu(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU\nflags\t\t: avx2\n")
    kernels = torch.backends.cpu.get_cpu_capability()
    assert bench.processor(CPU, tmp_path / "cpuinfo") == f"A CPU, {kernels} kernels"
    assert bench.processor(CPU, tmp_path / "nowhere").startswith("CPU unknown, ")


BAD = ["--group 0", "--against transformers --shape smollm2-135m", "--prompts 2 0"]


@pytest.mark.parametrize("flags", [*BAD, "--out nowhere/b.json"])
def test_bad_flags_and_input_are_one_line(flags):
    with pytest.raises(SystemExit, match=f"error: {flags.split()[0]}: expected") as stop:
        bench.main(flags.split())
    assert "\n" not in stop.value.code
    with pytest.raises(SystemExit, match="^.*nowhere: expected.*$"):
        bench.main(["--model", "nowhere"])
