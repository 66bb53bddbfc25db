"""train.py from end to end: what it writes, resuming, two ranks, Ctrl-C, bad input."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from minisoft.errors import InputError
from minisoft.io import checkpoint
from minisoft.lab import figures, tables
from minisoft.training.optimizer import Optimizer
from minisoft.training.world import World

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--prompts", "2", "--group", "8", "--cot", "40", "--validation", "6", "--test", "4", "--validate-every", "2",
         "--show-every", "2", "--shares-every", "2", "--device", "cpu"]


def run(out, *flags):
    train.main([*SMALL, "--out", str(out), *flags])
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out, name="last"):
    return load_file(out / name / "model.safetensors")


def newest(out):
    return max((out / "state").iterdir())


def saved(out):
    """The tensors of the newest state, whole and flat."""
    pieces = [load_file(path) for path in sorted(newest(out).glob("piece-*"))]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def without_seconds(metrics):
    return [{k: v for k, v in m.items() if not k.startswith(("seconds", "memory"))} for m in metrics]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, run(out, "--steps", "4", "--lr", "1e-3", "--warmup", "1")


def test_a_run_writes_what_design_promises(finished):
    out, metrics = finished
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    needed = "reward accuracy cot_length answer_length grad_norm replay_mismatch entropy lr seconds share_E".split()
    for m in metrics:
        assert set(needed) <= set(m)
        assert m["replay_mismatch"] < 1e-4
        assert {k for k in m if not k.startswith("seconds_")} <= set(tables.METRICS)
        assert sum(v for k, v in m.items() if k.startswith("seconds_")) <= m["seconds"]
    assert {"share_cot", "share_answer"} <= set(metrics[0]) and "share_cot" not in metrics[1]
    assert "validation" in metrics[1] and "validation" in metrics[3]
    config = json.loads((out / "config.json").read_text())
    assert config["micro_batch"] == 16  # chosen: memory for 16 rows of the embedded model is everywhere
    assert config["sigma"] > 0 and config["group"] == 8 and config["tokens"] == "soft" and config["lr"] == 1e-3
    summary = json.loads((out / "summary.json").read_text())
    for when in ("before", "after"):
        assert set(summary[when]) == {"hard-greedy", "soft-greedy"}
        assert 0 <= summary[when]["hard-greedy"]["pass@1"] <= 1
    assert summary["steps"] == 4
    before = load_file(checkpoint.WEIGHTS / "tiny" / "model.safetensors")
    assert all(not torch.equal(p, before[name]) for name, p in weights(out).items())  # every tensor was trained
    assert not list(out.glob("*.new")) + list(out.glob("*.old"))


def test_exported_best_is_the_same_model_in_transformers(finished):
    import transformers
    out, _ = finished
    model, tokenizer = checkpoint.load(out / "best")
    reference = transformers.AutoModelForCausalLM.from_pretrained(out / "best", dtype=torch.float32)
    ids = tokenizer.encode("User: Mia has 12 apples. Mia finds 3 more. How many apples are there now? Assistant:")
    assert transformers.AutoTokenizer.from_pretrained(out / "best")(tokenizer.decode(ids)).input_ids == ids
    with torch.no_grad():
        ids = torch.tensor([ids])
        torch.testing.assert_close(model.logits(model(model.embed(ids))), reference(ids).logits, rtol=0, atol=1e-5)
    assert json.loads((out / "best/minisoft.json").read_text())["sigma"] == json.loads((out / "config.json").read_text())["sigma"]


def test_shares_and_micro_batches_do_not_change_the_gradient(tmp_path):
    """Compared in AdamW's mean of the (clipped) gradients; sums in another order."""
    found = []
    for flags in (["--shares-every", "1"], ["--shares-every", "0", "--micro-batch", "3"]):
        run(tmp_path / flags[1], "--steps", "1", "--lr", "1e-4", "--warmup", "1", *flags)
        state = saved(tmp_path / flags[1])
        found.append(torch.cat([state[name].flatten() for name in sorted(state) if name.startswith("exp_avg/")]))
    assert found[0].norm() > 0.01
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("asked, status", [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_interrupted_and_resumed_is_bit_identical(finished, tmp_path, monkeypatch, capsys, asked, status):
    out, whole = finished
    flags = ["--steps", "4", "--lr", "1e-3", "--warmup", "1"]
    step = train.train_step
    monkeypatch.setattr(train, "train_step", lambda run, score: (
        run.step == 2 and os.kill(os.getpid(), asked), step(run, score))[1])
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "run", *flags)
    assert stop.value.code == status
    assert f"--out {tmp_path / 'run'} --resume" in capsys.readouterr().out
    monkeypatch.undo()
    assert newest(tmp_path / "run").name == "step-000003"
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "reward"')  # what a crash may leave
    resumed = run(tmp_path / "run", "--resume")
    assert without_seconds(resumed) == without_seconds(whole)
    for name in ("last", "best"):
        for key, value in weights(out, name).items():
            assert torch.equal(weights(tmp_path / "run", name)[key], value)
    summaries = [json.loads((o / "summary.json").read_text()) for o in (out, tmp_path / "run")]
    assert summaries[0]["before"] == summaries[1]["before"] and summaries[0]["after"] == summaries[1]["after"]


def test_resume_refuses_other_flags_and_lists_them(finished):
    out, _ = finished
    with pytest.raises(SystemExit, match=r"group \(was 8, now 4\).*tokens \(was soft, now hard\)"):
        train.main(["--out", str(out), "--resume", "--tokens", "hard", "--group", "4"])


@pytest.mark.parametrize("ranks, prompts, group", [(2, 1, 10), pytest.param(4, 3, 4, marks=pytest.mark.slow)])
def test_ranks_give_the_update_of_one_process(tmp_path, ranks, prompts, group):
    """Shares cut through groups (two ranks in one problem; a rank with parts of two problems)."""
    flags = ["train.py", *SMALL, "--prompts", str(prompts), "--group", str(group), "--steps", "2", "--lr", "1e-4",
             "--warmup", "1", "--seed", "3"]
    one, many = tmp_path / "one", tmp_path / "many"
    train.main([*flags[1:], "--out", str(one)])
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *flags,
                    "--out", str(many)], cwd=ROOT, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    def all_of(out, what):
        state = saved(out)
        return torch.cat([state[name].flatten() for name in sorted(state) if name.startswith(what)])
    gradients = all_of(one, "exp_avg/")  # of both steps, each clipped to norm 1
    torch.testing.assert_close(all_of(many, "exp_avg/"), gradients, rtol=0, atol=1e-6)
    signal = gradients.abs() > 1e-5  # where there is only rounding noise, AdamW divides it by itself
    assert signal.sum() > 50_000
    assert (all_of(many, "weight/") - all_of(one, "weight/"))[signal].abs().max() < 1e-6
    for a, b in zip(*(map(json.loads, (o / "metrics.jsonl").read_text().splitlines()) for o in (one, many))):
        assert a["reward"] == b["reward"] and a["cot_length"] == b["cot_length"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert a.get("validation") == b.get("validation")


def test_every_sample_belongs_to_one_rank(monkeypatch):
    """The paper's B = 2, G = 32 on 1 to 64 ranks; a world that does not divide it is refused."""
    world = World.__new__(World)
    for size in (1, 2, 4, 8, 64):
        world.size, seen = size, []
        for world.rank in range(size):
            mine = world.share(2, 32)
            assert sum(len(samples) for _, samples in mine) == 64 // size
            seen += [(b, g) for b, samples in mine for g in samples]
        assert seen == [(b, g) for b in range(2) for g in range(32)]
    world.size, world.rank = 3, 0
    with pytest.raises(InputError, match="2 x 32 = 64 samples.*3 ranks"):
        world.share(2, 32)


@pytest.mark.parametrize("tokens, dtype", [("hard", "float32"), ("fuzzy", "float32"), ("soft", "bfloat16"), ("fuzzy", "bfloat16")])
def test_other_kinds_and_bfloat16(tmp_path, tokens, dtype):
    metrics = run(tmp_path / "run", "--steps", "2", "--tokens", tokens, "--dtype", dtype, "--warmup", "1", "--lr", "1e-4")
    assert all(m["grad_norm"] < float("inf") for m in metrics)
    if dtype == "float32":
        assert all(m["replay_mismatch"] < 1e-4 for m in metrics)
    stored = weights(tmp_path / "run")["model.embed_tokens.weight"].dtype
    assert stored == (torch.float32 if dtype == "float32" else torch.bfloat16)


@pytest.mark.parametrize("flags", [["--noise", "hidden"], ["--noise", "logits", "--top-k", "5"], ["--noise", "logits"]])
def test_other_places_of_the_noise(tmp_path, flags):
    out = tmp_path / "run"
    metrics = run(out, "--steps", "2", "--warmup", "1", "--lr", "1e-4", *flags)
    assert all(m["grad_norm"] < float("inf") and m["replay_mismatch"] < 1e-4 for m in metrics)
    assert any(m["grad_norm"] > 0 for m in metrics)
    about = json.loads((out / "best/minisoft.json").read_text())  # what evaluation needs to draw the same noise
    assert about["noise"] == flags[1] and about["sigma"] == json.loads((out / "config.json").read_text())["sigma"]
    assert about["top_k"] == (5 if "--top-k" in flags else None) and about["tau"] == (1.0 if "--top-k" in flags else 0.5)


def test_problems_are_dealt_so_that_ranks_get_alike_much(monkeypatch):
    world, problems = World("cpu"), [7, 1, 5, 3, 8, 2, 6, 4]
    assert world.balance(problems, lambda p: p) == [8, 7, 6, 5, 4, 3, 2, 1]
    world.size = 2
    assert world.balance(problems, lambda p: p) == [8, 5, 4, 1, 7, 6, 3, 2]  # 18 and 18
    world.size = 3
    assert world.balance(problems, lambda p: p) == problems


def test_learning_rate_warms_up_and_falls_to_zero():
    model = torch.nn.Linear(2, 2)
    optimizer = Optimizer(model, 1e-3, 100, 20, (.9, .95), 0., 1., World("cpu"))
    rates = [optimizer.learning_rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(5e-5) and rates[19] == pytest.approx(1e-3) and rates[20] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx(5e-4) and rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_clip_and_first_adamw_step():
    model = torch.nn.Linear(3, 1, bias=False)
    start = model.weight.detach().clone()
    optimizer = Optimizer(model, 1e-2, 10, 1, (.9, .95), 0., 1., World("cpu"))
    model(torch.tensor([[30., -40., 0.]])).sum().backward()
    assert optimizer.collect() == optimizer.grad_norm() == pytest.approx(50.)
    optimizer.step(0, 50.)
    assert optimizer.state()["exp_avg/weight"].tolist() == pytest.approx([.06, -.08, 0.])  # clipped to 1
    torch.testing.assert_close(model.weight.detach() - start, torch.tensor([[-1e-2, 1e-2, 0.]]), rtol=1e-3, atol=1e-8)


def test_bfloat16_updates_accumulate_in_float32_masters():
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    optimizer = Optimizer(model, 1e-4, 10**9, 1, (.9, .95), 0., 1., World("cpu"))
    for step in range(100):  # each is below half a bfloat16 step of 2^-8; together they are 0.01
        model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()  # the gradient is 1
        assert model.weight.grad is None and optimizer.collect() == 1.0
        optimizer.step(step, 1.0)
    assert optimizer.masters["weight"].item() == pytest.approx(0.99, abs=1e-4) and model.weight.item() < 1.0


@pytest.mark.parametrize("flags, message", [
    (["--model", "no/such/folder"], "no/such/folder: expected a model folder or a hub id owner/name"),
    (["--data", "missing.jsonl"], "missing.jsonl: expected a data file, found no such file"),
    (["--data", "nonsense"], "nonsense: expected a .jsonl or .json file"),
    (["--prompts", "0"], "--prompts: expected a positive number, found 0"),
    (["--prompts", "5000"], "prompts: expected at most the 2990 training problems, found 5000"),
    (["--group", "1"], "--group: expected at least 2"),
    (["--validation", "9000"], "validation: expected fewer than the 3000 problems"),
    (["--gamma", "0"], "expected tau > 0 and sigma > 0"),
    (["--top-k", "5"], "top-k: expected at least 1, and noise on the logits"),
    (["--top-k", "5000", "--noise", "logits"], "--top-k: expected at most the vocabulary's"),
    (["--resume"], "--resume: expected a run to go on with"),
    (["--betas", "2", "3"], "AdamW: expected betas"),
    (["--clip", "-1"], "--clip: expected a positive number"),
    (["--test", "-1"], "expected at least 0"),
    (["--prompt", "missing.txt"], "missing.txt: expected a prompt file"),
    (["--device", "gpu"], "device gpu: expected cpu or cuda"),
])
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, flags, message):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        train.main([*SMALL, "--out", str(out), *flags])
    assert message in stop.value.code and "\n" not in stop.value.code
    assert not out.exists()


def test_an_old_run_is_not_overwritten(finished):
    with pytest.raises(SystemExit, match="found a run; add --resume"):
        train.main([*SMALL, "--out", str(finished[0])])


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_is_the_manual(script):
    text = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "(default" in text and "section" in text


def test_import_is_light():
    code = "import sys, minisoft; assert 'torch' not in sys.modules; assert minisoft.datasets.load_problems"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_curves_are_drawn(finished, tmp_path):
    pytest.importorskip("matplotlib")
    figures.curves(finished[0], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
