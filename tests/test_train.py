"""train.py from end to end: what it writes, resuming, two ranks, Ctrl-C, bad input."""

import contextlib
import json
import os
import re
import shutil
import signal

import pytest
import runs
import torch
from runs import ROOT, assert_same_weights, config, metrics, run_on_gpus, saved, summary, weights
from safetensors.torch import load_file

import train
from minisoft.io import atomic, checkpoint
from minisoft.run.optimizer import Schedule
from minisoft.run.session import Run

SMALL = "--prompts 2 --group 8 --cot 24 --eval-cot 16 --validation 6 --test 4 --validate-every 2"
SMALL = f"{SMALL} --show-every 2 --device cpu".split()
FOUR = "--steps 4 --lr 1e-3 --warmup 1 --cot 40 --eval-cot 40".split()  # rewards differ
BRIEF = "--group 2 --cot 8 --validation 0 --test 0".split()  # whatever it learns


def run(out, *flags):
    train.main([*SMALL, "--out", str(out), *flags])
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, run(out, *FOUR)


def test_a_run_writes_what_design_promises(finished):
    out, lines = finished
    assert [m["step"] for m in lines] == [1, 2, 3, 4]
    needed = "reward accuracy cot_length answer_length grad_norm replay_mismatch entropy lr share_E"
    manual = (ROOT / "minisoft/run/README.md").read_text("utf-8")
    explained = set(re.findall(r"^- `(\w+)`: ", manual, re.MULTILINE))
    for m in lines:
        assert {*needed.split(), "seconds"} <= set(m)
        assert m["replay_mismatch"] < 1e-4
        assert {k for k in m if not k.startswith("seconds_")} <= explained
        assert sum(v for k, v in m.items() if k.startswith("seconds_")) <= m["seconds"]
        n, right, boxed = 16, m["accuracy"], m["boxed"]  # rewards are 100, 10 and 0
        squares = right * 100**2 + (boxed - right) * 10**2
        variance = (squares - m["reward"] ** 2) * n / (n - 1)
        assert m["reward_std"] == pytest.approx(variance**0.5, abs=1e-6)
    for m in lines[1::2]:
        assert {"validation", "validation_hard"} <= set(m)
    assert "validation" not in lines[0]
    flags = config(out)
    assert flags["micro_batch"] == 16  # chosen: there is always memory for so many rows
    assert flags["sigma"] > 0 and flags["lr"] == 1e-3
    assert flags["group"] == 8 and flags["tokens"] == "soft"
    for when in ("before", "after"):
        assert set(summary(out)[when]) == {"hard-greedy", "soft-greedy"}
        assert 0 <= summary(out)[when]["hard-greedy"]["pass@1"] <= 1
    assert summary(out)["steps"] == 4
    before = load_file(checkpoint.WEIGHTS / "tiny" / "model.safetensors")
    for name, p in weights(out).items():
        assert not torch.equal(p, before[name])  # every tensor was trained
    assert not [path for path in out.iterdir() if path.name.endswith((atomic.NEW, atomic.OLD))]


def test_exported_best_is_the_same_model_in_transformers(finished):
    import transformers

    out, _ = finished
    model, tokenizer = checkpoint.load(out / "best")
    reference = transformers.AutoModelForCausalLM.from_pretrained(out / "best", dtype=torch.float32)
    text = "User: Mia has 12 apples. Mia finds 3 more. How many apples are there now? Assistant:"
    ids = tokenizer.encode(text)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(out / "best")
    assert their_tokenizer(tokenizer.decode(ids)).input_ids == ids
    with torch.no_grad():
        ids = torch.tensor([ids])
        logits = model.logits(model(model.embed(ids)))
        torch.testing.assert_close(logits, reference(ids).logits, rtol=0, atol=1e-5)
    sidecar = json.loads((out / "best/minisoft.json").read_text())
    assert sidecar["sigma"] == config(out)["sigma"]


def in_step(monkeypatch, number, act):
    """Call act() at the beginning of update number `number`, from 0."""
    parts = Run.parts

    def acting(self, step):
        if step == number:
            act()
        return parts(self, step)

    monkeypatch.setattr(Run, "parts", acting)


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_and_resumed_is_bit_identical(finished, tmp_path, monkeypatch, capsys, asked):
    (reference, _), out = finished, tmp_path / "run"
    in_step(monkeypatch, 2, lambda: os.kill(os.getpid(), asked))
    with pytest.raises(SystemExit) as stop:
        run(out, *FOUR)
    assert stop.value.code == (130 if asked == signal.SIGINT else 0)
    assert f"--out {out} --resume" in capsys.readouterr().out
    monkeypatch.undo()
    assert runs.newest(out).name == "step-000003"
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "reward"')  # what a crash may leave
    run(out, *FOUR, "--resume")
    assert metrics(out) == metrics(reference)
    for name in ("last", "best"):
        assert_same_weights(out, reference, name)
    assert summary(out) == summary(reference)


