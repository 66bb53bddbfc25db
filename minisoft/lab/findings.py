"""Tables and pictures of a study (minisoft.lab.study): one table for each question, differences with 95 % intervals over seeds.

    python -m minisoft.lab.findings runs/study

± is the standard deviation over seeds.  A difference of two kinds is that of their means over seeds with Welch's interval; a
difference to the base, which has no seeds, has Student's interval of one sample.  Intervals are over seeds only: all models
meet the same problems, and what another 200 of these would change is not in them (eval.py's intervals have it).
"""

import argparse
import json
import os
import platform
import sys
from itertools import product
from pathlib import Path
from statistics import fmean, median, stdev, variance

import torch

from minisoft.errors import InputError
from minisoft.io.atomic import read_json, write_text
from minisoft.lab import figures
from minisoft.lab.figures import cell
from minisoft.lab.tables import number, read_results, table
from minisoft.soft import KINDS

T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
       2.110, 2.101, 2.093, 2.086)  # Student's 0.975 quantile for 1 ... 20 degrees of freedom
PROBLEMS, SKILLS = ("tiny-test", "tiny-long"), ("tiny-facts", "tiny-sorting", "tiny-drills", "tiny-references")


def student(freedom: int) -> float:
    return T95[min(freedom, len(T95)) - 1]


def difference(a: list[float], b: list[float] | float) -> tuple[float, float] | None:
    """(mean of a - mean of b, half its 95 % interval), by Welch, degrees of freedom rounded down; b may be a constant.  None
    where there are too few values."""
    if isinstance(b, float):
        return (fmean(a) - b, student(len(a) - 1) * stdev(a) / len(a) ** .5) if len(a) > 1 else None
    if min(len(a), len(b)) < 2:
        return None
    of_a, of_b = variance(a) / len(a), variance(b) / len(b)
    spread = of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1)
    freedom = (of_a + of_b) ** 2 / spread if spread else 1  # without any spread the interval has no width
    return fmean(a) - fmean(b), student(int(freedom + 1e-9)) * (of_a + of_b) ** .5


def show_mean(values: list[float], scale: float = 100, digits: int = 1) -> str:
    statistics = (fmean, stdev)[: len(values)]  # of no values none, of one no deviation
    return " ± ".join(f"{scale * of(values):.{digits}f}" for of in statistics)


def show_difference(a: list[float], b: list[float] | float, scale: float = 100, digits: int = 1) -> str:
    found = difference(a, b)
    if found is None:
        return ""
    if not found[1]:
        return f"{scale * found[0]:+.{digits}f} (no spread)"
    low, high = (scale * (found[0] + sign * found[1]) for sign in (-1, 1))
    return f"{scale * found[0]:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def show_error(signal: dict, name: str, digits: int = 3) -> str:
    """A number of minisoft.lab.gradient with its standard error."""
    return f"{signal[name]:.{digits}f} ± {signal[name + '_error']:.{digits}f}"


class Results:
    """What is in the folder of a study: everything, and the tests of the base and of `kinds` of training, hard the first."""

    def __init__(self, out: Path, kinds: tuple[str, ...] = KINDS, tests: str = "test"):
        self.out, self.kinds = out, kinds
        self.tested = sorted(path for kind in kinds for path in out.glob(f"{tests}/{kind}-s*.json"))
        self.runs = read_results([*out.glob("test/base.json"), *self.tested])

    def values(self, kind: str, data: str, part: str, field: str) -> list[float]:
        """A field of the evaluations of all seeds of a kind, or of "base"."""
        return [numbers[field] for numbers in cell(self.runs, kind, data, part) if field in numbers]

    def after(self, pattern: str, setting: str = "hard-greedy") -> list[float]:
        """Greedy test accuracy after training, from the summaries of runs."""
        return [read_json(path)["after"][setting]["pass@1"] for path in sorted(self.out.glob(f"{pattern}/summary.json"))]

    def gradient(self, name: str) -> dict | None:
        return read_json(self.out / f"gradient/{name}.json") or None

    def compare(self, title: str, rows, scale: float = 100, digits: int = 1) -> str:
        """A table with a row for each (name, data, part, field): base, kinds, and differences; "" without results."""
        if not self.runs:
            return ""
        found = [[title, "base", *self.kinds, *(f"{kind} - hard" for kind in self.kinds[1:]),
                  *(f"{kind} - base" for kind in self.kinds)]]
        for name, *where in rows:
            base, *trained = (self.values(who, *where) for who in ("base", *self.kinds))
            of = lambda a, b: show_difference(a, b, scale, digits)
            found.append([name, *(show_mean(v, scale, digits) for v in (base, *trained)),
                          *(of(values, trained[0]) for values in trained[1:]),
                          *(of(values, base[0]) if base else "" for values in trained)])
        return table(found)

    def summary(self) -> str:
        """The findings in one table of numbers in % and one of nats; "" if nothing was tested."""
        shares = [(f"{data}, {part}, {field}", data, part, field) for data in PROBLEMS for part, field in (
            ("hard-greedy", "pass@1"), ("soft-greedy", "pass@1"), ("hard-sample", "pass@1"), ("hard-sample", "pass@32"))]
        nats = [(f"{data}, NLL", data, "choices", "nll") for data in SKILLS] + [
            (f"{data}, entropy", data, "hard-sample", "entropy") for data in PROBLEMS]
        return self.compare("%", shares) + "\n\n" + self.compare("nats", nats, 1, 4) if self.tested else ""


