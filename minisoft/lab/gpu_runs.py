"""Parts of `minisoft.lab.gpu` that start programs: a run that is killed and resumed, training of
the embedded model, updates by several ranks."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

import torch

from minisoft import engine
from minisoft.lab.gpu_engine import digest
from minisoft.lab.gpu_parts import TINY, TOKENS, Report, Subject
from minisoft.rollout import Decoding, Request
from minisoft.training.metrics import percent
from minisoft.training.optimizer import Optimizer, Schedule
from minisoft.training.world import World

PATIENCE = 1800  # seconds that a program may take
LEAST = 0.7  # hard-greedy accuracy after training
RESUMED = (
    "--prompts 4 --group 8 --cot 40 --eval-cot 60 --steps 4 --validation 8 --test 0 --save-every 1 "
    "--validate-every 2 --show-every 0 --lr 1e-3 --warmup 1"
).split()
TRAINED = ["--show-every", "0"]  # else train.py's defaults
UPDATES = 3  # by ranks
NEAR = 0.02  # how far weights by ranks may be from those by one, of the way they went
BEGUN: list[subprocess.Popen] = []  # all programs


def begin(words: list, log: Path, threads: int = 1) -> subprocess.Popen:
    """A Python program, started where train.py is; what it says goes into `log`."""
    import train  # the program beside the package

    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    place = {"cwd": Path(train.__file__).parent, "env": environment}
    with log.open("w") as said:
        out = {"stdout": said, "stderr": subprocess.STDOUT}
        process = subprocess.Popen([sys.executable, *map(str, words)], **place, **out)
    BEGUN.append(process)
    return process


def finish(process: subprocess.Popen, log: Path, expected: int = 0) -> None:
    """Wait for its end.  Raises RuntimeError where that is another one, or does not come."""
    try:
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        status = f"none after {PATIENCE} s"
    finally:
        end(process)
    if status != expected:
        last = (log.read_text().strip().splitlines() or [""])[-1]
        raise RuntimeError(f"{' '.join(process.args[1:3])}: exit status {status}: {last[-300:]}")


def end(process: subprocess.Popen) -> None:
    """If it still runs, ask it to stop (torchrun stops its ranks then), then kill it."""
    try:
        process.terminate()
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_all() -> None:
    """Leave no program behind."""
    for process in BEGUN:
        if process.poll() is None:
            process.terminate()
    for process in BEGUN:
        end(process)


# -------------------------------------------------------------------------------- resume


def resume(report: Report) -> None:
    """A run that was killed after its first save and resumed, against one that was left alone."""
    with TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        flags = ["train.py", *RESUMED, "--device", report.device]
        flags += ["--dtype", "bfloat16" if report.on_gpu else "float32"]
        logs = [out.with_suffix(".log") for out in (whole, killed)]
        runs = [begin([*flags, "--out", out], log) for out, log in zip((whole, killed), logs)]
        try:
            kill_after_save(runs[1], killed / "state")
            finish(runs[1], logs[1], -signal.SIGKILL)
            finish(runs[0], logs[0])
        finally:
            for run in runs:
                end(run)
        again = begin(["train.py", "--out", killed, "--resume"], logs[1])
        finish(again, logs[1])
        same = digest(whole) == digest(killed)
        lines = [measured(out) for out in (whole, killed)]
    found = f"{'equal' if same else 'other'} weights, "
    found += f"{'equal' if lines[0] == lines[1] else 'other'} metrics"
    ok = same and lines[0] == lines[1] and len(lines[0]) == 4
    report.check("killed by SIGKILL, resumed", "equal weights, equal metrics", found, ok)


def kill_after_save(process: subprocess.Popen, state: Path) -> None:
    """SIGKILL as soon as there is a saved state."""
    late = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < late:
        if any(path.suffix != ".new" for path in state.glob("step-*")):
            process.kill()
            return
        time.sleep(0.01)


def measured(out: Path, but: tuple = ("seconds", "memory")) -> list[dict]:
    """The lines of metrics.jsonl, without what begins with one of `but`."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: x for key, x in line.items() if not key.startswith(but)} for line in lines]


# --------------------------------------------------------------------------------- train


def train(report: Report) -> None:
    """The embedded model by train.py's defaults: every seed, kind of token and dtype."""
    args = report.args
    wanted = list(product(args.train_tokens, args.train_dtypes or [None], args.seeds))
    jobs = min(args.jobs, len(wanted))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        one = partial(train_once, Path(folder), report.device, threads)
        runs = list(pool.map(one, wanted))
    report.numbers["runs"] = runs
    groups = {}
    for run in runs:
        groups.setdefault((run["tokens"], run["dtype"]), []).append(run)
    for (tokens, dtype), of_seeds in groups.items():
        before, after = (fmean(run[x]["hard-greedy"] for run in of_seeds) for x in WHEN)
        what = f"{tokens}, {dtype}: hard-greedy, {len(of_seeds)} seeds"
        found = f"{percent(before)} -> {percent(after)}"
        report.check(what, f">= {percent(LEAST)} after", found, after >= LEAST)
    report.tables += [("training of the embedded model", training_table(runs))]
    report.tables += [("validation: by the own kind, hard-greedy, %", curves(runs))]


WHEN = ("before", "after")
CLOCKS = ("seconds", "seconds_rollout", "seconds_reward", "seconds_backward", "seconds_optimizer")


