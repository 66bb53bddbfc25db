"""Tables of a study (minisoft.lab.study): one for each question, differences with 95 % intervals
over seeds.

    python -m minisoft.lab.findings runs/study
    python -m minisoft.lab.tables runs/study/test/*.json --out runs/study       # pictures

± is the standard deviation over seeds.  A difference of two kinds is that of their means with
Welch's interval; one to the base, which has no seeds, has Student's of one sample.  What another
200 problems would change is not in them (eval.py's intervals have it).
"""

import json
import os
import re
from contextlib import suppress
from itertools import product
from pathlib import Path
from statistics import fmean, variance

import torch

from minisoft import evaluation
from minisoft.errors import InputError, expect
from minisoft.io.atomic import read_json, write_text
from minisoft.kinds import KINDS, PAPER
from minisoft.kinds.options import Option
from minisoft.lab import command, figures
from minisoft.lab.bench import processor
from minisoft.lab.tables import read_results
from minisoft.lab.trainings import TRAININGS
from minisoft.run.metrics import markdown
from minisoft.run.tables import cell, distinct, number, tables
from minisoft.run.world import as_program

T95 = (  # Student's 0.975 quantile for 1 ... 20 degrees of freedom
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
PUBLISHED = Path(__file__).with_name("paper.tsv")  # of the paper's Tables 2-5
NAMES = dict.fromkeys((*TRAININGS, *KINDS))
PERCENT = ("%", 100, 1)  # unit, its scale, digits
UNITS = {  # of fields that are no share
    "entropy": ("nats", 1, 3),
    "nll": ("nats a token", 1, 4),
    "support": ("tokens", 1, 2),
    "largest_weight": ("weight", 1, 3),
}


def student(freedom: int) -> float:
    return T95[min(freedom, len(T95)) - 1]


def difference(a: list[float], b: list[float] | float) -> tuple[float, float] | None:
    """(mean of a - mean of b, half its 95 % interval), by Welch, degrees of freedom rounded down; b
    may be a constant.  None where there are too few values."""
    b = [b, b] if isinstance(b, float) else b
    if min(len(a), len(b)) < 2:
        return None
    of_a, of_b = variance(a) / len(a), variance(b) / len(b)
    spread = of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1)
    freedom = (of_a + of_b) ** 2 / spread if spread else 1  # then the interval has no width
    return fmean(a) - fmean(b), student(int(freedom + 1e-9)) * (of_a + of_b) ** 0.5


def show_difference(a: list[float], b: list[float] | float, scale=100, digits: int = 1) -> str:
    measured = difference(a, b)
    if measured is None:
        return ""
    mean, half = measured
    if not half:
        return f"{scale * mean:+.{digits}f} (no spread)"
    low, high = scale * (mean - half), scale * (mean + half)
    return f"{scale * mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def text_of(tables: dict[str, list[list[str]]]) -> str:
    """{title: rows, the first one the head} as Markdown, without those that have a head only."""
    shown = {title: markdown(rows) for title, rows in tables.items() if rows[1:]}
    return "\n\n".join(f"**{title}**\n\n{table}" for title, table in shown.items())


def seeds(out: Path, run: str, suffix: str) -> dict[int, Path]:
    """{seed: path} of what is there of a study's runs OUT/RUN-sSEED."""
    ends = re.compile(rf"-s(\d+){re.escape(suffix)}$")  # not what was moved away
    paths = {ends.search(path.as_posix()): path for path in out.glob(f"{run}-s*{suffix}")}
    return dict(sorted((int(end[1]), path) for end, path in paths.items() if end))