def read_cells(out: Path) -> list[dict]:
    """The lines of OUT/cells.jsonl, one for each time that a cell was done or failed."""
    path = out / "cells.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def facts(out: Path) -> str:
    """When and where: commit, hardware, minutes."""
    lines = read_cells(out)
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), "") if Path("/proc/cpuinfo").is_file() else platform.processor()
    minutes = sum(line["seconds"] for line in lines) / 60
    commits = ", ".join(dict.fromkeys(line["commit"] for line in lines))
    return (f"{len({line['cell'] for line in lines})} cells of one thread, {minutes:.0f} minutes in all (two at a time; those "
            f"done again included), commits {commits}; {os.cpu_count()} x {cpu}, torch {torch.__version__.split('+')[0]}")


def validations(run: Path) -> dict[int, float]:
    """{update: hard-greedy accuracy on validation problems}"""
    rows = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return {row["step"]: row["validation"] for row in rows if "validation" in row}


def last_validations(run: Path) -> float:
    """Mean of the last two validations of a run, so that neither a lucky one counts nor a run that collapses."""
    return fmean(list(validations(run).values())[-2:])


def sweep(r: Results) -> str:
    found: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        for path in r.out.glob(f"sweep/{kind}-*/summary.json"):
            found[kind][path.parent.name.removeprefix(f"{kind}-")] = last_validations(path.parent)
    rates = sorted({lr for of in found.values() for lr in of}, key=float)
    show = lambda kind, lr: f"{100 * found[kind][lr]:.1f}" if lr in found[kind] else ""
    return table([["tokens", *rates]] + [[kind, *(show(kind, lr) for lr in rates)] for kind in KINDS]) if rates else ""


def parity(r: Results) -> str:
    return r.compare("greedy pass@1 (%)", [(f"{data}, {part}", data, part, "pass@1") for data in PROBLEMS
                                           for part in (f"{kind}-greedy" for kind in KINDS)])


def diversity(r: Results) -> str:
    return r.compare("hard-sample (%)", [(f"{data}, pass@{k}", data, "hard-sample", f"pass@{k}")
                                         for data in PROBLEMS for k in (1, 4, 16, 32)])


def likelihood(r: Results) -> str:
    return r.compare("NLL of the right answer (nats per token)",
                     [(data, data, "choices", "nll") for data in SKILLS], 1, 4) + "\n\n" * bool(r.runs) + r.compare(
        "accuracy (%)", [(data, data, "choices", "accuracy") for data in SKILLS])


def profile(r: Results) -> str:
    return r.compare("entropy of hard-sampled CoTs (nats)",
                     [(data, data, "hard-sample", "entropy") for data in PROBLEMS], 1, 3)


