"""The command that proves the project on a GPU: what it does on a CPU, and, with a GPU, all of it
(`pytest -m gpu -n 0`)."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from runs import ENVIRONMENT, ROOT
from torch._subclasses.fake_tensor import DataDependentOutputException

from minisoft import engine
from minisoft.engine import decode, graphs
from minisoft.lab import bench, gpu, gpu_engine, gpu_parts, gpu_runs, gpu_speed
from minisoft.lab.gpu_parts import Report
from minisoft.training.world import RankError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Little of everything."""
    monkeypatch.setitem(bench.SIZES, "cpu", (2**20, 256))
    monkeypatch.setitem(gpu_parts.SIZES, "cpu", (1, 4))
    monkeypatch.setitem(gpu_parts.MANY, "cpu", (1, 4))
    monkeypatch.setattr(bench, "ANSWER_TOKENS", 4)


def part(name, *flags):
    """The Report of one part on the CPU."""
    return gpu.run_part(name, gpu.read_flags(list(flags)), CPU)


def verdicts(report):
    return {what: ok for what, _, _, ok in report.checks}


def test_parts_are_told_and_written(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    parts = ["--part", "speed", "machine", "fake", "logits"]
    flags = ["--device", "cpu", "--repeats", "1", "--json", str(path)]
    assert gpu.main([*parts, *flags]) == 0
    written, (out, err) = json.loads(path.read_text()), capsys.readouterr()
    assert [*written] == ["machine", "logits", "fake", "speed"]
    assert all(of_part["seconds"] >= 0 and of_part["checks"] for of_part in written.values())
    head = [cell.strip() for cell in out.splitlines()[0].split("|")[1:-1]]
    assert head == ["part", "what was checked", "expected", "found", "ok"]
    assert "| yes |" in out and "| NO " not in out
    assert "weights/tiny, float32, 2 x 4 rows" in out and "bfloat16: largest" in out
    assert "logits ..." in err and "0 of 5 failed" in err
    assert written["speed"]["weights/tiny"]["kinds"]["soft"]["plan"] > 0


def test_a_part_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    def broken(report):
        report.check("one", "1", "1", True)
        raise SystemExit("train.py: error: a disk\nis full")

    def bad(report):
        report.check("two | three", "2", "3", False)

    monkeypatch.setattr(
        gpu, "PARTS", {"machine": broken, "resume": bad, "logits": gpu.PARTS["fake"]}
    )
    assert gpu.main(["--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()]
    assert ["machine", "one", "1", "1", "yes"] in rows
    assert ["machine", "comes to its end", "no error", "is full", "NO"] in rows
    assert ["resume", "two / three", "2", "3", "NO"] in rows
    assert any(row[:2] == ["logits", "skipped"] for row in rows) or torch.backends.cuda.is_built()
    assert "Traceback" in err and "machine: 0.0 s, 1 of 2 failed" in err


def test_without_a_gpu_training_is_done_only_if_it_is_named(monkeypatch):
    done = []
    stubs = {name: lambda report, name=name: done.append(name) for name in gpu.PARTS}
    monkeypatch.setattr(gpu, "PARTS", stubs)
    assert gpu.main(["--device", "cpu"]) == 0
    assert set(done) == set(gpu.PARTS) - {"train"} and (done[0], done[-1]) == ("machine", "speed")
    done.clear()
    assert gpu.main(["--device", "cpu", "--part", "train"]) == 0 and done == ["train"]


def test_the_help_names_every_part(capsys):
    with pytest.raises(SystemExit) as stop:
        gpu.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and all(f"\n    {name} " in text for name in gpu.PARTS)


@pytest.mark.parametrize(
    "given, message",
    [
        (["--part", "everything"], "--part: invalid choice: 'everything'"),
        (["--repeats", "0"], "--repeats: expected at least 1, found 0"),
        (["--jobs", "0"], "--jobs: expected at least 1, found 0"),
        (["--json", "nowhere/b.json"], "--json: expected a file in a folder that exists"),
    ],
)
def test_bad_flags_are_refused(given, message, capsys):
    with pytest.raises(SystemExit) as stop:
        gpu.main(given)
    assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_bad_input_is_one_line():
    with pytest.raises(SystemExit) as stop:
        gpu.main(["--part", "gradient", "--device", "cpu", "--model", "nowhere"])
    assert "nowhere: expected a model folder" in str(stop.value) and "\n" not in str(stop.value)


def test_under_torchrun_there_is_one_part(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        gpu.main(["--part", "logits"])
    assert "--part: expected only ranks under torchrun" in capsys.readouterr().err


# ------------------------------------------------------------------------------- parts


def test_wrong_logits_are_found(monkeypatch):
    real = engine.accelerate

    def wrong(model):
        model.model.norm.weight.data[0] += 0.01
        return real(model)

    monkeypatch.setattr(engine, "accelerate", wrong)
    found = verdicts(part("logits"))
    assert not any(ok for what, ok in found.items() if what.startswith("float32 logits"))
    assert all(ok for what, ok in found.items() if what.startswith("bfloat16 logits"))


def test_gradients_are_compared(monkeypatch):
    monkeypatch.setattr(gpu_parts, "TOKENS", {x: gpu_parts.TOKENS[x] for x in ("hard", "top-5")})
    report = part("gradient")
    found = verdicts(report)
    assert [*found.values()] == [True, True, True, None]
    hard = report.numbers["float32 hard"]
    assert min(hard["E"]) > 0.999999 and hard["mismatch"] < 1e-5 and hard["positions"] > 40


def test_wrong_gradients_are_found(monkeypatch):
    monkeypatch.setattr(gpu_parts, "TOKENS", {"hard": gpu_parts.TOKENS["hard"]})
    real, calls = engine.backward, []

    def other(model, kind, rollouts, advantages, *args, **options):
        calls.append(model)
        turned = [a.flip(0) if len(calls) % 2 else a for a in advantages]
        return real(model, kind, rollouts, turned, *args, **options)

    monkeypatch.setattr(engine, "backward", other)
    assert [*verdicts(part("gradient")).values()] == [False, False]


def test_equal_rewards_get_advantages_of_both_signs():
    subject = gpu_parts.Subject(gpu_parts.TINY, CPU, "float32", (1, 4))
    rollouts = subject.rollouts("hard")
    nothing = SimpleNamespace(score_all=lambda pairs: [0] * len(pairs))
    (advantages,) = subject.advantages(rollouts, nothing)
    assert advantages.tolist() == [1, -1, 1, -1]


def test_records_are_compared(monkeypatch):
    monkeypatch.setattr(gpu_engine, "COMPARED", ("soft",))
    assert [*verdicts(part("graphs")).values()] == [True, True]
    real = engine.rollout

    def other(*args, ahead, **options):
        records = real(*args, **options)
        records[0].log_prob[0, 0] += ahead
        return records

    monkeypatch.setattr(engine, "rollout", other)
    report = part("graphs")
    assert [found for _, _, found, ok in report.checks if ok is False] == [
        "not equal: log_prob",
        "not equal: log_prob",
    ]


def test_a_backward_pass_without_memory_is_done_again():
    report = part("memory")
    assert report.held and report.checks[0][2] == "half as many rows, equal weights"


def test_memory_that_suffices_is_no_proof(monkeypatch):
    monkeypatch.setattr(gpu_engine, "fails_once", lambda backward: backward)
    report = part("memory")
    assert not report.held and report.checks[0][2].startswith("enough memory")


def test_switching_graphs_off_and_on_again(monkeypatch):
    monkeypatch.setattr(graphs, "USED", True)
    with pytest.raises(KeyError), gpu_engine.without_graphs():
        assert graphs.USED is False
        raise KeyError
    assert graphs.USED is True


@pytest.fixture
def no_onednn(monkeypatch):
    """Fake tensors know nothing of oneDNN's order of weights."""
    monkeypatch.setattr(engine, "accelerate", lambda model: model)


@pytest.mark.parametrize("name", gpu_parts.TOKENS)
def test_steps_on_a_fake_device(name, no_onednn):
    assert gpu_engine.fake_steps("cpu", "bfloat16", name) == 8


def test_a_host_that_reads_is_found(monkeypatch, no_onednn):
    real = decode.choose

    def reading(*args):
        move = real(*args)
        move.token.sum().item()
        return move

    monkeypatch.setattr(decode, "choose", reading)
    with pytest.raises(DataDependentOutputException):
        gpu_engine.fake_steps("cpu", "float32", "hard")


# ---------------------------------------------------------------------------- programs


@pytest.mark.slow
def test_a_run_is_killed_and_resumed():
    report = part("resume")
    assert report.held, report
    assert report.checks[0][2] == "equal weights, equal metrics"


def test_a_program_that_fails_is_told(tmp_path):
    log = tmp_path / "log"
    process = gpu_runs.begin(["-c", "import sys; sys.exit('no such thing')"], log)
    with pytest.raises(RuntimeError, match="exit status 1: no such thing"):
        gpu_runs.finish(process, log)


def test_a_program_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_runs, "PATIENCE", 0.1)
    process = gpu_runs.begin(["-c", "import time; time.sleep(60)"], tmp_path / "log")
    with pytest.raises(RuntimeError, match="exit status none after 0.1 s"):
        gpu_runs.finish(process, tmp_path / "log")
    assert process.poll() is not None


@pytest.mark.slow
def test_a_command_that_is_stopped_leaves_nothing_behind(tmp_path):
    place = {"cwd": ROOT, "env": {**ENVIRONMENT, "TMPDIR": str(tmp_path)}, "text": True}
    command = [sys.executable, "-m", "minisoft.lab.gpu", "--part", "train", "--device", "cpu"]
    asked = subprocess.Popen(command, **place, stderr=subprocess.PIPE)
    wait_for_any(tmp_path, "*/*/config.json")  # train.py is on its way
    asked.terminate()
    assert asked.wait(60) == 1
    assert asked.stderr.read().splitlines()[-1] == "minisoft.lab.gpu: interrupted"
    assert not list(tmp_path.glob("tmp*"))  # nor its files


def wait_for_any(folder, pattern, seconds=60):
    end = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert time.monotonic() < end, f"{pattern} does not come"
        time.sleep(0.05)


@pytest.mark.slow
def test_ranks_update_alike():
    report = part("ranks")
    assert report.held and len(report.checks) == 2 and "2 ranks on cpu" in report.checks[0][0]


def test_ranks_that_differ_are_an_error(monkeypatch):
    def differ(world, parameters):
        raise RankError("ranks hold different weights")

    monkeypatch.setattr(gpu_runs.World, "check_identical", differ)
    monkeypatch.setitem(gpu.PARTS, "ranks", gpu_runs.compare_ranks)
    report = part("ranks")
    assert report.checks[-1][2].endswith("ranks hold different weights") and not report.held


@pytest.mark.slow
def test_training_is_told(monkeypatch):
    flags = "--show-every 0 --steps 2 --prompts 2 --group 4 --validation 4 --test 4 "
    flags += "--validate-every 1 --eval-cot 24 --cot 24"
    monkeypatch.setattr(gpu_runs, "TRAINED", flags.split())
    given = "--train-tokens top-5 hard --train-dtypes float32 --seeds 3 --jobs 2".split()
    report = part("train", *given)
    assert [what for what, *_ in report.checks] == [
        "top-5, float32: hard-greedy, 1 seeds",
        "hard, float32: hard-greedy, 1 seeds",
    ]
    (_, runs), (_, curves) = report.tables
    assert runs[1][:3] == ["top-5", "float32", "3"] and curves[0][3:] == ["1", "2"]
    assert [step for step, *_ in report.numbers["runs"][0]["curve"]] == [1, 2]


# ------------------------------------------------------------------------------- speed


def test_limits_are_judged_on_a_large_gpu_only(monkeypatch):
    kind = {"decode_share": 0.7, "step": 1.5, "tokens_per_s": 13000.0, "allocated": 60.0}
    kinds = {"hard": kind, "soft": {**kind, "tokens_per_s": 11000.0}}
    report = Report(gpu.read_flags([]), torch.device("cuda", 0))
    size = 80 * 2**30
    monkeypatch.setattr(gpu_speed, "memory_bytes", lambda device: size)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu_speed.judge(report, "llama-3.2-3b", kinds, 1.02)
    found = verdicts(report)
    assert [*found.values()] == [None, True, True, False, True]
    report.checks.clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    gpu_speed.judge(report, "llama-3.2-3b", kinds, 1.02)
    assert {ok for *_, ok in report.checks} == {None}


def test_shapes_and_what_does_not_fit(monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "llama-3.2-1b", (300, 32, 48, 2, 4, 2, 8, False))
    flags = ["--shapes", "llama-3.2-1b", "--repeats", "1"]
    report = part("speed", *flags)
    assert report.held and report.tables[0][0].startswith("llama-3.2-1b, float32, 2 x 4 rows")

    def too_large(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate")

    monkeypatch.setattr(bench, "update", too_large)
    report = part("speed", *flags)
    assert report.checks == [
        ("llama-3.2-1b: an update", "fits", "CUDA out of memory. Tried", False)
    ]


def test_a_profile_has_the_slowest_kernels_first(monkeypatch):
    report = part("speed", "--profile", "--repeats", "1")
    titles = [title.split(":")[0] for title, _ in report.tables[1:]]
    kinds = [
        (tokens, what) for tokens in ("hard", "soft") for what in ("rollout", "replay", "update")
    ]
    assert titles == [f"weights/tiny, {tokens}, {what}" for tokens, what in kinds]
    times = [float(row[0]) for row in report.tables[1][1][1:-1]]
    assert times == sorted(times, reverse=True) and len(times) <= gpu_speed.TOP


# ------------------------------------------------------------------------- a real GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", gpu.PARTS)
def test_on_a_gpu(name, monkeypatch):
    monkeypatch.undo()  # all of everything
    report = gpu.run_part(name, gpu.read_flags([]), torch.device("cuda", 0))
    assert report.held, [check for check in report.checks if check[-1] is False]
