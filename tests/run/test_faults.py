"""What goes wrong on real machines: kills at any moment, full disks, changed files, NaN, too little
memory."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import runs
import torch
from runs import ENVIRONMENT, ROOT, assert_same_weights, config, metrics, start, summary, tiny_at

import train
from minisoft import engine, reinforce
from minisoft.data import PAPER_PROMPT
from minisoft.engine.replay import Replay
from minisoft.io import checkpoint, datasets, prompts
from minisoft.io.atomic import NEW, OLD
from minisoft.run.metrics import MetricsFile
from minisoft.run.optimizer import Optimizer
from minisoft.run.session import Run

FLAGS = "--prompts 2 --group 4 --cot 40 --eval-cot 40 --validation 6 --test 4 --validate-every 2"
FLAGS = f"{FLAGS} --save-every 1 --show-every 0 --device cpu --steps 4 --lr 1e-3 --warmup 1".split()
ONE = "--steps 1 --validation 0 --test 0".split()


def run(out, *flags):
    train.main([*FLAGS, "--out", str(out), *flags])


def resume(out, *flags):
    train.main(["--out", str(out), "--resume", *flags])


def tree(folder):
    """{path: content} of all files, {path: None} of folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def content(out):
    """All that a run leaves, but for clocks and memory."""
    files = [out / "best/model.safetensors", out / "last/model.safetensors"]
    files += sorted((out / "state").glob("step-*/piece-*"))
    return metrics(out), summary(out), *(path.read_bytes() for path in files)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out)
    return out


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of one update."""
    out = tmp_path_factory.mktemp("begun") / "run"
    run(out, "--steps", "1")
    return out


@pytest.fixture
def again(begun, tmp_path):
    """A copy of that run."""
    return shutil.copytree(begun, tmp_path / "run")


PLACES = ["metrics.write 2", "state.save_tensors 2", "path.rename 5"]
SLOW_PLACES = """engine.rollout 2;engine.backward 2;engine.stream 3;state.write_json 5
state.digest 5;checkpoint.save_tensors 3;path.rename 1;path.rename 4;path.rename 6;shutil.rmtree 8
train.finish 0;atomic.write_json 1;atomic.write_json 5"""
SLOW_PLACES = [pytest.param(x, marks=pytest.mark.slow) for x in re.split("[;\n]", SLOW_PLACES)]


@pytest.mark.parametrize("place", PLACES + SLOW_PLACES)
def test_a_kill_at_any_place(whole, tmp_path, place):
    """SIGKILL before the call number so and so of a function: in a rollout, a replay, an
    evaluation, a save, before each of its renames."""
    out, (place, times) = tmp_path / "run", place.split()
    process = start(
        runs.killed_in, place, int(times), [*FLAGS, "--out", str(out)], stderr=tmp_path / "err"
    )
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "err").read_text()[-500:]
    assert not (out / "summary.json").exists()
    resume(out)
    assert content(out) == content(whole)
    left = "best config.json last lock metrics.jsonl state summary.json".split()
    assert sorted(path.name for path in out.iterdir()) == left


def test_a_damaged_newest_state(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    piece = tmp_path / "run/state/step-000004/piece-0-of-1.safetensors"
    piece.write_bytes(piece.read_bytes()[:-1])
    resume(tmp_path / "run")
    assert f"{piece}: expected size and SHA-256" in capsys.readouterr().out
    assert content(tmp_path / "run") == content(whole)


def test_changed_data_prompt_and_tokenizer_are_named_at_resume(tmp_path):
    model, out, data = tiny_at(tmp_path / "model"), tmp_path / "run", tmp_path / "data.jsonl"
    rows, template = (model / "train.jsonl").read_text().splitlines()[:40], tmp_path / "prompt.txt"
    data.write_text("\n".join(rows))
    template.write_text("User: QUESTION Assistant:")
    run(out, *ONE, "--data", str(data), "--model", str(model), "--template", str(template))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "lock"}
    data.write_text("\n".join(rows[:-1]))
    template.write_text("Question: QUESTION Answer:")
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": False}))
    expected = r"--resume: .* found other content of --data, --template, tokenizer_config.json \("
    with pytest.raises(SystemExit, match=expected):
        resume(out, "--steps", "2")
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "lock"}
    assert after == before


def test_a_chat_prompt_is_rendered_once_and_its_date_stays(tmp_path, monkeypatch):
    shutil.copytree(checkpoint.WEIGHTS / "tiny", tmp_path / "model")
    path, out = tmp_path / "model/chat_template.jinja", tmp_path / "run"
    path.write_text("{{ strftime_now('%Y') }}: {{ messages[0].content }} Bot:\n\n")
    flags = ["--model", str(tmp_path / "model"), "--template", "chat"]
    monkeypatch.setattr(prompts.time, "strftime", lambda form: "1999")
    (tmp_path / "chat").mkdir()  # is not meant
    monkeypatch.chdir(tmp_path)
    run(out, *ONE, *flags)
    monkeypatch.undo()
    resume(out, "--steps", "2")
    resume(out, "--steps", "3", *flags)
    sidecar = json.loads((out / "last/minisoft.json").read_text())
    assert sidecar["prompt"] == f"1999: {PAPER_PROMPT} Bot:\n"
    assert config(out)["template"] == "chat"
    path.write_text("{{ messages[0].content }}")
    with pytest.raises(SystemExit, match="found other content of chat_template.jinja"):
        resume(out, "--steps", "4")


def test_a_chat_prompt_is_not_a_file_that_has_moved(tmp_path):
    (tmp_path / "prompt.txt").write_text("User: QUESTION Assistant:")
    run(tmp_path / "run", *ONE, "--template", str(tmp_path / "prompt.txt"))
    with pytest.raises(SystemExit, match="--resume: expected the flags .* template .*, now chat"):
        resume(tmp_path / "run", "--steps", "2", "--template", "chat")


def test_golds_that_the_verifier_cannot_read_are_listed(tmp_path, capsys):
    rows = (ROOT / "weights/tiny/train.jsonl").read_text().splitlines()[:40]
    rows[7] = json.dumps({"question": "Which angle?", "answer": "\\angle A B C"})
    rows.append(rows[7])
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    run(tmp_path / "run", *ONE, "--data", str(tmp_path / "data.jsonl"))
    said = capsys.readouterr().out
    assert "2 of 41 gold answers are neither numbers nor formulas nor words" in said
    assert "41 training, 0 validation, 0 test problems" in said and "(1 duplicates, " in said


def test_a_disk_that_takes_no_more_bytes_while_saving(again, tmp_path):
    """The operating system's limit on a file's size lets metrics be written, and no weights: one
    line, the old state stays."""
    flags = ["--out", str(again), "--resume", "--steps", "4"]
    process = start(runs.with_small_files, flags, stderr=tmp_path / "err")
    process.join()
    last = (tmp_path / "err").read_text().strip().splitlines()[-1]
    assert process.exitcode == 1 and last.startswith("train.py: error: ")
    assert "model.safetensors: cannot be written" in last
    assert not list(again.rglob(f"*{NEW}"))
    assert [path.name for path in (again / "state").iterdir()] == ["step-000001"]
    resume(again, "--steps", "2")


@pytest.fixture
def broken_backward(monkeypatch):
    """fails(error or None of each call): the replay of a problem raises these, then works."""

    def fails(errors):
        errors, real = list(errors), Replay.backward

        def backward(*args):
            error = errors.pop(0) if errors else None
            if error:
                raise error
            return real(*args)

        monkeypatch.setattr(Replay, "backward", backward)

    return fails


@pytest.fixture(scope="module")
def two_rows(tmp_path_factory):
    """A run of one update, two rows a backward pass."""
    out = tmp_path_factory.mktemp("two_rows") / "run"
    run(out, *ONE, "--micro-batch", "2")
    return out


def test_too_little_memory_is_tried_with_fewer_rows(two_rows, tmp_path, broken_backward, capsys):
    """In the second problem: the first one counts once."""
    broken_backward([None, torch.OutOfMemoryError("no memory")])
    run(tmp_path / "run", *ONE, "--micro-batch", "4")
    expected = "step 1: out of memory; from now on 2 rows a backward pass"
    assert expected in capsys.readouterr().out
    assert_same_weights(tmp_path / "run", two_rows)


def test_a_backward_pass_that_ends_halfway_leaves_nothing(two_rows, tmp_path, monkeypatch):
    """Out of memory while its gradients are being summed."""
    real, calls = Optimizer._zeros, []

    def zeros(p):
        calls.append(p)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory")
        return real(p)

    monkeypatch.setattr(Optimizer, "_zeros", staticmethod(zeros))
    run(tmp_path / "run", *ONE, "--micro-batch", "4")
    assert len(calls) > 3
    assert_same_weights(tmp_path / "run", two_rows)


def test_too_little_memory_twice_says_what_to_set_and_another_error_is_raised_at_once(
    tmp_path, broken_backward
):
    broken_backward([torch.OutOfMemoryError("no memory")] * 2)
    expected = "step 1: --micro-batch: expected backward passes that fit.* a smaller --micro-batch"
    with pytest.raises(SystemExit, match=expected):
        run(tmp_path / "run", *ONE, "--micro-batch", "4")
    broken_backward([RuntimeError("another")])
    with pytest.raises(RuntimeError, match="another"):
        run(tmp_path / "other", *ONE)


def test_plain_passes_are_not_tried_once_more(tmp_path, monkeypatch):
    """--plain has no micro-batches: half as many rows would be the same attempt."""
    calls = []

    def backward(*args):
        calls.append(args)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(reinforce, "backward", backward)
    with pytest.raises(SystemExit, match="step 1: --micro-batch: .* --plain"):
        run(tmp_path / "run", *ONE, "--plain")
    assert len(calls) == 1


DAMAGED = [b"[]", b"3", b'"step"', b'{"step": null}', b'{"step": [1]}', b"\xff\xfe{", b"{"]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_line_of_metrics_is_dropped_and_counted(tmp_path, capsys, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 2}\n{"step": 3}\n')
    MetricsFile(path, 2, iter(()))
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert f"{path}: 1 damaged" in capsys.readouterr().err


def test_what_a_kill_left_half_written_goes(again):
    for name in (f"state/step-000137{NEW}", f"best{OLD}", f"last{NEW}"):
        (again / name).mkdir()
    (again / f"config.json{NEW}").write_text("{")
    resume(again, "--steps", "2")
    assert not [*again.rglob(f"*{NEW}"), *again.rglob(f"*{OLD}")]


def test_a_run_touches_nothing_else_in_its_folder(tmp_path):
    names = ("notes/old", "best.old/x", "last.new/x", "config.json.new", "train.jsonl")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    run(tmp_path, *ONE)
    (tmp_path / "last/notes").write_text("mine")
    resume(tmp_path, "--steps", "2")
    assert all((tmp_path / name).read_text() == "mine" for name in (*names, "last/notes"))


PARTS = "config.json metrics.jsonl summary.json lock best/x last/x state/x".split()


@pytest.mark.parametrize("name", PARTS)
def test_a_new_run_writes_over_nothing(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("[1]")
    before = tree(tmp_path)
    with pytest.raises(SystemExit, match=f"{tmp_path}.*expected .*found"):
        run(tmp_path, *ONE)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("data, out", [("data", "data"), ("link", "data/run"), ("data", "link")])
def test_a_new_run_in_the_folder_of_its_problems_is_refused(tmp_path, data, out):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    shutil.copy(checkpoint.WEIGHTS / "tiny/train.jsonl", tmp_path / "data")
    with pytest.raises(SystemExit, match="expected an unused folder, found one among the problems"):
        run(tmp_path / out, *ONE, "--data", str(tmp_path / data))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["train.jsonl"]


def test_a_run_that_came_while_another_one_was_set_up_is_not_written_over(tmp_path, monkeypatch):
    out, real = tmp_path / "run", datasets.load_problems

    def load_problems(name):
        tiny_at(out / "last")
        return real(name)

    monkeypatch.setattr(datasets, "load_problems", load_problems)
    with pytest.raises(SystemExit, match="found last"):
        run(out, *ONE)
    assert sorted(path.name for path in out.iterdir()) == ["last", "lock"]


@pytest.mark.parametrize("name", ["last", "best", "state", "state/step-000001"])
def test_resume_at_a_part_of_a_run_names_the_run(again, name):
    before = tree(again)
    with pytest.raises(SystemExit, match=f"found a part of one; give --out {again}$"):
        resume(again / name)
    assert tree(again) == before


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", ""])
def test_resume_at_what_is_no_run_changes_nothing(tmp_path, name):
    """The folder of a model without and with its config.json, and no folder at all."""
    if name:
        (tmp_path / "model").mkdir()
        shutil.copy(checkpoint.WEIGHTS / "tiny" / name, tmp_path / "model")
    before = tree(tmp_path)
    with pytest.raises(SystemExit, match="model: --resume: expected a run to go on with, found"):
        resume(tmp_path / "model")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("gone", [[], ["last"], ["last", "best"]])
def test_a_run_whose_states_are_gone_does_not_begin_again(again, gone):
    for name in ("state", *gone):
        shutil.rmtree(again / name)
    before = tree(again)
    expected = f"state: expected the state of update 1, found none; .*--model {again / 'last'} "
    with pytest.raises(SystemExit, match=expected):
        resume(again, "--steps", "2")
    assert tree(again) == before


@pytest.mark.parametrize("best", ["is gone", "is newer"])
def test_a_run_without_the_best_that_it_remembers_chooses_anew(begun, again, capsys, best):
    """Of what it has: the model that it goes on from."""
    path = again / "best/minisoft.json"
    if best == "is gone":
        shutil.rmtree(again / "best")
    else:  # such as a kill leaves before the next save
        path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 3}))
    resume(again)
    found = "None" if best == "is gone" else "3"
    expected = f"expected the model after update {summary(begun)['best_step']}, found {found}: "
    assert expected in capsys.readouterr().out
    assert summary(again)["best_step"] == json.loads(path.read_text())["step"] == 1
    assert_same_weights(again, again, "best")
    assert summary(again)["validation"] >= 0


def test_a_run_goes_on_elsewhere_with_the_same_model_problems_and_template(tmp_path, monkeypatch):
    """Its model goes away while it is at work."""
    here, there = tmp_path / "here", tmp_path / "there"
    model, data, template = (here / name for name in ("model", "data.jsonl", "template"))
    tiny_at(model)
    shutil.copy(checkpoint.WEIGHTS / "tiny/train.jsonl", data)
    template.write_text("Q QUESTION A")
    places = ["--model", str(model), "--data", str(data), "--template", str(template)]
    real = Run.save

    def save(self):
        model.rename(here / "gone")
        real(self)
        (here / "gone").rename(model)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", save)
        run(here / "run", *ONE, *places)
    checkpoint.load(here / "run/last")
    here.rename(there)
    moved = [place.replace(str(here), str(there)) for place in places]
    resume(there / "run", "--steps", "2", *moved)
    assert len(metrics(there / "run")) == 2
    resume(there / "run")  # which knows the new places
    about = there / "model/minisoft.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"gamma": 0.5}))
    with pytest.raises(SystemExit, match="found other content of minisoft.json"):
        resume(there / "run", "--steps", "3", *moved)


def test_a_gradient_that_is_not_finite_stops_before_the_update(again, tmp_path, monkeypatch):
    out, real = again, engine.backward

    def backward(model, *args, **options):
        mismatch = real(model, *args, **options)
        (model.model.layers[1].mlp.up_proj.weight.sum() * float("nan")).backward()
        return mismatch

    monkeypatch.setattr(engine, "backward", backward)
    before = {path: path.read_bytes() for path in (out / "state").rglob("*.*")}
    expected = "step 2: gradient norm: .* found nan .*finite; first of 1 parameters: model.layers.1"
    with pytest.raises(SystemExit, match=f"{expected}.mlp.up_proj.weight.* can be resumed"):
        resume(out, "--steps", "2")
    with pytest.raises(SystemExit, match="step 1: gradient norm: .* nothing was changed$"):
        run(tmp_path / "new", *ONE)  # which has no state yet
    assert {path: path.read_bytes() for path in (out / "state").rglob("*.*")} == before


def test_weights_that_are_not_finite_are_not_saved(two_rows, tmp_path, monkeypatch):
    out, real = shutil.copytree(two_rows, tmp_path / "run"), Run.update

    def update(self, *args):
        metrics = real(self, *args)
        with torch.no_grad():
            self.policy.model.model.norm.weight[3] = float("inf")
        return metrics

    monkeypatch.setattr(Run, "update", update)
    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    with pytest.raises(SystemExit, match="step 2: weights: expected .* in model.norm.weight"):
        resume(out, "--steps", "2")
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")} == before


def start_default(out, *flags):
    command = [sys.executable, "train.py", "--save-every", "1", *flags, "--out", str(out)]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **silent)


@pytest.mark.slow
def test_two_hundred_kills_of_the_embedded_default(tmp_path):
    """SIGKILL at random moments; MINISOFT_KILLS says how many.  A run that comes to its end is
    compared with one that was left alone, and the next one begins."""
    kills, moments = int(os.environ.get("MINISOFT_KILLS", 200)), random.Random(0)
    out, finished = tmp_path / "run0", 0
    assert start_default(tmp_path / "whole").wait() == 0
    while kills > 0 or not (out / "summary.json").exists():
        process = start_default(out, *(["--resume"] if (out / "config.json").exists() else []))
        try:
            assert process.wait(moments.uniform(0, 30) if kills > 0 else None) == 0
            assert content(out) == content(tmp_path / "whole")
            if kills > 0:
                finished += 1
                out = tmp_path / f"run{finished}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills -= 1
            time.sleep(0.1)
    assert content(out) == content(tmp_path / "whole")