def test_a_second_ctrl_c_stops_at_once_and_gives_the_signals_back(tmp_path, monkeypatch):
    """Before the first save, so that the resumed run begins again."""
    out, numbers = tmp_path / "run", (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]

    def twice():
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    in_step(monkeypatch, 1, twice)
    with pytest.raises(SystemExit, match="train.py: interrupted"):
        run(out, "--steps", "2", *BRIEF)
    monkeypatch.undo()
    assert [signal.getsignal(number) for number in numbers] == handlers
    first = metrics(out)
    assert [line["step"] for line in first] == [1] and not (out / "state").exists()
    train.main(["--out", str(out), "--resume"])
    assert [line["step"] for line in metrics(out)] == [1, 2] and metrics(out)[0] == first[0]


def test_under_nohup_a_closed_terminal_stops_nothing(tmp_path, monkeypatch):
    out, before = tmp_path / "run", signal.signal(signal.SIGHUP, signal.SIG_IGN)
    in_step(monkeypatch, 0, lambda: signal.raise_signal(signal.SIGHUP))
    try:
        run(out, "--steps", "2", *BRIEF)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(metrics(out)) == 2


@pytest.mark.parametrize("done, steps", [(4, 8), (2, 8), (2, 3)])
def test_another_number_of_steps_goes_on_by_its_cosine_and_says_so(
    tmp_path, monkeypatch, capsys, done, steps
):
    """After 4 of 4 and 2 of 4 updates; up for more, down for fewer."""
    out = tmp_path / "run"
    if done < 4:
        in_step(monkeypatch, done - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with contextlib.suppress(SystemExit):
        run(out, *FOUR, *BRIEF)
    monkeypatch.undo()
    assert len(metrics(out)) == done
    assert "learning rate" not in capsys.readouterr().out
    train.main(["--out", str(out), "--resume", "--steps", str(steps)])
    rates = [row["lr"] for row in metrics(out)]
    whole = Schedule(1e-3, steps, 1)
    assert rates[done:] == [whole.learning_rate(step) for step in range(done, steps)]
    said = f"--steps 4 -> {steps}: the learning rate is that of a cosine over {steps} updates from"
    told = [line for line in capsys.readouterr().out.splitlines() if "learning rate" in line]
    assert told == [f"{said} here on: {rates[done - 1]:.2e} before, {rates[done]:.2e} now"]
    train.main(["--out", str(out), "--resume"])
    assert "learning rate" not in capsys.readouterr().out


OTHERS = r"group \(was 8, now 4\).*tokens \(was soft, now hard\)"
REFUSED = [("--resume --tokens hard --group 4", OTHERS), ("", "found a run; add --resume")]
REFUSED += [("--resume --steps 3", "--steps: expected at least the 4 updates .* found 3")]


@pytest.mark.parametrize("flags, message", REFUSED)
def test_what_a_run_does_not_go_on_with_changes_nothing(finished, flags, message):
    out, _ = finished
    before = {path: path.read_bytes() for path in out.glob("*.json*")}
    with pytest.raises(SystemExit, match=message):
        train.main(["--out", str(out), *flags.split()])
    assert {path: path.read_bytes() for path in out.glob("*.json*")} == before


MANY = [(2, 1, 10), pytest.param(4, 3, 4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("ranks, prompts, group", MANY)
def test_ranks_give_the_update_of_one_process(tmp_path, ranks, prompts, group):
    """Shares cut through groups (two ranks in one problem; a rank with parts of two problems)."""
    flags = [*SMALL, "--prompts", str(prompts), "--group", str(group)]
    flags += "--steps 2 --lr 1e-4 --warmup 1 --seed 3 --validation 2 --test 0".split()
    one, many = tmp_path / "one", tmp_path / "many"
    train.main([*flags, "--out", str(one)])
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = runs.python("-m", *torchrun, "train.py", *flags, "--out", many)
    assert done.returncode == 0, done.stderr
    own = tmp_path / "own"  # with a GPU too many
    said = run_on_gpus(tmp_path, ranks + 1, *flags, "--out", own).splitlines()
    why = f"no more divide B x G = {prompts} x {group}"
    assert said[0] == f"{ranks} ranks, each with one of {ranks + 1} GPUs: {why}"
    assert_same_weights(own, many)
    assert metrics(own) == metrics(many)
    gradients = saved(one, "exp_avg")  # of both steps, each clipped to norm 1
    torch.testing.assert_close(saved(many, "exp_avg"), gradients, rtol=0, atol=1e-6)
    signal = gradients.abs() > 1e-5  # where there is only rounding, AdamW divides it by itself
    assert signal.sum() > 50_000
    assert (saved(many, "weight") - saved(one, "weight"))[signal].abs().max() < 1e-6
    for a, b in zip(metrics(one), metrics(many), strict=True):
        assert a["reward"] == b["reward"] and a["cot_length"] == b["cot_length"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert a.get("validation") == b.get("validation")


TWO = "--steps 2 --warmup 1 --lr 1e-4 --validation 2 --test 2 --eval-cot 8".split()
KINDS = "hard float32, fuzzy float32, soft bfloat16, fuzzy bfloat16".split(", ")


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_and_bfloat16(tmp_path, kind):
    tokens, dtype = kind.split()
    lines = run(tmp_path / "run", *TWO, "--tokens", tokens, "--dtype", dtype)
    assert all(m["grad_norm"] < float("inf") for m in lines)
    if dtype == "float32":
        assert all(m["replay_mismatch"] < 1e-4 for m in lines)
    stored = weights(tmp_path / "run")["model.embed_tokens.weight"].dtype
    assert stored == checkpoint.DTYPES[dtype]


@pytest.mark.parametrize("flags", ["hidden", "logits --top-k 5", "logits"])
def test_other_places_of_the_noise(tmp_path, flags):
    out = tmp_path / "run"
    lines = run(out, *TWO, "--noise", *flags.split())
    assert all(m["grad_norm"] < float("inf") and m["replay_mismatch"] < 1e-4 for m in lines)
    assert any(m["grad_norm"] > 0 for m in lines)
    sidecar = json.loads((out / "best/minisoft.json").read_text())  # evaluation draws it alike
    assert sidecar["noise"] == flags.split()[0] and sidecar["sigma"] == config(out)["sigma"]
    expected = (5, 1.0) if "--top-k" in flags else (None, 0.5)
    assert (sidecar["top_k"], sidecar["tau"]) == expected


BAD = """--model no/such/folder :: no/such/folder: expected a model folder or a hub id
--data missing.jsonl :: missing.jsonl: expected a data file, found no such file
--data nonsense :: nonsense: expected a .jsonl, .json, .jsonl.gz
--prompts 5000 :: prompts: expected at most the 2990 training problems, found 5000
--validation 9000 :: validation: expected fewer than the 3000 problems
--tau 0 ;; --tau inf ;; --tau 1e-39 :: tau:
--top-k 5 :: --top-k: expected noise on the logits, found 5
--top-k 5000 --noise logits :: --top-k: expected at most the vocabulary's
--resume :: --resume: expected a run to go on with
--template missing.txt :: missing.txt: expected a prompt file
--device gpu :: --device: expected cpu or cuda, found 'gpu'
--device mps :: --device: expected cpu or cuda, found 'mps'
--device xpu --plan 2 :: --device: expected cpu or cuda, found 'xpu'"""
BAD = [line.split(" :: ") for line in BAD.splitlines()]
BAD = [(flags, message) for many, message in BAD for flags in many.split(" ;; ")]
OUT_OF_RANGE = """--prompts 0;--group 1;--gamma 0;--cot 0;--eval-cot 0;--betas 0.9 1;--warmup -5
--max-grad-norm -1;--test -1;--weight-decay -1;--show-every -3;--lr nan;--patience inf;--plan 0
--top-k 0 --noise logits;--top-p 1.5 --tokens gumbel;--width 5000 --tokens gumbel"""
BAD += [(flags, f"{flags.split()[0]}: ") for flags in re.split("[;\n]", OUT_OF_RANGE)]


@pytest.mark.parametrize("flags, message", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, flags, message):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        train.main([*SMALL, "--out", str(out), *flags.split()])
    assert message in stop.value.code and "\n" not in stop.value.code
    assert not out.exists()


@pytest.mark.parametrize("flag", ["--prompt x.txt", "--prompt 4", "--clip 1", "--terms both"])
def test_flags_of_earlier_versions_are_refused_by_name(flag):
    """None is taken for another one that begins alike."""
    with pytest.raises(SystemExit, match=f"unrecognized arguments: {flag}"):
        train.main(flag.split())


def test_a_plan_needs_no_weights(tmp_path, capsys):
    """--plan reads config.json alone."""
    shutil.copy(checkpoint.WEIGHTS / "tiny/config.json", tmp_path / "config.json")
    (tmp_path / "minisoft.json").write_text('{"tokens": "fuzzy", "gamma": 0.5}')
    flags = "--plan 2 --prompts 2 --group 8 --cot 100 --device cpu --data tiny".split()
    train.main([*flags, "--model", str(tmp_path)])
    text = capsys.readouterr().out
    assert "761,344 parameters, float32, 2 ranks of cpu" in text
    assert "8 rows of 1 problems, prompts of 256 and rows of 148 tokens" in text
    assert "|" in text
