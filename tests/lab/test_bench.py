"""The benchmark: what it writes, and what it counts."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from minisoft import kinds
from minisoft.io import WEIGHTS
from minisoft.lab import bench, rivals
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
    assert "soft over hard step" in capsys.readouterr().out


def test_every_row_has_its_full_length():
    work = bench.prepare(flags("--cot", "5", "--group", "3"))
    for name in ("hard", "soft"):
        for record in work.rollout(work.kind(name), 0):
            assert record.ids.shape == (3, work.steps) and ((record.role == COT).sum(1) == 5).all()


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
