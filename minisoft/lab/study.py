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
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
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
from minisoft.training.world import as_program

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("sweep", "findings", "kinds", "signal", "ablation", "variance", "fuzzy", "longer")
USUAL = PARTS[1:4]
SWEEP_SEED = 100
CHECKPOINTS, STEPS = (15, 30, 45, 60), 60
WARMUP = "20"  # the paper's, as in the sweeps; the embedded model's own default is shorter
WHOLE = ("--limit", "200", "--samples", "32")  # of eval.py
BRIEF = ("--limit", "200", "--settings", "hard-greedy,hard-sample", "--samples", "8")
MINUTES = {"train": 3.5, "test": 2.5, "checkpoints": 0.8, "gradient": 2.0}  # of one core, about
FUZZY = {  # name -> (switches of minisoft.lab.variants, flags of train.py)
    "bfloat16": (("--logits", "bfloat16"), ()),
    "tau-0.1": ((), ("--tau", "0.1")),
    "tau-0.01": ((), ("--tau", "0.01")),
}


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


@dataclass(frozen=True)
class Work:
    """A cell at work, since time.time() `begun`."""

    cell: Cell
    process: subprocess.Popen
    begun: float
    commit: str


class Study:
    """The cells of a study, in stages, and those at work; with `dry` nothing is written."""

    def __init__(self, out: Path, seeds: int | None, jobs: int, dry: bool = False):
        self.out, self.number, self.jobs, self.dry = out, seeds, jobs, dry
        self.working: list[Work] = []
        self.failure: str | None = None  # what went wrong first
        self.stopped = 0  # the signal that came

    def seeds(self, name: str | None = None) -> range:
        """Of the runs of a training, of the other parts' runs three; --seeds has the last word."""
        return range(self.number or (TRAININGS[name].seeds if name else 3))

    def train(self, name: str, kind: str, lr: str, seed: int, *flags: str, switches=()) -> Cell:
        """By train.py, or with switches by minisoft.lab.variants; 60 updates if flags say nothing
        else."""
        program = ("-m", "minisoft.lab.variants", *switches, "--") if switches else ("train.py",)
        steps = () if "--steps" in flags else ("--steps", str(STEPS))
        own = (*TRAININGS[kind].flags, "--lr", lr, "--seed", str(seed), *steps, *flags)
        own = (*own, "--warmup", WARMUP)
        run = self.out / name
        updates = int(own[own.index("--steps") + 1])
        command = (*program, *own, "--show-every", "0", "--out", str(run))
        minutes = MINUTES["train"] * updates / STEPS
        return Cell(name, command, run / "summary.json", trains=True, minutes=minutes)

    def evaluate(self, name: str, models: list[str], *flags: str) -> Cell:
        result = self.out / f"{name}.json"
        rest = (*flags, "--batch", "512", "--out", str(result))
        minutes = MINUTES["checkpoints" if len(models) > 1 else "test"]
        return Cell(name, ("eval.py", "--model", *models, *rest), result, minutes=minutes)

    def gradient(self, name: str, model: Path, kind: str, *flags: str) -> Cell:
        result = self.out / f"gradient/{name}.json"
        what = ("--model", str(model), *TRAININGS[kind].flags, *flags, "--out", str(result))
        program, minutes = ("-m", "minisoft.lab.gradient"), MINUTES["gradient"]
        return Cell(f"gradient/{name}", (*program, *what), result, minutes=minutes)

    def best(self, name: str) -> str:
        """The learning rate with the best last validations in the sweep, the smaller of equals."""
        reached = findings.swept(self.out).get(name) or dict.fromkeys(TRAININGS[name].rates, 0.0)
        return max(reached, key=reached.get)  # the first of equals

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
        each = self.each(names)[:seeds] if seeds else self.each(names)
        yield [self.main(f"train/{name}", name, seed, *keep) for name, seed in each]

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

    def stages(self, parts) -> Iterator[list[Cell]]:
        """Lists of cells; those of a stage may run side by side, and need what the stages before
        have left."""
        for part in [part for part in PARTS if part in parts]:
            yield from self.part(part)

    def part(self, name: str) -> Iterator[list[Cell]]:
        """The stages of one part, those of others that it needs included."""
        if name in ("findings", "kinds"):
            names = PAPER if name == "findings" else LATER
            yield from self.trained(names)
            yield self.tests(self.each(names))
        elif name == "sweep":
            yield from self.sweep(TRAININGS, again=True)
        elif name == "ablation":
            each = product(("soft", "hard"), ("answer", "cot"), self.seeds())
            yield [
                self.main(f"ablation/{kind}-{terms}", kind, seed, switches=("--terms", terms))
                for kind, terms, seed in each
            ]
        elif name == "longer":
            some, steps = list(product(("soft", "hard"), self.seeds())), ("--steps", str(3 * STEPS))
            yield [self.main(f"longer/{kind}", kind, seed, *steps) for kind, seed in some]
            yield [self.whole("longer", kind, seed, "longer-test") for kind, seed in some]
        elif name == "fuzzy":
            yield self.fuzzy()
        else:
            first = TRAININGS if name == "signal" else ("soft",)
            yield from self.trained(first, len(first))
            yield self.signals() if name == "signal" else self.variance()

    def each(self, names) -> list[tuple[str, int]]:
        """(training, seed) of the main runs, the first seeds first."""
        seeds = range(max(len(self.seeds(name)) for name in names))
        return [(name, seed) for seed in seeds for name in names if seed in self.seeds(name)]

    def main(self, run: str, kind: str, seed: int, *flags: str, switches=()) -> Cell:
        """A run with the learning rate that the sweep has chosen."""
        name, lr = f"{run}-s{seed}", self.best(kind)
        return self.train(name, kind, lr, seed, *flags, switches=switches)

    def whole(self, part: str, run: str, seed: int, to: str = "test") -> Cell:
        """The best checkpoint of a run in the paper's settings and its own, and on multiple
        choice."""
        model = f"{run}={self.out / f'{part}/{run}-s{seed}/best'}"
        kinds = dict.fromkeys((*PAPER, TRAININGS[run].tokens))
        return self.tested(f"{to}/{run}-s{seed}", model, kinds)

    def tested(self, name: str, model: str, inferences) -> Cell:
        settings = ",".join(f"{kind}-{how}" for kind in inferences for how in ("greedy", "sample"))
        flags = ("--data", *PROBLEMS, *SKILLS, *WHOLE, "--settings", settings)
        return self.evaluate(name, [model], *flags)

    def tests(self, each: list[tuple[str, int]]) -> list[Cell]:
        """The base and the best checkpoints; checkpoints on the way, in hard inference."""
        cells = [self.tested("test/base", f"base={WEIGHTS / 'tiny'}", KINDS)]
        cells += [self.whole("train", kind, seed) for kind, seed in each]
        for kind, seed in each:
            models = [f"{step}={self.at_step(kind, seed, step)}" for step in CHECKPOINTS]
            name = f"checkpoints/{kind}-s{seed}"
            cells.append(self.evaluate(name, models, "--data", "tiny-test", *BRIEF))
        return cells

    def signals(self) -> list[Cell]:
        """Where the gradient comes from before, halfway (of the paper's kinds) and at the end of
        the first run of each training."""
        steps = {
            kind: (0, STEPS // 2, STEPS) if kind in PAPER else (0, STEPS) for kind in TRAININGS
        }
        return [
            self.gradient(f"{kind}-{step}", self.at_step(kind, 0, step), kind)
            for kind in TRAININGS
            for step in steps[kind]
        ]

    def variance(self) -> list[Cell]:
        """Remedies for the variance of soft tokens: signal, and what they learn."""
        cells, new = [], [remedy for remedy in REMEDIES if remedy.name not in TRAININGS]
        for step, r in product((0, 30), new):
            folder, batches = self.at_step("soft", 0, step), ("--batches", "16")
            cells.append(self.gradient(f"{r.name}-{step}", folder, "soft", *r.flags, *batches))
        for r, seed in product(new, self.seeds()):
            cells.append(self.main(f"variance/{r.name}", "soft", seed, *r.flags))
        return cells

    def fuzzy(self) -> list[Cell]:
        """What lets fuzzy tokens learn: signal before training, and what they learn."""
        cells = []
        for name, (switches, flags) in FUZZY.items():
            base = self.at_step("fuzzy", 0, 0)
            cells.append(self.gradient(f"fuzzy-{name}", base, "fuzzy", *switches, *flags))
        for (name, (switches, flags)), seed in product(FUZZY.items(), self.seeds()):
            run = f"fuzzy/{name}"
            cells.append(self.main(run, "fuzzy", seed, *flags, switches=switches))
        return cells

    def run(self, cells: list[Cell], bar) -> None:
        """Do what is not done yet, `jobs` cells at a time.  Raises InputError for a cell that
        failed, KeyboardInterrupt where `stop` was called, both after those at work have ended."""
        waiting = deque(cell for cell in cells if not self.is_done(cell))
        bar.total += len(waiting)
        while self.working or waiting:
            if self.failure or self.stopped:
                waiting.clear()
            try:
                if waiting and len(self.working) < self.jobs:
                    bar.set_description(waiting[0].name)
                    self.start(waiting.popleft())
                for work in [work for work in self.working if work.process.poll() is not None]:
                    self.working.remove(work)
                    self.end(work)
                    bar.update()
            except OSError as error:  # such as a full disk
                self.failure = self.failure or str(error)
            if self.stopped == signal.SIGTERM:  # Ctrl-C reaches the cells by itself
                self.stopped = signal.SIGINT
                for work in self.working:
                    work.process.terminate()
            time.sleep(0.05)
        if self.stopped:
            raise KeyboardInterrupt
        if self.failure:
            raise InputError(self.failure)

    def stop(self, number: int, _) -> None:
        """For SIGINT and SIGTERM: no more cells; those at work save and end."""
        self.stopped = number

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

    def start(self, cell: Cell) -> None:
        cell.result.parent.mkdir(parents=True, exist_ok=True)
        self.log(cell).parent.mkdir(parents=True, exist_ok=True)
        begun = cell.trains and (cell.result.parent / "config.json").is_file()
        words = [sys.executable, *cell.command, *(["--resume"] if begun else [])]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.log(cell).open("a") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, cwd=ROOT, env=env)
        self.working.append(Work(cell, process, time.time(), _commit()))

    def end(self, work: Work) -> None:
        cell, status = work.cell, work.process.returncode
        done = status == 0 and cell.result.is_file()
        if not done and self.failure is None:
            what = f"expected {cell.result}, found exit status {status}"
            self.failure = f"{cell.name}: {what}; see {self.log(cell)}"
        line = {"cell": cell.name, "command": str(cell), "commit": work.commit, "done": done}
        line["seconds"] = round(time.time() - work.begun, 1)
        with (self.out / "cells.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def log(self, cell: Cell) -> Path:
        return self.out / f"logs/{cell.name}.log"


def _words(line: str) -> list[str]:
    """Those of a command, wherever study and repository lie."""
    return [Path(word).name for word in shlex.split(line)]


def _git(*words: str) -> str:
    told = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return told.stdout.strip()


def _commit() -> str:
    """The commit of this checkout, with + where code differs from it; "" outside git."""
    try:
        changed = _git("status", "--porcelain", "train.py", "eval.py", "minisoft", "weights")
        return _git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except FileNotFoundError:
        return ""


def _written(path: Path) -> float:
    """When a file was written, -1 if there is none."""
    return path.stat().st_mtime if path.is_file() else -1.0


def read_flags(argv=None) -> argparse.Namespace:
    parser = command.parser("study", __doc__)
    add = parser.add_argument
    usual = ",".join(USUAL)
    add("--out", type=Path, required=True, help="folder of the study")
    parts = f"all, which is all but sweep, or some of {','.join(PARTS)} (default {usual})"
    add("--parts", default=usual, help=parts)
    add("--seeds", type=int, help="runs of each kind, seeds 0, 1, ... (default five or three)")
    add("--jobs", type=int, default=2, help="cells at once, one thread each (default 2)")
    add("--list", action="store_true", help="print the commands known so far, run nothing")
    args = parser.parse_args(argv)
    everything = [part for part in PARTS if part != "sweep"]
    args.parts = everything if args.parts == "all" else args.parts.split(",")
    if unknown := set(args.parts) - set(PARTS):
        names = f"{', '.join(PARTS)}, found {', '.join(sorted(unknown))}"
        parser.error(f"--parts: expected all or some of {names}")
    command.expect_least(parser, args, seeds=1, jobs=1)
    args.out = args.out.resolve()
    return args


def plan(study: Study, parts: list[str]) -> str:
    """How many cells and core minutes each part takes, a line each.  How far learning rates will be
    searched is not known: the first ones are counted, and one step beyond."""
    lines, cells, total = [], {}, 0.0
    for part in [part for part in PARTS if part in parts]:
        new = {cell.name: cell for stage in study.part(part) for cell in stage}
        new = [cell for name, cell in new.items() if name not in cells]
        cells |= {cell.name: cell for cell in new}
        runs, minutes = sum(cell.trains for cell in new), sum(cell.minutes for cell in new)
        left = sum(cell.minutes for cell in new if not cell.result.is_file())
        what = f"{runs} runs, {len(new) - runs} measurements, about {minutes:.0f} core minutes"
        lines.append(f"# {part}: {what}, {left:.0f} left")
        total += left
    return "\n".join([*lines, f"# in all {total / 60 / study.jobs:.1f} hours left"])


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


def main(argv=None) -> None:
    args = read_flags(argv)
    study = Study(args.out, args.seeds, args.jobs, args.list)
    again = f"python -m minisoft.lab.findings {shlex.quote(str(args.out))} shows what is there"
    with command.one_line("study", f"; {again}", resumes=True):
        planned = plan(Study(args.out, args.seeds, args.jobs, dry=True), args.parts)
        if args.list:
            show(study, args.parts)
            return print(planned)
        print(planned, file=sys.stderr)
        args.out.mkdir(parents=True, exist_ok=True)
        lock = state.lock(args.out / "lock")  # held to the end
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, study.stop)
        with tqdm(total=0, unit="cell") as bar:
            for cells in study.stages(args.parts):
                study.run(cells, bar)
                text = findings.write(args.out)
        lock.close()
        print(text)


if __name__ == "__main__":
    as_program(main)