def trajectory(r: Results, kind: str, seed: int) -> list[dict]:
    """greedy, sample (pass@1 on tiny-test) and entropy (nats), all of hard inference, of the base and a run's checkpoints, in
    the order of updates; of top-5 runs, the best checkpoint only."""
    found = []
    for path in (r.out / "test/base.json", r.out / f"{_measured(kind)}/{kind}-s{seed}.json"):
        for run in read_json(path).get("runs", []):
            if run["data"] == "tiny-test":
                greedy, sample = (run["settings"][f"hard-{how}"] for how in ("greedy", "sample"))
                found.append({"greedy": greedy["pass@1"], "sample": sample["pass@1"], "entropy": sample["entropy"]})
    return found


def seeds(r: Results, kind: str) -> list[int]:
    return sorted(int(path.stem.rpartition("-s")[2]) for path in r.out.glob(f"{_measured(kind)}/{kind}-s*.json"))


def _measured(kind: str) -> str:
    """The folder with what was measured along the runs of a kind."""
    return "checkpoints" if kind in KINDS else "test"


def at_accuracy(points: list[dict], how: str, accuracy: float) -> float | None:
    """Entropy where a run's path first crosses an accuracy, linear in between; None if never."""
    for p, q in zip(points, points[1:]):
        if p[how] <= accuracy <= q[how] and q[how] > p[how]:
            return p["entropy"] + (q["entropy"] - p["entropy"]) * (accuracy - p[how]) / (q[how] - p[how])
    return None


def matched(r: Results) -> str:
    """Entropy of the runs of other kinds where they are most accurate (on these problems), if more so than the base, beside
    that of the hard run of the same seed where it was as accurate."""
    rows = [["tokens", "matched by", "runs", "accuracy (%)", "entropy (nats)", "of the hard runs there", "difference"]]
    for kind, how in product(("soft", "fuzzy", "top-5"), ("greedy", "sample")):
        found, both = [], sorted(set(seeds(r, kind)) & set(seeds(r, "hard")))
        for seed in both:
            base, *points = trajectory(r, kind, seed)
            best = max(points, key=lambda point: point[how])
            other = at_accuracy(trajectory(r, "hard", seed), how, best[how])
            if other is not None and best[how] > base[how]:
                found.append((best[how], best["entropy"], other))
        if found:
            accuracy, own, other = map(list, zip(*found))
            gaps = [a - b for a, b in zip(own, other)]
            rows.append([kind, f"hard-{how} pass@1", f"{len(found)} of {len(both)}", show_mean(accuracy),
                         show_mean(own, 1, 3), show_mean(other, 1, 3), show_difference(gaps, 0.0, 1, 3)])
    return table(rows) if len(rows) > 1 else ""


def inference(r: Results) -> str:
    """Which inference is best, for each kind of training."""
    tables = []
    for part, field in (("greedy", "pass@1"), ("sample", "pass@1"), ("sample", "pass@32")):
        rows = [[f"{part}, {field} (%)", "data", *(f"{kind} inference" for kind in KINDS), "soft - hard", "fuzzy - hard"]]
        for who, data in product(("base", *KINDS), PROBLEMS):
            hard, soft, fuzzy = (r.values(who, data, f"{kind}-{part}", field) for kind in KINDS)
            gap = lambda other: show_difference([b - a for a, b in zip(hard, other)], 0.0)  # of the same runs
            rows.append([f"{who} trained" if who != "base" else who, data, *(number(cell(
                r.runs, who, data, f"{kind}-{part}"), field) for kind in KINDS), gap(soft), gap(fuzzy)])
        tables.append(table(rows))
    return "\n\n".join(tables) if r.runs else ""


def checkpoints(r: Results) -> str:
    """Which checkpoint of each run is its best, and how good it was on validation problems, then and at the end."""
    rows = [["tokens", "seed", "best at update", "validation there (%)", "at the last update (%)"]]
    for kind in KINDS:
        for path in sorted(r.out.glob(f"train/{kind}-s*/summary.json")):
            found = validations(path.parent)
            if found:
                best = max(found, key=found.get)  # the first of equals
                rows.append([kind, path.parent.name.rpartition("-s")[2], str(best), f"{100 * found[best]:.1f}",
                             f"{100 * list(found.values())[-1]:.1f}"])
    return table(rows) if len(rows) > 1 else ""


def longer(r: Results) -> str:
    """The findings after three times the updates."""
    return Results(r.out, tests="longer-test").summary()


