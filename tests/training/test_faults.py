"""What goes wrong on real machines: kills at any moment, full disks, changed files, NaN, too little memory."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from minisoft.errors import InputError
from minisoft.io import checkpoint
from minisoft.training.optimizer import Optimizer

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--prompts", "2", "--group", "4", "--cot", "40", "--validation", "6", "--test", "4", "--validate-every", "2",
         "--save-every", "1", "--show-every", "0", "--shares-every", "2", "--device", "cpu", "--steps", "4", "--lr", "1e-3",
         "--warmup", "1"]


def run(out, *flags):
    train.main([*FLAGS, "--out", str(out), *flags])


def resume(out, *flags):
    train.main(["--out", str(out), "--resume", *flags])


def content(out):
    """All that a run leaves, but for clocks and memory."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    del summary["seconds"]
    return ([{k: v for k, v in m.items() if not k.startswith(("seconds", "memory"))} for m in lines], summary,
            *((out / name).read_bytes() for name in ("best/model.safetensors", "last/model.safetensors")),
            *(path.read_bytes() for path in sorted((out / "state").glob("step-*/piece-*"))))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out)
    return out


KILLER = """
import os, signal, sys
from pathlib import Path
import train
from minisoft.io import atomic, checkpoint, state
from minisoft.lab import tables
place, times = sys.argv[1], int(sys.argv[2])
owner = {"train": train, "state": state, "files": files, "checkpoint": checkpoint, "metrics": tables.MetricsFile, "path": Path,
         "shutil": atomic.shutil}[place.split(".")[0]]
name, real = place.split(".")[1], getattr(owner, place.split(".")[1])
def killing(*args, **options):
    global times
    times -= 1
    if times < 0:
        if place == "metrics.write":
            args[0].path.open("a").write('{"step": ')
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)
setattr(owner, name, killing)
train.main(sys.argv[3:])
"""


@pytest.mark.parametrize("place, times", [
    ("metrics.write", 2), ("state.save_tensors", 2), ("path.rename", 5),
    *(pytest.param(*at, marks=pytest.mark.slow) for at in (
        ("train.rollout", 2), ("train.backward", 5), ("state.write_json", 5), ("state.digest", 5), ("checkpoint.save_tensors", 3),
        ("path.rename", 1), ("path.rename", 4), ("path.rename", 6), ("shutil.rmtree", 8), ("train.finish", 0),
        ("atomic.write_json", 1)))])
def test_a_kill_at_any_place(whole, tmp_path, place, times):
    """SIGKILL before the call number `times` of a function: in a rollout, a replay, a save, before each of its renames."""
    out = tmp_path / "run"
    killed = subprocess.run([sys.executable, "-c", KILLER, place, str(times), *FLAGS, "--out", str(out)], cwd=ROOT,
                            capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-500:]
    assert not (out / "summary.json").exists()
    resume(out)
    assert content(out) == content(whole)
    assert sorted(path.name for path in out.iterdir()) == [
        "best", "config.json", "last", "lock", "metrics.jsonl", "state", "summary.json"]


def test_a_damaged_newest_state(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    piece = tmp_path / "run/state/step-000004/piece-0-of-1.safetensors"
    piece.write_bytes(piece.read_bytes()[:-1])
    resume(tmp_path / "run")
    assert f"{piece}: expected size and SHA-256" in capsys.readouterr().out
    assert content(tmp_path / "run") == content(whole)


def test_changed_data_are_named_at_resume(tmp_path):
    rows = (ROOT / "weights/tiny/train.jsonl").read_text().splitlines()[:40]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    out, flags = tmp_path / "run", ["--data", str(tmp_path / "data.jsonl")]
    run(out, "--steps", "1", *flags)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "lock"}
    (tmp_path / "data.jsonl").write_text("\n".join(rows[:-1]))
    with pytest.raises(SystemExit, match="--resume: expected what the run began with, found other content of --data "):
        resume(out, "--steps", "2")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "lock"} == before


