"""The paper in miniature: the embedded model trained with hard, soft, fuzzy and others' tokens, the
best checkpoints by greedy validation of the run's own kind; the five findings looked for.

    python -m minisoft.lab.study --out runs/study --list       # the commands, and about how long
    python -m minisoft.lab.study --out runs/study              # under three hours on two cores
    python -m minisoft.lab.study --out runs/study --parts all

A cell is one call of a program in a process of its own with one thread; --jobs of them run at once.
Cells that are done are not done again, and one that was interrupted goes on where it stopped, so
the same command continues the study.  Parts, each of which leaves tables of what is there:

    sweep      the learning rates again, instead of those of an older sweep; the only part that is
               not in `all`
    findings   hard, soft and fuzzy tokens (`minisoft.lab.trainings`): the runs of all seeds, all
               their evaluations, checkpoints on the way
    kinds      the same for the later kinds
    signal     where the gradient comes from and how soft the tokens are, first seed of each kind
    ablation   training on the CoT's terms only, on the answer's only
    variance   another shape of a batch, noise on all logits
    fuzzy      higher temperatures, logits rounded to bfloat16
    longer     three times the updates, hard and soft

Writes OUT/study.md (tables), pictures (extra `plot`), cells.jsonl (command, commit, seconds of
every cell) and logs/; `python -m minisoft.lab.findings OUT` writes the tables again.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from minisoft.errors import InputError
from minisoft.io import WEIGHTS, checkpoint, state
from minisoft.io.atomic import read_json
from minisoft.kinds import KINDS, PAPER
from minisoft.lab import command, findings
from minisoft.lab.findings import PROBLEMS, REMEDIES, SKILLS
from minisoft.lab.trainings import EARLIER, LADDER, LATER, TRAININGS
from minisoft.run.world import as_program

ROOT = Path(__file__).resolve().parents[2]
USUAL = ("findings", "kinds", "signal")
SWEEP_SEED = 100
CHECKPOINTS, STEPS = (15, 30, 45, 60), 60
WARMUP = "20"  # the paper's, as in the sweeps; the embedded model's own default is shorter
WHOLE = "--limit 200 --samples 32 --settings".split()  # of eval.py
BRIEF = "--data tiny-test --limit 200 --settings hard-greedy,hard-sample --samples 8".split()
MINUTES = {"train": 3.5, "test": 2.5, "checkpoints": 0.8, "gradient": 2.0}  # of one core, about


@dataclass(frozen=True)
class Extra:
    """Runs of a training that are other in switches of minisoft.lab.variants or flags of train.py;
    gradients: {name: update of the training's first run at which its gradient is measured so}."""

    kind: str
    switches: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    gradients: dict[str, int] = field(default_factory=dict)


EXTRAS = {  # part -> {run: Extra}
    "ablation": {
        f"{kind}-{terms}": Extra(kind, ("--terms", terms))
        for kind in ("soft", "hard")
        for terms in ("answer", "cot")
    },
    "variance": {
        x.name: Extra("soft", (), x.flags, {f"{x.name}-{step}": step for step in (0, 30)})
        for x in REMEDIES
        if x.name not in TRAININGS
    },
    "fuzzy": {
        "bfloat16": Extra("fuzzy", ("--logits", "bfloat16"), (), {"fuzzy-bfloat16": 0}),
        "tau-0.1": Extra("fuzzy", (), ("--tau", "0.1"), {"fuzzy-tau-0.1": 0}),
        "tau-0.01": Extra("fuzzy", (), ("--tau", "0.01"), {"fuzzy-tau-0.01": 0}),
    },
    "longer": {kind: Extra(kind, (), ("--steps", str(3 * STEPS))) for kind in ("soft", "hard")},
}
PARTS = ("sweep", *USUAL, *EXTRAS)


@dataclass(frozen=True)
class Cell:
    """One command; it is done when `result` exists.  One that trains can be resumed."""

    name: str
    command: tuple[str, ...]
    result: Path
    trains: bool = False
    minutes: float = 1.0  # of one core, a guess

    def __str__(self) -> str:
        return shlex.join(["OMP_NUM_THREADS=1", "python", *self.command])


class Study:
    """The cells of a study, in stages; with `dry` nothing is written."""

    def __init__(self, out: Path, seeds: int | None, dry: bool = False):
        self.out, self.number, self.dry = out, seeds, dry

    def seeds(self, name: str | None = None) -> range:
        """Of the runs of a training, of the other parts' runs three; --seeds has the last word."""
        return range(self.number or (TRAININGS[name].seeds if name else 3))

    def each(self, names) -> list[tuple[str, int]]:
        """(training, seed) of the main runs, the first seeds first."""
        seeds = range(max(len(self.seeds(name)) for name in names))
        return [(name, seed) for seed in seeds for name in names if seed in self.seeds(name)]

    def train(self, name: str, kind: str, lr: str, seed: int, *flags: str, switches=()) -> Cell:
        """By train.py, or with switches by minisoft.lab.variants; 60 updates if flags say nothing
        else."""
        program = ("-m", "minisoft.lab.variants", *switches, "--") if switches else ("train.py",)
        steps = () if "--steps" in flags else ("--steps", str(STEPS))
        own = (*TRAININGS[kind].flags, "--lr", lr, "--seed", str(seed), *steps, *flags)
        run = self.out / name
        words = (*program, *own, "--warmup", WARMUP, "--show-every", "0", "--out", str(run))
        minutes = MINUTES["train"] * int(words[words.index("--steps") + 1]) / STEPS
        return Cell(name, words, run / "summary.json", trains=True, minutes=minutes)

    def main(self, run: str, kind: str, seed: int, *flags: str, switches=()) -> Cell:
        """A run with the learning rate that the sweep has chosen."""
        return self.train(f"{run}-s{seed}", kind, self.best(kind), seed, *flags, switches=switches)

    def evaluate(self, name: str, models: list[str], *flags: str) -> Cell:
        result = self.out / f"{name}.json"
        words = ("eval.py", "--model", *models, *flags, "--batch", "512", "--out", str(result))
        return Cell(name, words, result, minutes=MINUTES["checkpoints" if models[1:] else "test"])

    def test(self, name: str, model: str, kinds) -> Cell:
        """In these kinds of inference, and on multiple choice."""
        settings = ",".join(f"{kind}-{how}" for kind in kinds for how in ("greedy", "sample"))
        return self.evaluate(name, [model], "--data", *PROBLEMS, *SKILLS, *WHOLE, settings)

    def test_best(self, part: str, run: str, seed: int, to: str = "test") -> Cell:
        """The best checkpoint of a run in the paper's settings and its own."""
        model = f"{run}={self.out / f'{part}/{run}-s{seed}/best'}"
        kinds = dict.fromkeys((*PAPER, TRAININGS[run].tokens))
        return self.test(f"{to}/{run}-s{seed}", model, kinds)

    def gradient(self, name: str, kind: str, step: int, *flags: str) -> Cell:
        """Of the first run of a training after `step` updates."""
        result, model = self.out / f"gradient/{name}.json", str(self.at_step(kind, 0, step))
        words = ("-m", "minisoft.lab.gradient", "--model", model, *TRAININGS[kind].flags, *flags)
        name, minutes = f"gradient/{name}", MINUTES["gradient"]
        return Cell(name, (*words, "--out", str(result)), result, minutes=minutes)

    def best(self, name: str) -> str:
        """The learning rate with the best last validations in the sweep, the smaller of equals."""
        reached = findings.swept(self.out).get(name) or dict.fromkeys(TRAININGS[name].rates, 0.0)
        return max(reached, key=reached.get)  # the first of equals

    def at_step(self, kind: str, seed: int, step: int) -> Path:
        """The model of a main run after `step` updates, as a folder; made from the run's saved
        state."""
        if step == 0:
            return WEIGHTS / "tiny"
        run = self.out / f"train/{kind}-s{seed}"
        folder = self.out / f"checkpoints/{kind}-s{seed}-{step}"
        place = run / f"state/step-{step:06d}"
        fresh = _written(folder / "model.safetensors") > _written(place / "facts.json")
        if not (self.dry or fresh):
            saved = state.State(place)
            model = checkpoint.load_model(run / "last", torch.device("cpu"), torch.float32)
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(saved.read(f"weight/{name}", 0, p.numel()).view_as(p))
            folder.parent.mkdir(parents=True, exist_ok=True)
            about = checkpoint.read_about(run / "last")
            checkpoint.save_model(folder, model, checkpoint.read_files(run / "last"), about)
        return folder

    def sweep(self, names, again: bool = False) -> Iterator[list[Cell]]:
        """The learning rates of trainings, then those beside the best where that lies at the edge
        of what was tried.  A sweep of an older study is not done again unless this one has begun
        to."""
        older = read_json(EARLIER)
        own = [n for n in names if again or n not in older or findings.rates(self.out, n)]
        todo = [(name, lr) for lr in LADDER for name in own if lr in TRAININGS[name].rates]
        tried = set()
        while todo:
            tried.update(todo)
            yield [self.train(f"sweep/{name}-{lr}", name, lr, SWEEP_SEED) for name, lr in todo]
            at = {name: LADDER.index(self.best(name)) for name in own}
            beside = [(n, lr) for n in own for lr in LADDER[max(0, at[n] - 1) : at[n] + 2]]
            todo = [pair for pair in beside if pair not in tried]

    def trained(self, names, seeds: int | None = None) -> Iterator[list[Cell]]:
        """Learning rates, then the runs of trainings; only the first seeds."""
        yield from self.sweep(names)
        keep = ("--save-every", "15", "--keep", str(STEPS))
        yield [self.main(f"train/{x}", x, seed, *keep) for x, seed in self.each(names)[:seeds]]

    def stages(self, parts) -> Iterator[list[Cell]]:
        """Lists of cells; those of a stage may run side by side, and need what the stages before
        have left."""
        for name in [name for name in PARTS if name in parts]:
            yield from self.part(name)

    def part(self, name: str) -> Iterator[list[Cell]]:
        """The stages of one part, those of others that it needs included."""
        if name == "sweep":
            yield from self.sweep(TRAININGS, again=True)
        elif name == "signal":
            yield from self.trained(TRAININGS, len(TRAININGS))
            steps = {x: (0, 30, 60) if x in PAPER else (0, 60) for x in TRAININGS}
            yield [self.gradient(f"{x}-{step}", x, step) for x in TRAININGS for step in steps[x]]
        elif name in EXTRAS:
            yield from self.extras(name)
        else:
            names = PAPER if name == "findings" else LATER
            yield from self.trained(names)
            yield self.tests(names)

    def tests(self, names) -> list[Cell]:
        """The base and the best checkpoints; checkpoints on the way, in hard inference."""
        cells = [self.test("test/base", f"base={WEIGHTS / 'tiny'}", KINDS)]
        cells += [self.test_best("train", *run) for run in self.each(names)]
        for kind, seed in self.each(names):
            models = [f"{step}={self.at_step(kind, seed, step)}" for step in CHECKPOINTS]
            cells.append(self.evaluate(f"checkpoints/{kind}-s{seed}", models, *BRIEF))
        return cells

    def extras(self, part: str) -> Iterator[list[Cell]]:
        """The gradients and runs of EXTRAS, and the tests of longer ones."""
        extras = EXTRAS[part]
        if part == "variance":
            yield from self.trained(("soft",), 1)
        batches = ("--batches", "16") if part == "variance" else ()
        cells = [
            self.gradient(name, x.kind, step, *x.switches, *x.flags, *batches)
            for x in extras.values()
            for name, step in x.gradients.items()
        ]
        runs = [(name, x, seed) for name, x in extras.items() for seed in self.seeds()]
        for name, x, seed in runs:
            run = f"{part}/{name}"
            cells.append(self.main(run, x.kind, seed, *x.flags, switches=x.switches))
        yield cells
        if part == "longer":
            yield [self.test_best(part, name, seed, "longer-test") for name, _, seed in runs]


class Runner:
    """Does cells, `jobs` at a time, and writes down what was done."""

    def __init__(self, out: Path, jobs: int):
        self.out, self.jobs = out, jobs
        self.working: list[subprocess.Popen] = []
        self.failures: list[str] = []
        self.stopped = False

    def run(self, cells: list[Cell]) -> int:
        """Do what is not done yet; returns how many.  Raises InputError for a cell that failed,
        KeyboardInterrupt where `stop` was called, both after those at work have ended."""
        todo = [cell for cell in cells if not self.is_done(cell)]
        with ThreadPoolExecutor(self.jobs) as pool:
            for _ in tqdm(pool.map(self.do, todo), total=len(todo), unit="cell", disable=None):
                pass
        if self.stopped:
            raise KeyboardInterrupt
        if self.failures:
            raise InputError(self.failures[0])
        return len(todo)

    def stop(self, number: int, _) -> None:
        """For SIGINT and SIGTERM: no more cells; those at work save and end."""
        self.stopped = True
        for process in list(self.working) if number == signal.SIGTERM else ():  # Ctrl-C reaches all
            process.terminate()

    def is_done(self, cell: Cell) -> bool:
        """Is its result there, and no older than the models of this study that it measures?
        Raises InputError where it is that of another command."""
        if not cell.result.is_file():
            return False
        for line in reversed(findings.read_cells(self.out)):
            if line["cell"] == cell.name and line.get("done", True):
                if _words(line["command"]) != _words(str(cell)):
                    what = f"expected the result of {cell}, found that of {line['command']}"
                    raise InputError(f"{cell.result}: {what}; move it away")
                break
        paths = [Path(word.partition("=")[2] or word) for word in cell.command]
        models = [path / "model.safetensors" for path in paths if self.out in path.parents]
        return all(_written(model) <= _written(cell.result) for model in models)

    def do(self, cell: Cell) -> None:
        """One cell, in a process of its own, unless something has gone wrong before."""
        if self.stopped or self.failures:
            return
        log = self.out / f"logs/{cell.name}.log"
        begun = cell.trains and (cell.result.parent / "config.json").is_file()
        words = [sys.executable, *cell.command, *(["--resume"] if begun else [])]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        line, start = {"cell": cell.name, "command": str(cell)}, time.time()
        try:
            cell.result.parent.mkdir(parents=True, exist_ok=True)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as to:
                process = subprocess.Popen(words, stdout=to, stderr=to, cwd=ROOT, env=env)
            self.working.append(process)
            if self.stopped:  # meanwhile
                process.terminate()
            line["commit"], status = _commit(), process.wait()
            self.working.remove(process)
            line["done"] = status == 0 and cell.result.is_file()
            line["seconds"] = round(time.time() - start, 1)
            with (self.out / "cells.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            if not line["done"]:
                what = f"expected {cell.result}, found exit status {status}"
                self.failures.append(f"{cell.name}: {what}; see {log}")
        except OSError as error:  # such as a full disk
            self.failures.append(str(error))


def _words(line: str) -> list[str]:
    """Those of a command, wherever study and repository lie."""
    return [Path(word).name for word in shlex.split(line)]


def _commit() -> str:
    """The commit of this checkout, with + where code differs from it; "" outside git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "train.py", "eval.py", "minisoft", "weights")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except FileNotFoundError:
        return ""


def _written(path: Path) -> float:
    """When a file was written, -1 if there is none."""
    return path.stat().st_mtime if path.is_file() else -1.0


def plan(study: Study, parts: list[str], jobs: int) -> str:
    """How many cells and core minutes each part takes, a line each.  How far learning rates will be
    searched is not known: the first ones are counted, and one step beyond."""
    lines, counted, total = [], set(), 0.0
    for part in [part for part in PARTS if part in parts]:
        cells = {cell.name: cell for stage in study.part(part) for cell in stage}
        new = [cell for name, cell in cells.items() if name not in counted]
        counted |= set(cells)
        runs, minutes = sum(cell.trains for cell in new), sum(cell.minutes for cell in new)
        left = sum(cell.minutes for cell in new if not cell.result.is_file())
        what = f"{runs} runs, {len(new) - runs} measurements, about {minutes:.0f} core minutes"
        lines.append(f"# {part}: {what}, {left:.0f} left")
        total += left
    return "\n".join([*lines, f"# in all {total / 60 / jobs:.1f} hours left"])


def show(study: Study, parts: list[str]) -> None:
    """Print the commands that are known so far."""
    printed = set()
    for cells in study.stages(parts):
        for cell in [cell for cell in cells if cell.name not in printed]:
            print(cell)
            printed.add(cell.name)
        if not all(cell.result.is_file() for cell in cells):
            print("# the commands that follow depend on the results of these")
            return


def read_flags(argv=None) -> argparse.Namespace:
    parser = command.parser("study", __doc__)
    usual = ",".join(USUAL)
    of_parts = f"all, which is all but sweep, or some of {','.join(PARTS)}"
    of_seeds = "runs of each kind, seeds 0, 1, ... (default five or three)"
    flags = {
        "--out": (None, "folder of the study", {**command.PATH, "required": True}),
        "--parts": (usual, of_parts),
        "--seeds": (None, of_seeds, command.WHOLE),
        "--jobs": (2, "cells at once, one thread each", command.WHOLE),
        "--list": (None, "print the commands known so far, run nothing", {"action": "store_true"}),
    }
    command.add_flags(parser, flags)
    args = parser.parse_args(argv)
    args.parts = list(PARTS[1:]) if args.parts == "all" else args.parts.split(",")
    if unknown := set(args.parts) - set(PARTS):
        names = f"{', '.join(PARTS)}, found {', '.join(sorted(unknown))}"
        parser.error(f"--parts: expected all or some of {names}")
    command.expect_least(parser, args, seeds=1, jobs=1)
    args.out = args.out.resolve()
    return args


def main(argv=None) -> None:
    args = read_flags(argv)
    again = f"python -m minisoft.lab.findings {shlex.quote(str(args.out))} shows what is there"
    with command.one_line("study", f"; {again}", resumes=True):
        planned = plan(Study(args.out, args.seeds, dry=True), args.parts, args.jobs)
        if args.list:
            show(Study(args.out, args.seeds, dry=True), args.parts)
            return print(planned)
        print(planned, file=sys.stderr)
        args.out.mkdir(parents=True, exist_ok=True)
        runner = Runner(args.out, args.jobs)
        with state.lock(args.out / "lock"):  # to the end
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, runner.stop)
            for cells in Study(args.out, args.seeds).stages(args.parts):
                runner.run(cells)
                text = findings.write(args.out)
        print(text)


if __name__ == "__main__":
    as_program(main)
