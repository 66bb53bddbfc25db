"""The paper's study of a model: trained with hard, soft, fuzzy and others' tokens, the best
checkpoints by greedy validation of the run's own kind; they and the base are tested in the paper's
settings and their own, on problems and multiple choice.

    python -m minisoft.lab.study --out runs/study           # in miniature: the embedded model
    python -m minisoft.lab.study --out runs/study --list    # the commands, the hours of each part
    python -m minisoft.lab.study --model FOLDER --data TRAIN --test SET ... --kinds hard soft
        --seeds 3 --steps 1000 --out DIR -- --cot 128       # after --: more flags of train.py
    python -m minisoft.lab.study --plan paper               # the paper's own, as commands

A cell is one call of a program in a process of its own with one thread; --jobs of them run at once,
on GPUs one, with all of them.  The same command goes on, and does nothing twice.  Writes
OUT/study.md, cells.jsonl and logs/.  The miniature's --kinds are all of them by default, and it has
the gradients of the first run of each.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from tqdm import tqdm

from minisoft.data import Problem
from minisoft.errors import InputError, expect
from minisoft.io import WEIGHTS, datasets, state
from minisoft.io.atomic import read_json
from minisoft.kinds import COT, PAPER, TEMPLATE, TRAINING
from minisoft.kinds.options import COUNT, ROOT, Option
from minisoft.lab import command, findings, trainings
from minisoft.run.card import commit
from minisoft.run.settings import EVAL_COT
from minisoft.run.world import as_program

PART = re.compile(r"-s?\d+$")  # without it, of a cell's name: train/soft of train/soft-s0
FLAGS = [
    Option("out", Path, "folder of the study"),
    Option("model", str, "folder or hub id (default the miniature's)"),
    TRAINING["data"],
    Option("test", str, "problems and multiple choice, as eval.py --data", nargs="+"),
    Option("kinds", str, "of token (default the paper's three)", None, findings.NAMES, nargs="+"),
    replace(TRAINING["steps"], help="updates of a run (in the miniature 60)"),
    replace(TRAINING["lr"], help="default of the paper: Llama-8B 3e-6, Qwen 8e-6, another"),
    TEMPLATE,
    replace(COT, name="eval_cot", help="CoT budget in tests and validations", default=EVAL_COT),
    Option("limit", COUNT, "only the first problems of each set that tests (default all)"),
    Option("samples", COUNT, "samples a problem in tests (default 32)"),
    Option("batch", COUNT, "rows at once in tests (default 64)"),
    Option("seeds", COUNT, "runs of each kind, seeds 0, 1, ... (default three; some five)"),
    Option("jobs", COUNT, "cells at once, one thread each (default 2, on GPUs 1)"),
    Option("list", bool, "print the commands and the hours, run nothing", False),
    Option("plan", str, "print the commands of the paper's own studies", None, ["paper"]),
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
    """The cells of a study, in stages.  args: its flags; more: of train.py."""

    def __init__(self, args: Namespace, more: list[str]):
        self.out, self.args, self.more = (args.out or Path()).resolve(), args, more
        self.trainings, self.base = trainings.TRAININGS, args.model or str(WEIGHTS / "tiny")
        if args.model:
            self.trainings = trainings.own(args.kinds, args.model)

    def words(self, *names: str) -> list[str]:
        """Those of the flags with these names that were given."""
        given = {row.flag: getattr(self.args, row.name) for row in FLAGS if row.name in names}
        return [str(x) for pair in given.items() if pair[1] is not None for x in pair]

    def stages(self) -> Iterator[list[Cell]]:
        """Training; tests and gradients.  The cells of a stage may run side by side, and need what
        the stage before has left."""
        names = self.args.kinds or self.trainings
        runs = self.each(names)
        yield [self.train(*run) for run in runs]
        tokens = [*PAPER, *(x.tokens for x in self.trainings.values())]
        cells = [self.test("test/base", f"base={self.base}", tokens)]
        for name, seed in runs:  # the best checkpoint (--validation 0: the last), in its own too
            run, own = self.out / f"train/{name}-s{seed}", self.trainings[name].tokens
            kept = "last" if (run / "last").exists() and not (run / "best").exists() else "best"
            cells.append(self.test(f"test/{name}-s{seed}", f"{name}={run / kept}", (*PAPER, own)))
        if not self.args.model:
            cells += [self.gradient(name, step) for name in names for step in (0, 60)]
        yield cells

    def each(self, names) -> list[tuple[str, int]]:
        """(training, seed) of runs, the first seeds first."""
        seeds = {name: self.args.seeds or self.trainings[name].seeds for name in names}
        most = max(seeds.values(), default=0)
        return [(name, seed) for seed in range(most) for name in names if seed < seeds[name]]

    def train(self, kind: str, seed: int) -> Cell:
        name, of = f"train/{kind}-s{seed}", self.trainings[kind]
        run, lr = self.out / name, str(self.args.lr or of.lr)
        flags = (*of.flags, *(["--lr", lr] if lr else []), "--seed", str(seed))
        flags += (*self.words("model", "data", "steps", "template", "eval_cot"),)
        names = {word.partition("=")[0] for word in self.more if word.startswith("--")}
        twice = names & {*flags, "--model", "--out"}
        expect(not twice, "after --", "flags that the study does not set", ", ".join(sorted(twice)))
        return Cell(name, ("train.py", *flags, *self.more, "--out", str(run)), run / "summary.json")

    def test(self, name: str, model: str, kinds) -> Cell:
        """A model in these kinds of inference, and on multiple choice."""
        names = [f"{kind}-{how}" for kind in dict.fromkeys(kinds) for how in ("greedy", "sample")]
        flags = ("--data", *self.args.test, *self.words("limit", "samples"))
        flags += ("--settings", ",".join(names), *self.words("template", "batch"))
        cot = ["--cot", str(self.args.eval_cot)] if self.args.eval_cot else []
        result = self.out / f"{name}.json"
        words = ("eval.py", "--model", model, *flags, *cot, "--out", str(result))
        return Cell(name, words, result)

    def gradient(self, kind: str, step: int) -> Cell:
        """Of the first run of a training before it, or after its 60 updates."""
        name, last = f"gradient/{kind}-{step}", self.out / f"train/{kind}-s0/last"
        result, model = self.out / f"{name}.json", str(last) if step else self.base
        words = ("-m", "minisoft.lab.gradient", "--model", model, *self.trainings[kind].flags)
        return Cell(name, (*words, "--out", str(result)), result)


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
        lines = [line for line in findings.read_cells(self.out) if line["cell"] == cell.name]
        last = [line["command"] for line in lines if line.get("done", True)][-1:]
        if last and _words(last[0]) != _words(str(cell)):
            what = f"expected the result of {cell}, found that of {last[0]}"
            raise InputError(f"{cell.result}: {what}; move it away")
        paths = [Path(word.partition("=")[2] or word) for word in cell.command]
        models = [path / "model.safetensors" for path in paths if self.out in path.parents]
        written = [path.stat().st_mtime for path in models if path.is_file()]
        return max(written, default=-1) <= cell.result.stat().st_mtime

    def do(self, cell: Cell) -> None:
        """One cell, in a process of its own, unless something has gone wrong before."""
        if self.stopped or self.failures:
            return
        log, start = self.out / f"logs/{cell.name}.log", time.time()
        begun = cell.command[0] == "train.py" and (cell.result.parent / "config.json").is_file()
        words = [sys.executable, *cell.command, *(["--resume"] if begun else [])]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        try:
            cell.result.parent.mkdir(parents=True, exist_ok=True)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as to:
                process = subprocess.Popen(words, stdout=to, stderr=to, cwd=ROOT, env=env)
            self.working.append(process)
            if self.stopped:  # meanwhile
                process.terminate()
            line = {"cell": cell.name, "command": str(cell), "commit": commit()}
            status = process.wait()
            self.working.remove(process)
            line["done"] = status == 0 and cell.result.is_file()
            line["seconds"] = round(time.time() - start, 1)
            with (self.out / "cells.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            if not line["done"]:
                what = f"expected {cell.result}, found exit status {status}"
                last = ["", *log.read_text(errors="replace").splitlines()][-1]
                self.failures.append(f"{cell.name}: {what}; see {log}: {last}")
        except OSError as error:  # such as a full disk
            self.failures.append(str(error))


def _words(line: str) -> list[tuple[str, ...]]:
    """Those of a command, wherever study and repository lie; MATH/train is not GSM8K/train."""
    return [Path(word).parts[-2:] for word in shlex.split(line)]


def read_flags(argv=None) -> Study:
    """The study that the flags ask for, some of which the miniature has.  Raises InputError."""
    own, more = command.split(argv)
    args = command.read("study", __doc__, FLAGS, own)
    if not args.model:
        usual, updates = trainings.MINIATURE.split(" -- ")
        args = command.read("study", __doc__, FLAGS, usual.split() + own)
        more = updates.split() + more
    args.kinds = args.kinds or (PAPER if args.model else None)
    expect(args.out or args.plan, "--out", "a folder for the study", args.out)
    expect(args.test, "--test", "sets of problems or of multiple choice", args.test)
    for flag, names in (("--kinds", args.kinds or ()), ("--test", args.test)):
        expect(len({*names}) == len(names), flag, "each once", names)
    on_gpus = torch.cuda.is_available()
    args.jobs = args.jobs or (1 if on_gpus else 2)
    expect(not on_gpus or args.jobs == 1, "--jobs", "1, which has all GPUs", args.jobs)
    return Study(args, more)


def plan(cell: Cell) -> tuple[float, float]:
    """(seconds of a training, of a token of one of its chains) by the arithmetic of `train.py
    --plan`.  Raises InputError for what train.py refuses."""
    words = [sys.executable, *cell.command, "--plan", "1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise InputError(done.stderr.strip())
    lines = [line.split("|") for line in done.stdout.splitlines() if re.match(r"\| \d", line)]
    ranks = {int(n): [*map(float, numbers)] for _, n, *numbers, _ in lines}
    rollout, *_, hours, _ = ranks[max(n for n in ranks if n <= max(1, torch.cuda.device_count()))]
    rows, tokens = re.search(r"step: (\d+) rows .* rows of (\d+) tokens", done.stdout).groups()
    return 3600 * hours, rollout / int(rows) / int(tokens)


def tokens(study: Study, cell: Cell) -> int:
    """Those of the chains of a test, if all spend their budget."""
    usual = read_json(Path(study.base) / "minisoft.json").get("defaults", {}).get("cot", EVAL_COT)
    rows = [row for name in study.args.test for row in datasets.load(name)[: study.args.limit]]
    chains = sum(isinstance(row, Problem) for row in rows) * (1 + (study.args.samples or 32))
    kinds = sum(word.count("-sample") for word in cell.command)
    return chains * kinds * (study.args.eval_cot or usual)


def hours(study: Study, cells: list[Cell]) -> list[str]:
    """A line for each part: its cells, and the hours of those left, as the done ones took; else
    estimated, of chains that all spend their budget, without validation and multiple choice."""
    took, done, parts, text = Counter(), Counter(), {}, []
    for line in findings.read_cells(study.out):
        took[PART.sub("", line["cell"])] += line["seconds"]
        done[PART.sub("", line["cell"])] += line.get("done", True)
    for cell in cells:
        parts.setdefault(PART.sub("", cell.name), []).append(cell)
    training, token = plan(cells[0]) if parts.keys() - +done else (0.0, 0.0)
    for part, of in parts.items():
        each, how = took[part] / max(1, done[part]), "measured"
        if not done[part]:
            tests = token * tokens(study, of[0]) if part.startswith("test") else 0.0
            each, how = training if part.startswith("train") else tests, "estimate"
        left = sum(not cell.result.is_file() for cell in of)
        shown = f"{left * each / 3600:.2g} h ({how})" if each else "hours unknown"
        text.append(f"# {part}: {len(of)} cells, {left} left, {shown}")
    return text


def main(argv=None) -> None:
    with command.one_line("study"):
        study = read_flags(argv)
        for flags in trainings.PAPERS if study.args.plan else ():
            print(f"# python -m minisoft.lab.study {flags}")
            print(*chain(*read_flags(flags.split()).stages()), sep="\n")
        if study.args.plan:
            return
        cells = [*chain(*study.stages())]
        left = [cell for cell in cells if not cell.result.is_file()]
        print(f"# {len(cells)} cells, {len(left)} left", file=sys.stderr)
        if study.args.list:
            print(*hours(study, cells), sep="\n", file=sys.stderr)
            return print(*cells, sep="\n")
        for name in study.args.test if left else ():
            datasets.load(name)  # what cannot be tested is said before hours of training
    shows = f"python -m minisoft.lab.findings {shlex.quote(str(study.out))} shows what is there"
    with command.one_line("study", f"; the same command goes on; {shows}"):
        study.out.mkdir(parents=True, exist_ok=True)
        findings.place(study.out)
        runner = Runner(study.out, study.args.jobs)
        with state.lock(study.out / "lock"):  # to the end
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, runner.stop)
            for stage in study.stages():
                runner.run(stage)
            print(findings.write(study.out))


if __name__ == "__main__":
    as_program(main)