class Results:
    """What is in the folder of a study: everything, and the tests of the base and of trainings."""

    def __init__(self, out: Path):
        self.out = out
        of_kinds = {kind: [*seeds(out, f"test/{kind}", ".json").values()] for kind in NAMES}
        self.tested = {kind: paths for kind, paths in of_kinds.items() if paths}
        self.runs = read_results([*out.glob("test/base.json"), *sum(self.tested.values(), [])])
        self.sets = distinct(self.runs, "data")

    def cell(self, kind: str, data: str, part: str) -> list[dict]:
        """The evaluations of all seeds of a kind, or of "base"; own-greedy and own-sample: in each
        kind's own inference (base: hard)."""
        own = TRAININGS[kind].tokens if kind in TRAININGS else "hard"
        return cell(self.runs, kind, data, part.replace("own", own))

    def values(self, kind: str, data: str, part: str, field: str) -> list[float]:
        return [x[field] for x in self.cell(kind, data, part) if field in x]

    def show(self, kind: str, data: str, part: str, field: str, minus: str = "") -> str:
        """Mean and standard deviation over seeds, of one run (the base) with its interval; or the
        difference to the kind `minus`, hard or base, or to that part of the same runs."""
        values, how = self.values(kind, data, part, field), UNITS.get(field, PERCENT)[1:]
        if not minus:
            return number(self.cell(kind, data, part), field, *how)
        if minus in ("base", "hard"):
            other = [] if kind in ("base", minus) else self.values(minus, data, part, field)
            exact = other[0] if minus == "base" and other else other  # it has no seeds
            return show_difference(values, exact, *how)
        other = self.values(kind, data, minus, field)
        gaps = [a - b for a, b in zip(values, other)] if len(values) == len(other) else []
        return show_difference(gaps, 0.0, *how)


def read_cells(out: Path) -> list[dict]:
    """The lines of OUT/cells.jsonl, one for each time that a cell was done or failed."""
    path, cells = out / "cells.jsonl", []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        with suppress(ValueError):  # one that a full disk has cut
            cells.append(json.loads(line))
    return cells


def facts(out: Path) -> str:
    """When and where: commit, hardware, minutes."""
    lines, (cpu, *_) = read_cells(out), processor(torch.device("cpu")).split(", ")
    minutes = sum(line["seconds"] for line in lines) / 60
    commits = ", ".join(dict.fromkeys(line["commit"] for line in lines))
    cells = f"{len({line['cell'] for line in lines})} cells of one thread"
    return (
        f"{cells}, {minutes:.0f} minutes in all, commits {commits};\n"
        f"{os.cpu_count()} x {cpu}, torch {torch.__version__.split('+')[0]}"
    )


def checkpoints(r: Results) -> str:
    """Which checkpoint of each run is its best by its own kind, and how good it was on validation
    problems, then and at the end; beside it the best of all by hard-greedy."""
    head = "tokens, seed, best at, best (%), last (%), hard-greedy there (%), the best hard-greedy"
    rows = [head.split(", ")]
    for name in NAMES:
        for seed, path in seeds(r.out, f"train/{name}", "/summary.json").items():
            summary, lines = read_json(path), figures.read_metrics(path.with_name("metrics.jsonl"))
            own, hard = (figures.series(lines, x) for x in ("validation", "validation_hard"))
            if own:
                best = summary["best_step"]  # the untrained model's, 0, has no line of its own
                shown = [summary["validation"], [*own.values()][-1], hard.get(best)]
                shown.append(max(hard.values(), default=None))
                cells = ["" if share is None else f"{100 * share:.1f}" for share in shown]
                rows.append([name, str(seed), str(best), *cells])
    return markdown(rows) if rows[1:] else ""


def compare(r: Results, parts, fields) -> str:
    """For each data set, part and field a table of the base and every training, with the
    differences to hard training, to the base, and to hard inference of the same runs."""
    tables = {}
    for data, part, field in product(r.sets, parts, fields):
        kind, _, how = part.partition("-")
        others = {"- hard": "hard", "- base": "base", "- hard inference": f"hard-{how}"}
        if kind in ("hard", "choices"):
            del others["- hard inference"]
        rows = [["training", "runs", UNITS.get(field, PERCENT)[0], *others]]
        for name in ("base", *r.tested):
            cells = [r.show(name, data, part, field, minus) for minus in ("", *others.values())]
            if any(cells):
                rows.append([name, str(len(r.cell(name, data, part))), *cells])
        tables[", ".join((data, part, field)).replace("choices, ", "")] = rows
    return text_of(tables)