def learned(r: Results) -> str:
    """The findings for soft tokens that learn nearly as well as hard ones: with noise on the five best logits."""
    found = Results(r.out, ("hard", "top-5"))
    return found.summary() if any("top-5" in path.name for path in found.tested) else ""


def sources(r: Results) -> str:
    rows = [["tokens", "update", "batches", "terms", "norm in E", "norm in the body", "cosine in E", "cosine in the body",
             "snr, all"]]
    places = [*((kind, kind, step) for kind, step in product(KINDS, (0, 30, 60))),
              ("soft, noise on the 5 best logits", "top-5", 0), ("soft, noise on all logits", "logits", 0)]
    for (name, file, step), term in product(places, ("cot", "answer")):
        if found := r.gradient(f"{file}-{step}"):
            E, body, whole = (found["signal"][term][part] for part in ("E", "body", "all"))
            rows.append([name, str(step), str(found["batches"]), term, f"{E['norm']:.3g}", f"{body['norm']:.3g}",
                         show_error(E, "cosine"), show_error(body, "cosine"), show_error(whole, "snr")])
    return table(rows) if len(rows) > 1 else ""


def ablation(r: Results) -> str:
    rows = [["tokens", "both", "CoT only", "answer only", "CoT only - both", "answer only - both"]]
    for kind in ("hard", "soft"):
        both, cot, answer = map(r.after, (f"train/{kind}-s*", f"ablation/{kind}-cot-s*", f"ablation/{kind}-answer-s*"))
        rows.append([kind, show_mean(both), show_mean(cot), show_mean(answer), show_difference(cot, both),
                     show_difference(answer, both)])
    return table(rows) if list(r.out.glob("ablation/*/summary.json")) else ""


def relative_variance(one: dict | None, other: dict | None) -> str:
    """Mean squared norm of one measurement's gradients over that of another's, on as many batches, with its standard error
    (jackknife): where both have the same mean and next to no signal, the ratio of their variances."""
    if not one or not other:
        return ""
    a, b = (torch.tensor(found["norms"], dtype=torch.float64).square() for found in (one, other))
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    without = (a.sum() - a) / (b.sum() - b)  # (n,), each without one batch
    return f"{a.sum() / b.sum():.2f} ± {((n - 1) / n * (without - without.mean()).square().sum()).sqrt():.2f}"


def remedies(r: Results) -> str:
    rows = [["estimator", "snr, base", "snr, soft's weights at update 30", "E|g|^2 / rloo's, base", "and at 30",
             "hard-greedy after (%)", "difference", "seconds an update"]]
    rloo = r.after("train/soft-s*")
    tried = {path.parent.name.rpartition("-s")[0] for path in r.out.glob("variance/*/summary.json")}
    measured = {path.stem.rpartition("-")[0] for path in r.out.glob("gradient/*-0.json")}
    for name in ("rloo", *sorted(tried | measured - set(KINDS))):
        place = "train/soft" if name == "rloo" else f"variance/{name}"
        signal = lambda step: r.gradient(f"{'soft' if name == 'rloo' else name}-{step}")
        snr = [show_error(g["signal"]["both"]["all"], "snr", 4) if (g := signal(step)) else "" for step in (0, 30)]
        found = r.after(f"{place}-s*")
        ratios = ["" if name in ("rloo", "top-5", "logits") else relative_variance(signal(step), r.gradient(f"soft-{step}"))
                  for step in (0, 30)]  # noise on logits has another mean
        rows.append([name, *snr, *ratios, show_mean(found), "" if name == "rloo" else show_difference(found, rloo),
                     show_mean(seconds(r.out.glob(f"{place}-s*/metrics.jsonl")), 1, 2)])
    return table(rows) if len(rows) > 2 else ""


def seconds(paths) -> list[float]:
    """The median seconds of an update of each run."""
    return [median(json.loads(line)["seconds"] for line in path.read_text("utf-8").splitlines()) for path in sorted(paths)]


