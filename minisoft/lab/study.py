"""The paper in miniature: the embedded model trained with hard, soft and fuzzy tokens, and the five findings looked for.

    python -m minisoft.lab.study --out runs/study                      # the findings: less than two hours on two cores
    python -m minisoft.lab.study --out runs/study --parts all          # with ablation, variance remedies, fuzzy tokens, ...
    python -m minisoft.lab.study --out runs/study --list               # the commands that it consists of

A cell is one call of train.py, eval.py or minisoft.lab.gradient in a process of its own with one thread; --jobs of them run at
once.  Cells that are done are not done again, and one that was interrupted goes on where it stopped, so the same command
continues the study; a cell typed by hand, in the repository and with another --out, gives the same numbers on the same
machine.  Parts:

    findings   always: learning rates on validation (a seed of their own), --seeds runs of each kind, six settings and
               multiple choice for all of them, checkpoints on the way, where the gradient comes from
    ablation   training on the CoT's terms only, on the answer's only
    variance   other unbiased estimators and shapes of a batch, and noise in fewer directions: signal, what they learn;
               the findings once more for soft tokens with noise in fewer directions
    fuzzy      higher temperatures, logits rounded to bfloat16
    longer     three times the updates, hard and soft: what was only a matter of time?

Writes OUT/study.md (tables) and pictures (extra `plot`) after every part, cells.jsonl (command, commit, seconds of every
cell); results lie in OUT/PART/, logs in OUT/logs/.  python -m minisoft.lab.findings OUT writes and prints the tables again.
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
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from minisoft.errors import InputError
from minisoft.io import WEIGHTS, checkpoint, state
from minisoft.lab import findings
from minisoft.lab.findings import PROBLEMS, SKILLS, last_validations
from minisoft.soft import KINDS

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("findings", "ablation", "variance", "fuzzy", "longer")
SWEEP_SEED, LADDER = 100, ("2.5e-5", "5e-5", "1e-4", "2e-4", "4e-4", "8e-4", "1.6e-3", "3.2e-3")  # of learning rates
LRS = LADDER[2:6]  # tried for every kind; the others where the best of those tried lies at the edge
CHECKPOINTS, STEPS = (15, 30, 45, 60), 60
SHAPES = ((64, 8),)  # B x G beside 16 x 32, as many samples
WHOLE = ("--data", *PROBLEMS, *SKILLS, "--limit", "200", "--settings", "all", "--samples", "32")  # of eval.py
TAUS = ("0.1", "0.01")


@dataclass(frozen=True)
class Cell:
    """One command; it is done when `result` exists."""

    name: str
    command: tuple[str, ...]
    result: Path

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
    def __init__(self, out: Path, seeds: int, jobs: int, dry: bool = False):
        self.out, self.seeds, self.jobs, self.dry = out, range(seeds), jobs, dry
        self.working: list[Work] = []
        self.failed, self.stopped = None, 0  # what went wrong; the signal that came

    def train(self, name: str, tokens: str, lr: str, seed: int, *flags: str, steps: int = STEPS) -> Cell:
        run = self.out / name
        command = ("train.py", "--tokens", tokens, "--lr", lr, "--seed", str(seed), "--steps", str(steps), *flags,
                   "--show-every", "0", "--out", str(run))
        return Cell(name, command, run / "summary.json")

    def evaluate(self, name: str, models: list[str], *flags: str) -> Cell:
        result = self.out / f"{name}.json"
        return Cell(name, ("eval.py", "--model", *models, *flags, "--batch", "512", "--out", str(result)), result)

    def gradient(self, name: str, model: Path, tokens: str, *flags: str) -> Cell:
        result = self.out / f"{name}.json"
        return Cell(name, ("-m", "minisoft.lab.gradient", "--model", str(model), "--tokens", tokens, *flags,
                           "--out", str(result)), result)

    def chosen(self) -> dict[str, str]:
        """kind -> the learning rate with the best last validations in the sweep, the smaller of equals."""
        return {kind: max(tried, key=lambda lr: (last_validations(self.out / f"sweep/{kind}-{lr}"), -float(lr)))
                for kind, tried in self.tried().items()}

    def tried(self) -> dict[str, list[str]]:
        return {kind: [lr for lr in LADDER if (self.out / f"sweep/{kind}-{lr}/summary.json").is_file()] for kind in KINDS}

    def untried(self) -> list[tuple[str, str]]:
        """(kind, learning rate) beside the best so far where that lies at the edge of what was tried."""
        tried, chosen = self.tried(), self.chosen()
        return [(kind, lr) for kind in KINDS for lr in LADDER if lr not in tried[kind]
                and abs(LADDER.index(lr) - LADDER.index(chosen[kind])) == 1]

    def at_step(self, kind: str, seed: int, step: int) -> Path:
        """The model of a main run after `step` updates, as a folder; made from the run's saved state."""
        run, folder = self.out / f"train/{kind}-s{seed}", self.out / f"checkpoints/{kind}-s{seed}-{step}"
        there = run / f"state/step-{step:06d}"
        if not self.dry and not (folder.is_dir() and _age(folder / "model.safetensors") < _age(there / "facts.json")):
            saved = state.State(there)
            model = checkpoint.load_model(run / "last", torch.device("cpu"), torch.float32)
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(saved.read(f"weight/{name}", 0, p.numel()).view_as(p))
            folder.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.save_model(folder, model, run / "last", checkpoint.read_about(run / "last"))
        return folder

    def stages(self, parts: list[str]):
        """Lists of cells; those of a stage may run side by side, and need what the stages before have left."""
        sweep = lambda kind, lr: self.train(f"sweep/{kind}-{lr}", kind, lr, SWEEP_SEED, "--shares-every", "0")
        yield [sweep(kind, lr) for lr in LRS for kind in KINDS]
        while more := self.untried():
            yield [sweep(kind, lr) for kind, lr in more]
        lr = self.chosen()
        main = lambda folder, kind, seed, *flags: self.train(f"{folder}-s{seed}", kind, lr[kind], seed, *flags)
        each = [(kind, seed) for seed in self.seeds for kind in KINDS]
        yield [main(f"train/{kind}", kind, seed, "--save-every", "15", "--keep", str(STEPS)) for kind, seed in each]
        yield [*self.tests(each), *self.signals()]
        if "variance" in parts:
            yield [*self.variance_signals(), *(main(f"variance/{name}", "soft", seed, *flags)
                                               for name, flags in remedies().items() for seed in self.seeds)]
            yield [self.whole("variance", "top-5", seed) for seed in self.seeds]  # the findings where soft tokens learn
        if "fuzzy" in parts:
            flags = {"bfloat16": ("--logits", "bfloat16"), **{f"tau-{tau}": ("--tau", tau) for tau in TAUS}}
            yield [*(self.gradient(f"gradient/fuzzy-{name}", WEIGHTS / "tiny", "fuzzy", *how)
                     for name, how in flags.items()),
                   *(main(f"fuzzy/{name}", "fuzzy", seed, *how) for name, how in flags.items() for seed in self.seeds)]
        if "ablation" in parts:
            yield [main(f"ablation/{kind}-{terms}", kind, seed, "--terms", terms)
                   for kind in ("soft", "hard") for terms in ("answer", "cot") for seed in self.seeds]
        if "longer" in parts:
            some = [(kind, seed) for kind in ("soft", "hard") for seed in self.seeds]
            yield [self.train(f"longer/{kind}-s{seed}", kind, lr[kind], seed, steps=3 * STEPS) for kind, seed in some]
            yield [self.whole("longer", kind, seed) for kind, seed in some]

    def whole(self, part: str, kind: str, seed: int) -> Cell:
        """The best checkpoint of a run in the folder `part` in all six settings and on multiple choice."""
        model = f"{kind}={self.out / f'{part}/{kind}-s{seed}/best'}"
        return self.evaluate(f"{'longer-test' if part == 'longer' else 'test'}/{kind}-s{seed}", [model], *WHOLE)

    def tests(self, each) -> list[Cell]:
        """The base and the best checkpoints; checkpoints on the way, in hard inference."""
        brief = ("--data", "tiny-test", "--limit", "200", "--settings", "hard-greedy,hard-sample", "--samples", "8")
        return [self.evaluate("test/base", [f"base={WEIGHTS / 'tiny'}"], *WHOLE),
                *(self.whole("train", kind, seed) for kind, seed in each),
                *(self.evaluate(f"checkpoints/{kind}-s{seed}", [
                    f"{step}={self.at_step(kind, seed, step)}" for step in CHECKPOINTS], *brief) for kind, seed in each)]

    def signals(self) -> list[Cell]:
        """Where the gradient comes from before, halfway and at the end of the first run of each kind."""
        place = lambda kind, step: self.at_step(kind, 0, step) if step else WEIGHTS / "tiny"
        return [self.gradient(f"gradient/{kind}-{step}", place(kind, step), kind) for kind in KINDS
                for step in (0, STEPS // 2, STEPS)]

    def variance_signals(self) -> list[Cell]:
        middle = self.at_step("soft", 0, 30)
        return [self.gradient(f"gradient/{name}-{step}", folder, "soft", *flags, "--batches", "16")
                for step, folder in ((0, WEIGHTS / "tiny"), (30, middle)) for name, flags in remedies().items()]

    def run(self, cells: list[Cell], bar) -> None:
        """Do what is not done yet, `jobs` cells at a time.  Raises InputError for a cell that failed, KeyboardInterrupt
        where `stop` was called, both after those at work have ended."""
        waiting = deque(cell for cell in cells if not self.is_done(cell))
        bar.total += len(waiting)
        while self.working or waiting and not (self.failed or self.stopped):
            try:
                if waiting and len(self.working) < self.jobs and not (self.failed or self.stopped):
                    bar.set_description(waiting[0].name)
                    self.start(waiting.popleft())
                for work in [work for work in self.working if work.process.poll() is not None]:
                    self.working.remove(work)
                    self.end(work)
                    bar.update()
            except OSError as error:  # such as a full disk
                self.failed = self.failed or str(error)
            if self.stopped == signal.SIGTERM:  # Ctrl-C reaches the cells by itself
                self.stopped = signal.SIGINT
                [work.process.terminate() for work in self.working]
            time.sleep(.05)
        if self.stopped:
            raise KeyboardInterrupt
        if self.failed:
            raise InputError(self.failed)

    def stop(self, number: int, _) -> None:
        """For SIGINT and SIGTERM: no more cells; those at work save and end."""
        self.stopped = number

    def is_done(self, cell: Cell) -> bool:
        """Is its result there, and no older than the models of this study that it measures?  Raises InputError where
        it is that of another command."""
        if not cell.result.is_file():
            return False
        flags = lambda command: [Path(word).name for word in shlex.split(command)]  # wherever study and repository lie
        before = [found["command"] for found in findings.read_cells(self.out)
                  if found["cell"] == cell.name and found.get("done", True)]
        if before and flags(before[-1]) != flags(str(cell)):
            raise InputError(f"{cell.result}: expected the result of {cell}, found that of {before[-1]}; move it away")
        mine = [Path(word.partition("=")[2] or word) for word in cell.command if str(self.out) in word]
        models = [folder / "model.safetensors" for folder in mine]
        return not any(model.is_file() and _age(model) < _age(cell.result) for model in models)

    def start(self, cell: Cell) -> None:
        cell.result.parent.mkdir(parents=True, exist_ok=True)
        self.log(cell).parent.mkdir(parents=True, exist_ok=True)
        begun = cell.command[0] == "train.py" and (cell.result.parent / "config.json").is_file()
        with self.log(cell).open("a") as file:
            process = subprocess.Popen([sys.executable, *cell.command, *["--resume"] * begun], stdout=file, stderr=file,
                                       cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
        self.working.append(Work(cell, process, time.time(), _commit()))

    def end(self, work: Work) -> None:
        cell, status = work.cell, work.process.returncode
        done = status == 0 and cell.result.is_file()
        if not done:
            self.failed = self.failed or (f"{cell.name}: expected {cell.result}, found exit status {status}; see "
                                          f"{self.log(cell)}")
        line = {"cell": cell.name, "command": str(cell), "commit": work.commit, "done": done,
                "seconds": round(time.time() - work.begun, 1)}
        with (self.out / "cells.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def log(self, cell: Cell) -> Path:
        return self.out / f"logs/{cell.name}.log"


def remedies() -> dict[str, tuple[str, ...]]:
    """name -> flags of train.py and minisoft.lab.gradient: another estimator, another shape of a batch at equal cost; and, no
    estimators but other kinds of noise, that on the 5 best logits (F.2) and, with its tau, that on all of them."""
    return {"prefix": ("--estimator", "prefix"),
            **{f"{B}x{G}": ("--prompts", str(B), "--group", str(G)) for B, G in SHAPES},
            "top-5": ("--noise", "logits", "--top-k", "5"), "logits": ("--noise", "logits", "--tau", "1.0")}


def _commit() -> str:
    """The commit of this checkout, with + where code differs from it; "" outside git."""
    git = lambda *words: subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()
    try:
        changed = git("status", "--porcelain", "train.py", "eval.py", "minisoft", "weights")
        return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)
    except FileNotFoundError:
        return ""


def _age(path: Path) -> float:
    """Seconds since a file was written, for ever if there is none."""
    return time.time() - path.stat().st_mtime if path.is_file() else float("inf")


def read_flags(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m minisoft.lab.study", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--parts", default="findings", help=f"all, or some of {','.join(PARTS)}; findings always are one of "
                        "them (default findings)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind, seeds 0, 1, ... (default 3)")
    parser.add_argument("--jobs", type=int, default=2, help="cells at once, one thread each (default 2)")
    parser.add_argument("--list", action="store_true", help="print the commands that are known so far, run nothing")
    args = parser.parse_args(argv)
    args.parts = list(PARTS) if args.parts == "all" else args.parts.split(",")
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"--parts: expected all or some of {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: expected at least 1, found {getattr(args, name)}")
    args.out = args.out.resolve()
    return args


def main(argv=None) -> None:
    args = read_flags(argv)
    study = Study(args.out, args.seeds, args.jobs, args.list)
    shown = f"python -m minisoft.lab.findings {shlex.quote(str(args.out))} shows what is there"
    try:
        if not args.list:
            args.out.mkdir(parents=True, exist_ok=True)
            lock = state.lock(args.out)  # held to the end
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, study.stop)
        with tqdm(total=0, unit="cell", disable=args.list) as bar:
            for cells in study.stages(args.parts):
                if args.list:
                    print("\n".join(map(str, cells)))
                    if not all(cell.result.is_file() for cell in cells):
                        return print("# the commands that follow depend on the results of these")
                else:
                    study.run(cells, bar)
                    text = findings.write(args.out)
        if not args.list:
            lock.close()
            print(text)
    except (InputError, OSError) as error:
        sys.exit(f"minisoft.lab.study: error: {error}; {shown}")
    except KeyboardInterrupt:
        sys.exit(f"minisoft.lab.study: interrupted; the same command goes on; {shown}")


if __name__ == "__main__":
    main()