def plain(name: str) -> str:
    """What the paper's name of a set or model and that of a file, a folder or the hub have in
    common: gsm8k of GSM8K and data/gsm8k_test.jsonl, math of MATH/train."""
    more = "train|test|validation|challenge|hendrycks|preview|dataset|jsonl?$|parquet$|[^a-z0-9]"
    words = (re.sub(more, "", part.lower()) for part in reversed(Path(name).parts))
    return next(filter(None, words), "")


def published(r: Results) -> str:
    """Of each measure ours, and the paper's numbers of the same model, data and sets; where it has
    none of these, all of its numbers."""
    head, *lines = (x.split("\t") for x in PUBLISHED.read_text("utf-8").splitlines())
    config = next((read_json(path) for path in r.out.glob("train/*/config.json")), {})
    own, sets = [plain(config.get(name, "")) for name in ("model", "data")], [*map(plain, r.sets)]
    same = [
        line
        for line in lines
        if own == [plain(f"{line[1]}-Instruct"), plain(line[2])] and plain(line[3]) in sets
    ]
    found = {}
    for measure, model, trained, tested, *numbers in (same or lines) if r.tested else ():
        rows = found.setdefault(measure, [["where", *head[4:]]])
        rows.append([f"{model} ({trained}), {tested}", *numbers])
    for measure, rows in found.items():
        part, field = measure.split() if " " in measure else ("choices", "nll")
        ours = [[x, *(r.show(kind, x, part, field) for kind in ("base", *PAPER))] for x in r.sets]
        rows[1:1] = [[f"here, {x}", *cells] for x, *cells in ours if any(cells)]
    return text_of(found)


def sections(r: Results) -> dict[str, str]:
    """{title: tables, "" without a number for them}"""
    greedy, sample = ([f"{x}-{how}" for x in (*PAPER, "own")] for how in ("greedy", "sample"))
    some_k = [f"pass@{k}" for k in (1, 4, 16, 32)]
    likelihood = "Finding 3: likelihood of the right answer, out of domain"
    softness = "Are they soft? Tokens at a position of the CoT"
    return {
        "Training and inference": tables(r.runs),
        "Best checkpoints, which are what is tested": checkpoints(r),
        "Finding 1: greedy pass@1": compare(r, greedy, ["pass@1"]),
        "Finding 2: pass@k under hard-sample inference": compare(r, ["hard-sample"], some_k),
        likelihood: compare(r, ["choices"], ["nll", "accuracy"]),
        "Finding 4: entropy": compare(r, ["hard-sample"], ["entropy"]),
        "Finding 5: the best inference, beside those above": compare(
            r, sample[1:], ["pass@1", "pass@32"]
        ),
        softness: compare(r, ["own-sample"], evaluation.SOFTNESS),
        "The paper's numbers": published(r),
    }


def place(out: Path) -> Path:
    """OUT/study.md.  Raises InputError where it is not of an earlier call."""
    path = out / "study.md"
    ours = not path.exists() or path.read_text("utf-8", errors="replace").startswith("# Study\n")
    expect(ours, path, command.EARLIER, path.name)
    return path


def write(out: Path) -> str:
    """`place` from what is there; returns the tables and where they are.  Raises InputError,
    OSError."""
    found = sections(Results(out))
    text = "\n\n".join(f"## {title}\n\n{tables}" for title, tables in found.items() if tables)
    if not text:
        raise InputError(f"{out}: expected results of minisoft.lab.study, found none")
    write_text(place(out), f"# Study\n\n{facts(out)}\n\n{text}\n")
    return f"{text}\n\nwritten: {place(out)}"


def main(argv=None) -> None:
    study = Option("out", Path, "OUT of minisoft.lab.study", metavar="STUDY", positional=True)
    with command.one_line("findings"):
        print(write(command.read("findings", __doc__, [study], argv).out))


if __name__ == "__main__":
    as_program(main)