def fuzzy(r: Results) -> str:
    rows = [["fuzzy tokens", "CoT positions that still move", "tied in bfloat16", "CoT norm in E", "CoT norm in the body",
             "cosine in E", "cosine in the body", "hard-greedy after (%)", "difference to tau 0.0001"]]
    paper = r.after("train/fuzzy-s*")
    for name, gradient, runs in (
            ("tau 0.0001", "fuzzy-0", "train/fuzzy-s*"), ("tau 0.01", "fuzzy-tau-0.01", "fuzzy/tau-0.01-s*"),
            ("tau 0.1", "fuzzy-tau-0.1", "fuzzy/tau-0.1-s*"), ("soft, tau 0.5", "soft-0", "train/soft-s*"),
            ("tau 0.0001, logits in bfloat16", "fuzzy-bfloat16", "fuzzy/bfloat16-s*")):
        if found := r.gradient(gradient):
            E, body = (found["signal"]["cot"][part] for part in ("E", "body"))
            rows.append([name, f"{found['ties']['still_moving']:.2%}", f"{found['ties']['tied_in_bfloat16']:.2%}",
                         f"{E['norm']:.3g}", f"{body['norm']:.3g}", show_error(E, "cosine"), show_error(body, "cosine"),
                         show_mean(r.after(runs)), "" if len(rows) == 1 else show_difference(r.after(runs), paper)])
    return table(rows) if len(rows) > 2 else ""


SECTIONS = (
    ("Learning rates: hard-greedy validation (%), mean of the last two", sweep),
    ("Best checkpoints, which are what is tested", checkpoints),
    ("Finding 1: greedy pass@1", parity), ("Finding 2: pass@k under hard-sample inference", diversity),
    ("Finding 3: likelihood out of domain", likelihood), ("Finding 4: entropy", profile),
    ("Finding 4 at matched accuracy", matched), ("Finding 5: the best inference", inference),
    ("Three times the updates", longer), ("Where the gradient comes from", sources),
    ("Which terms learn: hard-greedy after training (%), on train.py's own 200 test problems", ablation),
    ("Remedies for the variance of soft tokens", remedies),
    ("Soft tokens that learn: noise on the five best logits", learned), ("When fuzzy tokens can learn", fuzzy))


def pictures(r: Results) -> dict:
    """{file name: Figure}"""
    runs = {kind: [figures.read_run(path.parent)[1] for path in sorted(r.out.glob(f"train/{kind}-s*/summary.json"))]
            for kind in KINDS}
    runs = {kind: seeds for kind, seeds in runs.items() if seeds}
    order = sorted(r.runs, key=lambda run: ("base", *KINDS).index(run["label"]))
    problems = [run for run in order if run["data"] in PROBLEMS]
    gradients = {kind: {step: found["signal"] for step in (0, 30, 60) if (found := r.gradient(f"{kind}-{step}"))}
                 for kind in KINDS}
    paths = {kind: [trajectory(r, kind, seed) for seed in seeds(r, kind)] for kind in KINDS}
    return {"training.png": figures.training(runs) if runs else None, "pass_at_k.png": figures.pass_at_k(problems),
            "entropy.png": figures.entropy(problems),
            "gradient.png": figures.gradient(gradients) if any(gradients.values()) else None,
            "matched.png": figures.matched(paths) if any(paths.values()) else None}


def write(out: Path) -> str:
    """OUT/study.md and pictures from what is there; returns the tables and where they are.  Raises InputError, OSError."""
    r = Results(out)
    parts = [f"## {title}\n\n{text}" for title, make in SECTIONS if (text := make(r))]
    if not parts:
        raise InputError(f"{out}: expected results of minisoft.lab.study, found none")
    write_text(out / "study.md", f"# Study\n\n{facts(out)}\n\n" + "\n\n".join(parts) + "\n")
    try:
        for name, figure in pictures(r).items():
            if figure:
                figure.savefig(out / name, dpi=110)
    except ImportError as error:
        print(f"minisoft.lab.study: pictures need the extra `plot`: pip install matplotlib ({error})", file=sys.stderr)
    return "\n\n".join(parts) + f"\n\nwritten: {out / 'study.md'}"


def main(argv=None) -> None:
    parser = argparse.ArgumentParser("python -m minisoft.lab.findings", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="STUDY", help="folder of python -m minisoft.lab.study --out")
    args = parser.parse_args(argv)
    try:
        print(write(args.out))
    except (InputError, OSError) as error:
        sys.exit(f"minisoft.lab.findings: error: {error}")


if __name__ == "__main__":
    main()
