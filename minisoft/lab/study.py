"""The paper in miniature: the embedded model trained with hard, soft, fuzzy and others' tokens, the
best checkpoints by greedy validation of the run's own kind; the five findings looked for.

    python -m minisoft.lab.study --out runs/study --list       # the commands
    python -m minisoft.lab.study --out runs/study              # under three hours on two cores

A cell is one call of a program in a process of its own with one thread; --jobs of them run at once.
Cells that are done are not done again, and one that was interrupted goes on where it stopped, so
the same command continues the study.  Parts:

    findings   hard, soft and fuzzy tokens (`minisoft.lab.trainings`): the runs of all seeds, all
               their evaluations, checkpoints on the way
    kinds      the same for the later kinds
    signal     where the gradient comes from and how soft the tokens are, first seed of each kind

Writes OUT/study.md (tables), cells.jsonl (command, commit, seconds of every cell) and logs/;
`python -m minisoft.lab.findings OUT` writes the tables again.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from tqdm import tqdm

from minisoft.errors import InputError, expect
from minisoft.io import WEIGHTS, checkpoint, state
from minisoft.kinds import KINDS, PAPER
from minisoft.kinds.options import COUNT, Option
from minisoft.lab import command, findings
from minisoft.lab.trainings import LATER, PROBLEMS, SKILLS, TRAININGS
from minisoft.run.world import as_program

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"findings": PAPER, "kinds": LATER, "signal": ()}  # part: trainings, of all seeds
CHECKPOINTS = (15, 30, 45, 60)
UPDATES = "--steps 60 --save-every 15 --keep 60 --warmup 20 --show-every 0".split()  # of train.py
WHOLE = "--limit 200 --samples 32 --settings".split()  # of eval.py
BRIEF = "--data tiny-test --limit 200 --settings hard-greedy,hard-sample --samples 8".split()
FLAGS = [
    Option("out", Path, "folder of the study"),
    Option("parts", str, "all, or some of them", ",".join(PARTS)),
    Option("seeds", COUNT, "runs of each kind, seeds 0, 1, ... (default five or three)"),
    Option("jobs", COUNT, "cells at once, one thread each", 2),
    Option("list", bool, "print the commands, run nothing", False),
]


@dataclass(frozen=True)
class Cell:
    """One command; it is done when `result` exists.  One of train.py can be resumed."""

    name: str
    command: tuple[str, ...]
    result: Path

    def __str__(self) -> str:
        return shlex.join(["OMP_NUM_THREADS=1", "python", *self.command])


class Study:
    """The cells of a study, in stages; with `dry` nothing is written."""

    def __init__(self, out: Path, seeds: int | None, dry: bool = False):
        self.out, self.number, self.dry = out, seeds, dry

    def stages(self, parts: list[str]) -> Iterator[list[Cell]]:
        """Training; tests and gradients.  The cells of a stage may run side by side, and need what
        the stage before has left."""
        main = [run for part in parts for run in self.each(PARTS[part])]  # (training, seed)
        first = [(name, 0) for name in TRAININGS if "signal" in parts]
        yield [self.train(*run) for run in dict.fromkeys(main + first)]
        cells = [self.test("test/base", f"base={WEIGHTS / 'tiny'}", KINDS)] if main else []
        cells += [self.test_best(*run) for run in main]
        cells += [self.on_the_way(*run) for run in main]
        for name, _ in first:
            for step in (0, 30, 60) if name in PAPER else (0, 60):
                cells.append(self.gradient(name, step))
        yield cells

    def each(self, names) -> list[tuple[str, int]]:
        """(training, seed) of runs, the first seeds first."""
        seeds = {name: self.number or TRAININGS[name].seeds for name in names}
        most = max(seeds.values(), default=0)
        return [(name, seed) for seed in range(most) for name in names if seed < seeds[name]]

    def train(self, kind: str, seed: int) -> Cell:
        name, of = f"train/{kind}-s{seed}", TRAININGS[kind]
        run = self.out / name
        flags = (*of.flags, "--lr", of.lr, "--seed", str(seed), *UPDATES, "--out", str(run))
        return Cell(name, ("train.py", *flags), run / "summary.json")

    def evaluate(self, name: str, models: list[str], flags) -> Cell:
        result = self.out / f"{name}.json"
        words = ("eval.py", "--model", *models, *flags, "--batch", "512", "--out", str(result))
        return Cell(name, words, result)

    def test(self, name: str, model: str, kinds) -> Cell:
        """In these kinds of inference, and on multiple choice."""
        settings = ",".join(f"{kind}-{how}" for kind in kinds for how in ("greedy", "sample"))
        flags = ("--data", *PROBLEMS, *SKILLS, *WHOLE, settings)
        return self.evaluate(name, [model], flags)

    def test_best(self, name: str, seed: int) -> Cell:
        """The best checkpoint of a run in the paper's settings and its own."""
        model = f"{name}={self.out / f'train/{name}-s{seed}/best'}"
        kinds = (*PAPER, TRAININGS[name].tokens)
        return self.test(f"test/{name}-s{seed}", model, dict.fromkeys(kinds))

    def on_the_way(self, name: str, seed: int) -> Cell:
        """Checkpoints of a run in hard inference."""
        models = [f"{step}={self.at_step(name, seed, step)}" for step in CHECKPOINTS]
        return self.evaluate(f"checkpoints/{name}-s{seed}", models, BRIEF)

    def gradient(self, kind: str, step: int) -> Cell:
        """Of the first run of a training after `step` updates."""
        name, model = f"gradient/{kind}-{step}", str(self.at_step(kind, 0, step))
        result = self.out / f"{name}.json"
        words = ("-m", "minisoft.lab.gradient", "--model", model, *TRAININGS[kind].flags)
        return Cell(name, (*words, "--out", str(result)), result)

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
        log, start = self.out / f"logs/{cell.name}.log", time.time()
        try:
            cell.result.parent.mkdir(parents=True, exist_ok=True)
            log.parent.mkdir(parents=True, exist_ok=True)
            process = self.start(cell, log)
            self.working.append(process)
            if self.stopped:  # meanwhile
                process.terminate()
            line = {"cell": cell.name, "command": str(cell), "commit": _commit()}
            status = process.wait()
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

    def start(self, cell: Cell, log: Path) -> subprocess.Popen:
        trains = cell.command[0] == "train.py"
        begun = trains and (cell.result.parent / "config.json").is_file()
        words = [sys.executable, *cell.command, *(["--resume"] if begun else [])]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with log.open("a") as to:
            return subprocess.Popen(words, stdout=to, stderr=to, cwd=ROOT, env=env)