def test_a_changed_tokenizer_and_prompt_are_named_at_resume(tmp_path):
    shutil.copytree(checkpoint.WEIGHTS / "tiny", tmp_path / "model")
    (tmp_path / "prompt.txt").write_text("User: QUESTION Assistant:")
    out, flags = tmp_path / "run", ["--model", str(tmp_path / "model"), "--prompt", str(tmp_path / "prompt.txt")]
    run(out, "--steps", "1", *flags)
    (tmp_path / "prompt.txt").write_text("Question: QUESTION Answer:")
    settings = tmp_path / "model/tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "add_bos_token": False}))
    with pytest.raises(SystemExit, match=r"found other content of --prompt, tokenizer_config.json \("):
        resume(out, "--steps", "2")


def test_golds_that_the_verifier_cannot_read_are_listed(tmp_path, capsys):
    rows = (ROOT / "weights/tiny/train.jsonl").read_text().splitlines()[:40]
    rows[7] = json.dumps({"question": "Which angle?", "answer": "\\angle A B C"})
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    run(tmp_path / "run", "--steps", "1", "--data", str(tmp_path / "data.jsonl"))
    assert "1 of 40 gold answers are neither numbers nor formulas nor words" in capsys.readouterr().out


def test_a_disk_that_takes_no_more_bytes_while_saving(tmp_path):
    """The operating system's limit on a file's size lets metrics be written, and no weights: one line, the old state stays."""
    out = tmp_path / "run"
    run(out, "--steps", "2")
    code = ("import resource, sys, train; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); "
            "train.main(sys.argv[1:])")
    found = subprocess.run([sys.executable, "-c", code, "--out", str(out), "--resume", "--steps", "4"], cwd=ROOT, text=True,
                           capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    last = found.stderr.strip().splitlines()[-1]
    assert found.returncode == 1 and last.startswith("train.py: error: ") and "model.safetensors: cannot be written" in last
    assert not list(out.rglob("*.new"))
    assert sorted(path.name for path in (out / "state").iterdir()) == ["step-000001", "step-000002"]
    resume(out, "--steps", "3")


@pytest.fixture
def broken_backward(monkeypatch):
    """fails(error or None of each call): `train.backward` raises these, then works."""
    def fails(errors):
        errors, real = list(errors), train.backward

        def backward(*args):
            if errors and (error := errors.pop(0)):
                raise error
            return real(*args)
        monkeypatch.setattr(train, "backward", backward)
    return fails


def test_too_little_memory_is_tried_once_more_with_fewer_rows(tmp_path, broken_backward, capsys):
    run(tmp_path / "one", "--steps", "1", "--micro-batch", "2", "--shares-every", "0")
    broken_backward([None, torch.OutOfMemoryError("no memory")])  # in the second problem: the first one counts once
    run(tmp_path / "two", "--steps", "1", "--micro-batch", "4", "--shares-every", "0")
    assert "step 1: out of memory; from now on 2 rows a backward pass" in capsys.readouterr().out
    for name, tensor in load_file(tmp_path / "one/last/model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "two/last/model.safetensors")[name], tensor)


def test_a_backward_pass_that_ends_halfway_leaves_nothing(tmp_path, monkeypatch):
    """Out of memory while its gradients are being summed."""
    run(tmp_path / "one", "--steps", "1", "--micro-batch", "2", "--shares-every", "0")
    real, times = Optimizer._zeros, [3]

    def zeros(p):
        times[0] -= 1
        if times[0] == 0:
            raise torch.OutOfMemoryError("no memory")
        return real(p)
    monkeypatch.setattr(Optimizer, "_zeros", staticmethod(zeros))
    run(tmp_path / "two", "--steps", "1", "--micro-batch", "4", "--shares-every", "0")
    assert times[0] < 0
    for name, tensor in load_file(tmp_path / "one/last/model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "two/last/model.safetensors")[name], tensor)


def test_what_a_kill_left_half_written_goes(tmp_path):
    run(tmp_path / "run", "--steps", "1")
    for name in ("state/step-000137.new", "best.old", "last.new"):
        (tmp_path / "run" / name).mkdir()
    (tmp_path / "run/config.json.new").write_text("{")
    resume(tmp_path / "run", "--steps", "2")
    assert not [*(tmp_path / "run").rglob("*.new"), *(tmp_path / "run").rglob("*.old")]


def test_a_new_run_touches_nothing_else_in_its_folder(tmp_path):
    for name in ("notes.old", "notes", "draft.new"):
        (tmp_path / name).mkdir()
    (tmp_path / "list.new").write_text("mine")
    run(tmp_path, "--steps", "1", "--validation", "0")
    assert all((tmp_path / name).exists() for name in ("notes.old", "notes", "draft.new", "list.new"))
    resume(tmp_path, "--steps", "2")
    assert all((tmp_path / name).exists() for name in ("notes.old", "notes", "draft.new", "list.new"))


def test_too_little_memory_twice_says_what_to_set(tmp_path, broken_backward):
    broken_backward([torch.OutOfMemoryError("no memory")] * 2)
    with pytest.raises(SystemExit, match="step 1: --micro-batch: expected backward passes that fit.*set a smaller --micro-batch"):
        run(tmp_path / "run", "--steps", "1", "--micro-batch", "4")


def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path, monkeypatch):
    out, real = tmp_path / "run", train.backward
    run(out, "--steps", "1")

    def backward(model, *args):
        real(model, *args)
        (model.model.layers[1].mlp.up_proj.weight.sum() * float("nan")).backward()
    monkeypatch.setattr(train, "backward", backward)
    before = {path: path.read_bytes() for path in (out / "state").rglob("*.*")}
    with pytest.raises(SystemExit, match=r"step 2: gradient norm: expected a finite number, found nan \(log-probabilities are "
                                         r"finite; first of 1 parameters: model.layers.1.mlp.up_proj.weight\)"):
        resume(out, "--steps", "2")
    assert {path: path.read_bytes() for path in (out / "state").rglob("*.*")} == before


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    out, real = tmp_path / "run", train.train_step
    run(out, "--steps", "1", "--validation", "0")

    def step(run, score):
        found = real(run, score)
        with torch.no_grad():
            run.model.model.norm.weight[3] = float("inf")
        return found
    monkeypatch.setattr(train, "train_step", step)
    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    with pytest.raises(SystemExit, match="step 2: weights: expected finite numbers, found NaN or infinity in model.norm.weight"):
        resume(out, "--steps", "2")
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")} == before


def test_a_model_with_nan_is_refused_before_training(tmp_path):
    shutil.copytree(checkpoint.WEIGHTS / "tiny", tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    checkpoint.save_tensors(tmp_path / "model/model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(InputError, match="model.norm.weight: expected finite numbers"):
        checkpoint.load(tmp_path / "model")


@pytest.mark.slow
def test_two_hundred_kills_of_the_embedded_default(tmp_path):
    """SIGKILL at random moments; MINISOFT_KILLS says how many.  A run that comes to its end is compared with one that was left
    alone, and the next one begins."""
    kills, moments, out, finished = int(os.environ.get("MINISOFT_KILLS", 200)), random.Random(0), tmp_path / "run0", 0
    start = lambda out, *flags: subprocess.Popen(
        [sys.executable, "train.py", "--save-every", "1", *flags, "--out", str(out)], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert start(tmp_path / "whole").wait() == 0
    while kills > 0 or not (out / "summary.json").exists():
        process = start(out, *(["--resume"] if (out / "config.json").exists() else []))
        try:
            assert process.wait(moments.uniform(0, 30) if kills > 0 else None) == 0
            assert content(out) == content(tmp_path / "whole")
            if kills > 0:
                finished, out = finished + 1, tmp_path / f"run{finished + 1}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills -= 1
            time.sleep(0.1)
    assert content(out) == content(tmp_path / "whole")