def train_once(folder: Path, device: torch.device, threads: int, wanted: tuple) -> dict:
    """Train with (tokens, dtype or None, seed); what came of it."""
    tokens, dtype, seed = wanted
    kind, noise, top_k = TOKENS[tokens]
    out = folder / f"{tokens}-{dtype}-{seed}"
    flags = ["train.py", *TRAINED, "--device", device, "--seed", seed, "--tokens", kind]
    flags += ["--noise", noise] if noise else []
    flags += ["--top-k", top_k] if top_k else []
    flags += ["--dtype", dtype] if dtype else []
    log = out.with_suffix(".log")
    finish(begin([*flags, "--out", out], log, threads), log)
    summary, config = (json.loads((out / f"{x}.json").read_text()) for x in ("summary", "config"))
    lines = measured(out, ("verifier",))
    names = ("step", "validation", "validation_hard")
    return {
        "tokens": tokens,
        "dtype": config["dtype"],
        "seed": seed,
        **{x: {setting: of["pass@1"] for setting, of in summary[x].items()} for x in WHEN},
        "best_step": summary["best_step"],
        "curve": [[line[x] for x in names] for line in lines if names[1] in line],
        "mismatch": fmean(line["replay_mismatch"] for line in lines),
        **{x: median(line[x] for line in lines) for x in CLOCKS},
        "total": sum(line["seconds"] for line in lines),
    }


def training_table(runs: list[dict]) -> list[list[str]]:
    """A row for each run."""
    rows = ["tokens", "dtype", "seed", "hard-greedy", "own-greedy", "best step", "mismatch"]
    rows = [[*rows, "an update, s", "rollout", "reward", "backward", "optimizer", "all, s"]]
    for run in runs:
        cells = [run["tokens"], run["dtype"], str(run["seed"])]
        for setting in ("hard-greedy", f"{TOKENS[run['tokens']][0]}-greedy"):
            cells.append(" -> ".join(percent(run[x][setting]) for x in WHEN))
        cells += [str(run["best_step"]), f"{run['mismatch']:.1e}"]
        rows.append([*cells, *(f"{run[x]:.3f}" for x in CLOCKS), f"{run['total']:.0f}"])
    return rows


def curves(runs: list[dict]) -> list[list[str]]:
    """Validations: a row for each run, a column for each step."""
    steps = sorted({step for run in runs for step, *_ in run["curve"]})
    rows = [["tokens", "dtype", "seed", *map(str, steps)]]
    for run in runs:
        at = {step: f"{100 * own:.1f}, {100 * hard:.1f}" for step, own, hard in run["curve"]}
        cells = [run["tokens"], run["dtype"], str(run["seed"])]
        rows.append([*cells, *(at.get(step, "") for step in steps)])
    return rows


# --------------------------------------------------------------------------------- ranks


def ranks(report: Report) -> None:
    """Updates by several ranks: of this torchrun, of one that is started with all GPUs, or, where
    there are not two, of two ranks on CPUs."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        compare_ranks(report)
        return
    gpus = torch.cuda.device_count() if report.on_gpu else 0
    device, size = ("cuda", gpus) if gpus > 1 else ("cpu", 2)
    with TemporaryDirectory() as folder:
        found, log = Path(folder) / "ranks.json", Path(folder) / "log"
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size]
        words += ["-m", "minisoft.lab.gpu", "--part", "ranks", "--device", device, "--json", found]
        process = begin(words, log)
        try:
            finish(process, log)
        finally:
            if found.is_file():
                checks = json.loads(found.read_text())["ranks"]["checks"]
                report.checks += [tuple(check) for check in checks]


def compare_ranks(report: Report) -> None:
    """Updates by all ranks of this torchrun, masters whole and in pieces, and by one rank."""
    with World(report.device.type, patience=5) as world:
        alone = copy.copy(world)
        alone.rank, alone.size, alone.main = 0, 1, True
        before, expected = updated(alone, 2 * world.size, False)
        for sharded in (False, True):
            _, model = updated(world, 2 * world.size, sharded)
            world.check_identical(model.parameters())
            way = flat(expected) - flat(before)
            off = ((flat(model) - flat(expected)).norm() / way.norm()).item()
            off = max(world.gather_objects([off]))
            what = f"{world.size} ranks on {world.device.type}, "
            what += f"masters {'in pieces' if sharded else 'whole'}: {UPDATES} updates"
            wanted = f"equal on all ranks; from one rank's <= {NEAR} of the way"
            report.check(what, wanted, f"equal; {off:.1e}", off <= NEAR)


def flat(model) -> torch.Tensor:
    """All weights (n,), float32 on the CPU."""
    return torch.cat([p.detach().float().cpu().flatten() for p in model.parameters()])


def updated(world: World, B: int, sharded: bool) -> tuple:
    """(the embedded model, the same after a few updates with soft tokens), each rank with its
    part of B x 8 samples; advantages 1, -1, 1, ..."""
    subject = Subject(TINY, world.device, "float32", (B, 8))
    model, kind = subject.model, subject.kind("soft")
    before = copy.deepcopy(model)
    optimizer = Optimizer(model, Schedule(1e-3, 10, 0), world, sharded)
    for step in range(UPDATES):
        parts = world.share(B, subject.group)
        requests = [Request(subject.prompts[b], ("ranks", step, b), some) for b, some in parts]
        rollouts = engine.rollout(model, subject.form, kind, requests, Decoding(24))
        signs = [1.0 - 2.0 * (torch.tensor(some) % 2) for _, some in parts]
        scale = 1 / (B * subject.group)
        with optimizer.summing():
            engine.backward(model, kind, rollouts, signs, scale, micro_batch=8)
        optimizer.update(step, optimizer.collect())
    return before, model
