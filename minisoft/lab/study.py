"""The paper in miniature: the embedded model trained with hard, soft and fuzzy tokens, and the five
findings looked for.

    python -m minisoft.lab.study --out runs/study              # less than two hours on two cores
    python -m minisoft.lab.study --out runs/study --parts all
    python -m minisoft.lab.study --out runs/study --list       # the commands that it consists of

A cell is one call of a program in a process of its own with one thread; --jobs of them run at once.
Cells that are done are not done again, and one that was interrupted goes on where it stopped, so
the same command continues the study.  Parts:

    findings   always: learning rates, --seeds runs of each kind and all their evaluations,
               checkpoints on the way, where the gradient comes from
    ablation   training on the CoT's terms only, on the answer's only
    variance   another shape of a batch, noise in fewer directions
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
from minisoft.kinds import PAPER
from minisoft.lab import command, findings
from minisoft.lab.findings import LADDER, PROBLEMS, REMEDIES, SKILLS, last_validations
from minisoft.training.world import as_program

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("findings", "ablation", "variance", "fuzzy", "longer")
SWEEP_SEED = 100
LRS = LADDER[2:6]  # tried for every kind; the others where the best of those lies at the edge
CHECKPOINTS, STEPS = (15, 30, 45, 60), 60
WHOLE = ("--limit", "200", "--settings", "all", "--samples", "32")  # of eval.py
BRIEF = ("--limit", "200", "--settings", "hard-greedy,hard-sample", "--samples", "8")
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

    def __init__(self, out: Path, seeds: int, jobs: int, dry: bool = False):
        self.out, self.seeds, self.jobs, self.dry = out, range(seeds), jobs, dry
        self.working: list[Work] = []
        self.failure: str | None = None  # what went wrong first
        self.stopped = 0  # the signal that came

    def train(self, name: str, kind: str, lr: str, seed: int, *flags: str, switches=()) -> Cell:
        """By train.py, or with switches by minisoft.lab.variants; 60 updates if flags say nothing
        else."""
        program = ("-m", "minisoft.lab.variants", *switches, "--") if switches else ("train.py",)
        steps = () if "--steps" in flags else ("--steps", str(STEPS))
        own = ("--tokens", kind, "--lr", lr, "--seed", str(seed), *steps, *flags)
        run = self.out / name
        flags = (*program, *own, "--show-every", "0", "--out", str(run))
        return Cell(name, flags, run / "summary.json", trains=True)

    def evaluate(self, name: str, models: list[str], *flags: str) -> Cell:
        result = self.out / f"{name}.json"
        rest = (*flags, "--batch", "512", "--out", str(result))
        return Cell(name, ("eval.py", "--model", *models, *rest), result)

    def gradient(self, name: str, model: Path, kind: str, *flags: str) -> Cell:
        result = self.out / f"gradient/{name}.json"
        what = ("--model", str(model), "--tokens", kind, *flags, "--out", str(result))
        return Cell(f"gradient/{name}", ("-m", "minisoft.lab.gradient", *what), result)

    def tried(self) -> dict[str, list[str]]:
        """kind -> the learning rates of the sweep's runs that are done."""
        runs = {(kind, lr): self.out / f"sweep/{kind}-{lr}" for kind, lr in product(PAPER, LADDER)}
        done = [key for key, run in runs.items() if (run / "summary.json").is_file()]
        return {kind: [lr for lr in LADDER if (kind, lr) in done] for kind in PAPER}

    def chosen(self) -> dict[str, str]:
        """kind -> the learning rate with the best last validations in the sweep, the smaller of
        equals."""
        best = {}
        for kind, rates in self.tried().items():
            reached = {lr: last_validations(self.out / f"sweep/{kind}-{lr}") for lr in rates}
            best[kind] = max(reached, key=reached.get)  # the first of equals
        return best

    def untried(self) -> list[tuple[str, str]]:
        """(kind, learning rate) beside the best so far where that lies at the edge of what was
        tried."""
        tried, best = self.tried(), self.chosen()
        at = {lr: index for index, lr in enumerate(LADDER)}
        beside = [(k, lr) for k, lr in product(PAPER, LADDER) if abs(at[lr] - at[best[k]]) == 1]
        return [(kind, lr) for kind, lr in beside if lr not in tried[kind]]

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
            checkpoint.save_model(folder, model, run / "last", about)
        return folder

    def stages(self, parts: list[str]) -> Iterator[list[Cell]]:
        """Lists of cells; those of a stage may run side by side, and need what the stages before
        have left."""
        yield self.sweep([(kind, lr) for lr in LRS for kind in PAPER])
        while more := self.untried():
            yield self.sweep(more)
        keep = ("--save-every", "15", "--keep", str(STEPS))
        each = [(kind, seed) for seed in self.seeds for kind in PAPER]
        yield [self.main(f"train/{kind}", kind, seed, *keep) for kind, seed in each]
        yield [*self.tests(each), *self.signals()]
        if "variance" in parts:
            yield self.variance()
            yield [self.whole("variance", "top-5", seed) for seed in self.seeds]  # they do learn
        if "fuzzy" in parts:
            yield self.fuzzy()
        if "ablation" in parts:
            yield [
                self.main(f"ablation/{kind}-{terms}", kind, seed, switches=("--terms", terms))
                for kind, terms, seed in product(("soft", "hard"), ("answer", "cot"), self.seeds)
            ]
        if "longer" in parts:
            some, steps = list(product(("soft", "hard"), self.seeds)), ("--steps", str(3 * STEPS))
            yield [self.main(f"longer/{kind}", kind, seed, *steps) for kind, seed in some]
            yield [self.whole("longer", kind, seed, "longer-test") for kind, seed in some]

    def main(self, run: str, kind: str, seed: int, *flags: str, switches=()) -> Cell:
        """A run with the learning rate that the sweep has chosen."""
        name, lr = f"{run}-s{seed}", self.chosen()[kind]
        return self.train(name, kind, lr, seed, *flags, switches=switches)

    def sweep(self, rates: list[tuple[str, str]]) -> list[Cell]:
        return [self.train(f"sweep/{kind}-{lr}", kind, lr, SWEEP_SEED) for kind, lr in rates]

    def whole(self, part: str, run: str, seed: int, to: str = "test") -> Cell:
        """The best checkpoint of a run in all six settings and on multiple choice."""
        model = f"{run}={self.out / f'{part}/{run}-s{seed}/best'}"
        return self.evaluate(f"{to}/{run}-s{seed}", [model], "--data", *PROBLEMS, *SKILLS, *WHOLE)

    def tests(self, each: list[tuple[str, int]]) -> list[Cell]:
        """The base and the best checkpoints; checkpoints on the way, in hard inference."""
        base = [f"base={WEIGHTS / 'tiny'}"]
        cells = [self.evaluate("test/base", base, "--data", *PROBLEMS, *SKILLS, *WHOLE)]
        cells += [self.whole("train", kind, seed) for kind, seed in each]
        for kind, seed in each:
            models = [f"{step}={self.at_step(kind, seed, step)}" for step in CHECKPOINTS]
            name = f"checkpoints/{kind}-s{seed}"
            cells.append(self.evaluate(name, models, "--data", "tiny-test", *BRIEF))
        return cells

    def signals(self) -> list[Cell]:
        """Where the gradient comes from before, halfway and at the end of the first run of each
        kind."""
        return [
            self.gradient(f"{kind}-{step}", self.at_step(kind, 0, step), kind)
            for kind, step in product(PAPER, (0, STEPS // 2, STEPS))
        ]

    def variance(self) -> list[Cell]:
        """Remedies for the variance of soft tokens: signal, and what they learn."""
        cells = []
        for step, r in product((0, 30), REMEDIES):
            folder, batches = self.at_step("soft", 0, step), ("--batches", "16")
            cells.append(self.gradient(f"{r.name}-{step}", folder, "soft", *r.flags, *batches))
        for r, seed in product(REMEDIES, self.seeds):
            cells.append(self.main(f"variance/{r.name}", "soft", seed, *r.flags))
        return cells

    def fuzzy(self) -> list[Cell]:
        """What lets fuzzy tokens learn: signal before training, and what they learn."""
        cells = []
        for name, (switches, flags) in FUZZY.items():
            base = self.at_step("fuzzy", 0, 0)
            cells.append(self.gradient(f"fuzzy-{name}", base, "fuzzy", *switches, *flags))
        for (name, (switches, flags)), seed in product(FUZZY.items(), self.seeds):
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
    parts = f"all, or some of {','.join(PARTS)}; findings always are one of them (default findings)"
    add("--out", type=Path, required=True, help="folder of the study")
    add("--parts", default="findings", help=parts)
    add("--seeds", type=int, default=3, help="runs of each kind, seeds 0, 1, ... (default 3)")
    add("--jobs", type=int, default=2, help="cells at once, one thread each (default 2)")
    add("--list", action="store_true", help="print the commands known so far, run nothing")
    args = parser.parse_args(argv)
    args.parts = list(PARTS) if args.parts == "all" else args.parts.split(",")
    if unknown := set(args.parts) - set(PARTS):
        names = f"{', '.join(PARTS)}, found {', '.join(sorted(unknown))}"
        parser.error(f"--parts: expected all or some of {names}")
    command.expect_least(parser, args, seeds=1, jobs=1)
    args.out = args.out.resolve()
    return args


def show(study: Study, parts: list[str]) -> None:
    """Print the commands that are known so far."""
    for cells in study.stages(parts):
        print("\n".join(map(str, cells)))
        if not all(cell.result.is_file() for cell in cells):
            print("# the commands that follow depend on the results of these")
            return


def main(argv=None) -> None:
    args = read_flags(argv)
    study = Study(args.out, args.seeds, args.jobs, args.list)
    again = f"python -m minisoft.lab.findings {shlex.quote(str(args.out))} shows what is there"
    with command.one_line("study", f"; {again}", resumes=True):
        if args.list:
            return show(study, args.parts)
        args.out.mkdir(parents=True, exist_ok=True)
        lock = state.lock(args.out)  # held to the end
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
