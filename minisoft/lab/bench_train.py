"""Seconds of an update of `train.py` as a user runs it: `minisoft.lab.bench --part train`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from minisoft.errors import InputError
from minisoft.io import WEIGHTS
from minisoft.lab.busy import busy, instructions, told
from minisoft.training.metrics import markdown

TRAIN = WEIGHTS.parent / "train.py"
STEPS = 5


def measure(args) -> dict:
    """Everything that --json writes; rounds, and in them kinds of token, idle and loaded in turn.

    The same seed makes the same updates each time.
    """
    loads = [0, args.load] if args.load else [0]
    times = {load: {name: {"step": []} for name in args.tokens} for load in loads}
    for _ in range(args.repeats):
        for name in args.tokens:
            for load in loads:
                with busy(load):
                    times[load][name]["step"] += updates(args, name)
    found = {name: getattr(args, name) for name in ("model", "dtype", "device", "load", "repeats")}
    found |= {"part": "train", "cpu": instructions(), "seconds": times[0]}
    found["kinds"] = {name: {"step": median(times[0][name]["step"])} for name in args.tokens}
    if args.load:
        loaded = times[args.load]
        kinds = {name: {"step": median(loaded[name]["step"])} for name in args.tokens}
        found["loaded"] = {"seconds": loaded, "kinds": kinds}
        found["loaded_over_idle"] = {}
        for name in args.tokens:
            pairs = zip(loaded[name]["step"], times[0][name]["step"], strict=True)
            found["loaded_over_idle"][name] = {"step": median(a / b for a, b in pairs)}
    return found


def updates(args, name: str) -> list[float]:
    """Seconds of the updates of one short run; the first one, which warms up, is left out."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        same = {"--model": args.model, "--dtype": args.dtype, "--device": args.device}
        short = {"--tokens": name, "--steps": STEPS, "--validation": 0, "--test": 0, "--out": out}
        flags = [str(x) for pair in (same | short).items() for x in pair]
        command = [sys.executable, str(TRAIN), *flags]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        done = subprocess.run(command, **quiet, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
            raise InputError(f"{TRAIN.name}: expected {STEPS} updates, found: {reason}")
        lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["seconds"] for line in lines][1:]


def describe(found: dict) -> str:
    """The results as a table."""
    rows = [["tokens", "idle: update, s"]]
    if found["load"]:
        rows[0] += [f"beside {found['load']}: update, s", "times idle"]
    for name, of_kind in found["kinds"].items():
        rows.append([name, f"{of_kind['step']:.2f}"])
        if found["load"]:
            rows[-1].append(f"{found['loaded']['kinds'][name]['step']:.2f}")
            rows[-1].append(f"{found['loaded_over_idle'][name]['step']:.2f}")
    head = "train.py --model {model} --dtype {dtype} --device {device}".format(**found)
    counted = f"medians of {STEPS - 1} updates in each of {found['repeats']} runs"
    return "\n".join([f"{head}: {counted}", told(found["cpu"]), markdown(rows)])