def _words(line: str) -> list[str]:
    """Those of a command, wherever study and repository lie."""
    return [Path(word).name for word in shlex.split(line)]


def _commit() -> str:
    """The commit of this checkout, with + where code differs from it; "" outside git."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(words, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def _written(path: Path) -> float:
    """When a file was written, -1 if there is none."""
    return path.stat().st_mtime if path.is_file() else -1.0


def main(argv=None) -> None:
    with command.one_line("study"):
        args = command.read("study", __doc__, FLAGS, argv)
        args.parts = args.parts.split(",")
        known = set(args.parts) <= set(PARTS)
        expect(known, "--parts", f"some of {', '.join(PARTS)}", ",".join(args.parts))
        expect(args.out, "--out", "a folder for the study", args.out)
        out = args.out.resolve()
    shows = f"python -m minisoft.lab.findings {shlex.quote(str(out))} shows what is there"
    with command.one_line("study", f"; the same command goes on; {shows}"):
        planned = [*chain(*Study(out, args.seeds, dry=True).stages(args.parts))]
        left = sum(not cell.result.is_file() for cell in planned)
        print(f"# {len(planned)} cells, {left} left", file=sys.stderr)
        if args.list:
            return print(*planned, sep="\n")
        out.mkdir(parents=True, exist_ok=True)
        runner = Runner(out, args.jobs)
        with state.lock(out / "lock"):  # to the end
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, runner.stop)
            for cells in Study(out, args.seeds).stages(args.parts):
                runner.run(cells)
            print(findings.write(out))


if __name__ == "__main__":
    as_program(main)
