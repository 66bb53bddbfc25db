"""Tables and pictures of a study (minisoft.lab.study): one table for each question, differences
with 95 % intervals over seeds.

    python -m minisoft.lab.findings runs/study

± is the standard deviation over seeds.  A difference of two kinds is that of their means over seeds
with Welch's interval; a difference to the base, which has no seeds, has Student's interval of one
sample.  Intervals are over seeds only: all models meet the same problems, and what another 200 of
these would change is not in them (eval.py's intervals have it).

Below, every function that takes Results gives Markdown, "" where nothing was measured.
"""

import json
import os
import platform
import sys
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean, median, stdev, variance

import torch

from minisoft.errors import InputError
from minisoft.io.atomic import read_json, write_text
from minisoft.kinds import PAPER
from minisoft.lab import command, figures
from minisoft.lab.tables import Column, cell, number, read_results
from minisoft.training.metrics import markdown
from minisoft.training.world import as_program

T95 = (  # Student's 0.975 quantile for 1 ... 20 degrees of freedom
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
PROBLEMS = ("tiny-test", "tiny-long")
SKILLS = ("tiny-facts", "tiny-sorting", "tiny-drills", "tiny-references")
LADDER = ("2.5e-5", "5e-5", "1e-4", "2e-4", "4e-4", "8e-4", "1.6e-3", "3.2e-3")  # learning rates


@dataclass(frozen=True)
class Remedy:
    """Something against the variance of soft tokens: flags of train.py and minisoft.lab.gradient.
    Of gradients with one mean variances are compared."""

    name: str
    flags: tuple[str, ...]
    same_mean: bool = False


REMEDIES = (
    Remedy("64x8", ("--prompts", "64", "--group", "8"), same_mean=True),  # as many samples
    Remedy("logits", ("--noise", "logits", "--tau", "1.0")),
    Remedy("top-5", ("--noise", "logits", "--top-k", "5")),  # appendix F.2
)


def student(freedom: int) -> float:
    return T95[min(freedom, len(T95)) - 1]


def difference(a: list[float], b: list[float] | float) -> tuple[float, float] | None:
    """(mean of a - mean of b, half its 95 % interval), by Welch, degrees of freedom rounded down; b
    may be a constant.  None where there are too few values."""
    if isinstance(b, float):
        if len(a) < 2:
            return None
        return fmean(a) - b, student(len(a) - 1) * stdev(a) / len(a) ** 0.5
    if min(len(a), len(b)) < 2:
        return None
    of_a, of_b = variance(a) / len(a), variance(b) / len(b)
    spread = of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1)
    freedom = (of_a + of_b) ** 2 / spread if spread else 1  # then the interval has no width
    return fmean(a) - fmean(b), student(int(freedom + 1e-9)) * (of_a + of_b) ** 0.5


def show_mean(values: list[float], scale: float = 100, digits: int = 1) -> str:
    statistics = (fmean, stdev)[: len(values)]  # of no values none, of one no deviation
    return " ± ".join(f"{scale * of(values):.{digits}f}" for of in statistics)


def show_difference(a: list[float], b: list[float] | float, scale=100, digits: int = 1) -> str:
    measured = difference(a, b)
    if measured is None:
        return ""
    mean, half = measured
    if not half:
        return f"{scale * mean:+.{digits}f} (no spread)"
    low, high = scale * (mean - half), scale * (mean + half)
    return f"{scale * mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def show_error(signal: dict, name: str, digits: int = 3) -> str:
    """A number of minisoft.lab.gradient with its standard error."""
    return f"{signal[name]:.{digits}f} ± {signal[name + '_error']:.{digits}f}"


def filled(rows: list[list[str]]) -> str:
    """The table, "" if it has a head only."""
    return markdown(rows) if len(rows) > 1 else ""


def seeds(out: Path, run: str, suffix: str) -> dict[int, Path]:
    """{seed: path} of what is there of a study's runs OUT/RUN-sSEED."""
    paths = {}
    for path in out.glob(f"{run}-s*{suffix}"):
        seed = path.relative_to(out).as_posix().removeprefix(f"{run}-s").removesuffix(suffix)
        paths[int(seed)] = path
    return dict(sorted(paths.items()))


class Results:
    """What is in the folder of a study: everything, and the tests of the base and of `kinds` of
    training, hard the first."""

    def __init__(self, out: Path, kinds: tuple[str, ...] = PAPER, tests: str = "test"):
        self.out, self.kinds = out, kinds
        of_kinds = {kind: list(seeds(out, f"{tests}/{kind}", ".json").values()) for kind in kinds}
        self.tested = {kind: paths for kind, paths in of_kinds.items() if paths}
        self.runs = read_results([*out.glob("test/base.json"), *sum(self.tested.values(), [])])

    def values(self, kind: str, data: str, part: str, field: str) -> list[float]:
        """A field of the evaluations of all seeds of a kind, or of "base"."""
        cells = cell(self.runs, kind, data, part)
        return [numbers[field] for numbers in cells if field in numbers]

    def after(self, run: str) -> list[float]:
        """Hard-greedy test accuracy after training of all seeds, from the summaries of runs."""
        paths = seeds(self.out, run, "/summary.json").values()
        return [read_json(path)["after"]["hard-greedy"]["pass@1"] for path in paths]

    def gradient(self, name: str) -> dict | None:
        return read_json(self.out / f"gradient/{name}.json") or None

    def compare(self, title: str, rows, scale: float = 100, digits: int = 1) -> str:
        """A row for each (name, data, part, field): base, kinds, and differences."""
        if not self.runs:
            return ""
        to_hard = [f"{kind} - hard" for kind in self.kinds[1:]]
        lines = [[title, "base", *self.kinds, *to_hard, *(f"{kind} - base" for kind in self.kinds)]]
        for name, *where in rows:
            base, *trained = (self.values(kind, *where) for kind in ("base", *self.kinds))
            line = [name, *(show_mean(values, scale, digits) for values in (base, *trained))]
            for values in trained[1:]:
                line.append(show_difference(values, trained[0], scale, digits))
            for values in trained:
                line.append(show_difference(values, base[0], scale, digits) if base else "")
            lines.append(line)
        return markdown(lines)

    def summary(self) -> str:
        """The findings in one table of numbers in % and one of nats."""
        if not self.tested:
            return ""
        parts = [("hard-greedy", 1), ("soft-greedy", 1), ("hard-sample", 1), ("hard-sample", 32)]
        shares = [
            (f"{data}, {part}, pass@{k}", data, part, f"pass@{k}")
            for data, (part, k) in product(PROBLEMS, parts)
        ]
        nats = [(f"{data}, NLL", data, "choices", "nll") for data in SKILLS]
        nats += [(f"{data}, entropy", data, "hard-sample", "entropy") for data in PROBLEMS]
        return self.compare("%", shares) + "\n\n" + self.compare("nats", nats, 1, 4)


def read_cells(out: Path) -> list[dict]:
    """The lines of OUT/cells.jsonl, one for each time that a cell was done or failed."""
    path = out / "cells.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def facts(out: Path) -> str:
    """When and where: commit, hardware, minutes."""
    lines, cpu, info = read_cells(out), platform.processor(), Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else ""
    minutes = sum(line["seconds"] for line in lines) / 60
    commits = ", ".join(dict.fromkeys(line["commit"] for line in lines))
    return (
        f"{len({line['cell'] for line in lines})} cells of one thread, {minutes:.0f} minutes in "
        f"all (two at a time; those done again included), commits {commits}; "
        f"{os.cpu_count()} x {cpu}, torch {torch.__version__.split('+')[0]}"
    )


def read_metrics(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def last_validations(run: Path) -> float:
    """Mean of the last two hard-greedy validations of a run, so that neither a lucky one counts nor
    a run that collapses."""
    accuracy = figures.greedy_accuracy(read_metrics(run / "metrics.jsonl"))
    return fmean(list(accuracy.values())[-2:])


def sweep(r: Results) -> str:
    reached = {}
    for kind, rate in product(PAPER, LADDER):
        run = r.out / f"sweep/{kind}-{rate}"
        if (run / "summary.json").is_file():
            reached[kind, rate] = f"{100 * last_validations(run):.1f}"
    rates = [rate for rate in LADDER if any((kind, rate) in reached for kind in PAPER)]
    rows = [[kind, *(reached.get((kind, rate), "") for rate in rates)] for kind in PAPER]
    return markdown([["tokens", *rates], *rows]) if rates else ""


def parity(r: Results) -> str:
    rows = [
        (f"{data}, {kind}-greedy", data, f"{kind}-greedy", "pass@1")
        for data, kind in product(PROBLEMS, PAPER)
    ]
    return r.compare("greedy pass@1 (%)", rows)


def diversity(r: Results) -> str:
    rows = [
        (f"{data}, pass@{k}", data, "hard-sample", f"pass@{k}")
        for data, k in product(PROBLEMS, (1, 4, 16, 32))
    ]
    return r.compare("hard-sample (%)", rows)


def likelihood(r: Results) -> str:
    nll = [(data, data, "choices", "nll") for data in SKILLS]
    accuracy = [(data, data, "choices", "accuracy") for data in SKILLS]
    title = "NLL of the right answer (nats per token)"
    texts = [r.compare(title, nll, 1, 4), r.compare("accuracy (%)", accuracy)]
    return "\n\n".join(filter(None, texts))


def profile(r: Results) -> str:
    rows = [(data, data, "hard-sample", "entropy") for data in PROBLEMS]
    return r.compare("entropy of hard-sampled CoTs (nats)", rows, 1, 3)


def trajectories(r: Results, kind: str) -> dict[int, list[dict]]:
    """{seed: path}: greedy, sample (pass@1 on tiny-test) and entropy (nats), all of hard inference,
    of the base and a run's checkpoints, in the order of updates; of top-5 runs, the best only."""
    measured = "checkpoints" if kind in PAPER else "test"
    paths = {}
    for seed, path in seeds(r.out, f"{measured}/{kind}", ".json").items():
        runs = read_json(r.out / "test/base.json").get("runs", []) + read_json(path)["runs"]
        settings = [run["settings"] for run in runs if run["data"] == "tiny-test"]
        paths[seed] = [_point(hard["hard-greedy"], hard["hard-sample"]) for hard in settings]
    return paths


def _point(greedy: dict, sample: dict) -> dict[str, float]:
    entropy = sample["entropy"]
    return {"greedy": greedy["pass@1"], "sample": sample["pass@1"], "entropy": entropy}


def at_accuracy(points: list[dict], how: str, accuracy: float) -> float | None:
    """Entropy where a run's path first crosses an accuracy, linear in between; None if never."""
    for p, q in pairwise(points):
        if p[how] <= accuracy <= q[how] and q[how] > p[how]:
            share = (accuracy - p[how]) / (q[how] - p[how])
            return p["entropy"] + (q["entropy"] - p["entropy"]) * share
    return None


def matched(r: Results) -> str:
    """Entropy of the runs of other kinds where they are most accurate (on these problems), if more
    so than the base, beside that of the hard run of the same seed where it was as accurate."""
    head = (
        "tokens, matched by, runs, accuracy (%), entropy (nats), of the hard runs there, difference"
    )
    rows, hard = [head.split(", ")], trajectories(r, "hard")
    for kind, how in product(("soft", "fuzzy", "top-5"), ("greedy", "sample")):
        runs = {seed: run for seed, run in trajectories(r, kind).items() if seed in hard}
        accuracy, own, other, gaps = [], [], [], []
        for seed, (base, *points) in runs.items():
            best = max(points, key=lambda point: point[how])
            entropy = at_accuracy(hard[seed], how, best[how])
            if entropy is not None and best[how] > base[how]:
                accuracy.append(best[how])
                own.append(best["entropy"])
                other.append(entropy)
                gaps.append(best["entropy"] - entropy)
        if gaps:
            entropies = [show_mean(own, 1, 3), show_mean(other, 1, 3)]
            difference = show_difference(gaps, 0.0, 1, 3)
            count = f"{len(gaps)} of {len(runs)}"
            name = f"hard-{how} pass@1"
            rows.append([kind, name, count, show_mean(accuracy), *entropies, difference])
    return filled(rows)


def inference(r: Results) -> str:
    """Which inference is best, for each kind of training."""
    tables = []
    for how, field in (("greedy", "pass@1"), ("sample", "pass@1"), ("sample", "pass@32")):
        shown = Column("", field)
        head = [f"{how}, {field} (%)", "data", *(f"{kind} inference" for kind in PAPER)]
        rows = [[*head, "soft - hard", "fuzzy - hard"]]
        for training, data in product(("base", *PAPER), PROBLEMS):
            row = ["base" if training == "base" else f"{training} trained", data]
            row += [number(cell(r.runs, training, data, f"{k}-{how}"), shown) for k in PAPER]
            hard, *others = (r.values(training, data, f"{kind}-{how}", field) for kind in PAPER)
            for other in others:  # differences of the same runs
                gaps = [b - a for a, b in zip(hard, other, strict=True)]
                row.append(show_difference(gaps, 0.0))
            rows.append(row)
        tables.append(markdown(rows))
    return "\n\n".join(tables) if r.runs else ""


def checkpoints(r: Results) -> str:
    """Which checkpoint of each run is its best, and how good it was on validation problems, then
    and at the end."""
    head = "tokens, seed, best at update, validation there (%), at the last update (%)"
    rows = [head.split(", ")]
    for kind in PAPER:
        for seed, path in seeds(r.out, f"train/{kind}", "/metrics.jsonl").items():
            metrics = [row for row in read_metrics(path) if "validation" in row]
            if metrics:
                best = max(metrics, key=lambda row: row["validation"])  # the first of equals
                step, validation = best["step"], best["validation"]
                summary = read_json(path.parent / "summary.json")
                if summary.get("best_step") == 0:  # the untrained model has no line of its own
                    step, validation = 0, summary["validation"]
                shares = [f"{100 * x:.1f}" for x in (validation, metrics[-1]["validation"])]
                rows.append([kind, str(seed), str(step), *shares])
    return filled(rows)


def longer(r: Results) -> str:
    """The findings after three times the updates."""
    return Results(r.out, tests="longer-test").summary()


def learned(r: Results) -> str:
    """The findings for soft tokens that learn nearly as well as hard ones: with noise on the five
    best logits."""
    top = Results(r.out, ("hard", "top-5"))
    return top.summary() if "top-5" in top.tested else ""


def sources(r: Results) -> str:
    head = (
        "tokens, update, batches, terms, norm in E, norm in the body, cosine in E, "
        "cosine in the body"
    )
    rows = [[*head.split(", "), "snr, all"]]
    places = [(kind, f"{kind}-{step}", step) for kind, step in product(PAPER, (0, 30, 60))]
    places.append(("soft, noise on the 5 best logits", "top-5-0", 0))
    places.append(("soft, noise on all logits", "logits-0", 0))
    for (name, file, step), term in product(places, ("cot", "answer")):
        measured = r.gradient(file)
        if measured:
            E, body, whole = (measured["signal"][term][part] for part in ("E", "body", "all"))
            row = [name, str(step), str(measured["batches"]), term]
            row += [f"{E['norm']:.3g}", f"{body['norm']:.3g}"]
            cosines = [show_error(E, "cosine"), show_error(body, "cosine")]
            rows.append([*row, *cosines, show_error(whole, "snr")])
    return filled(rows)


def ablation(r: Results) -> str:
    head = "tokens, both, CoT only, answer only, CoT only - both, answer only - both"
    rows = [head.split(", ")]
    for kind in ("hard", "soft"):
        both, cot = r.after(f"train/{kind}"), r.after(f"ablation/{kind}-cot")
        answer = r.after(f"ablation/{kind}-answer")
        gaps = [show_difference(cot, both), show_difference(answer, both)]
        rows.append([kind, *map(show_mean, (both, cot, answer)), *gaps])
    return markdown(rows) if list(r.out.glob("ablation/*/summary.json")) else ""


def relative_variance(one: dict | None, other: dict | None) -> str:
    """Mean squared norm of one measurement's gradients over that of another's, on as many batches,
    with its standard error (jackknife): where both have the same mean and next to no signal, the
    ratio of their variances."""
    if not one or not other:
        return ""
    n = min(len(one["norms"]), len(other["norms"]))
    a, b = (torch.tensor(x["norms"][:n], dtype=torch.float64).square() for x in (one, other))
    without = (a.sum() - a) / (b.sum() - b)  # (n,), each without one batch
    error = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    return f"{a.sum() / b.sum():.2f} ± {error:.2f}"


def remedies(r: Results) -> str:
    head = (
        "estimator; snr, base; snr, soft's weights at update 30; E|g|^2 / rloo's, base; and at 30; "
        "hard-greedy after (%); difference; seconds an update"
    )
    rows, rloo = [head.split("; ")], r.after("train/soft")
    for name, run, same_mean in [
        ("rloo", "train/soft", False),
        *((remedy.name, f"variance/{remedy.name}", remedy.same_mean) for remedy in REMEDIES),
    ]:
        plain = [r.gradient(f"soft-{step}") for step in (0, 30)]
        own = plain if name == "rloo" else [r.gradient(f"{name}-{step}") for step in (0, 30)]
        snr = [show_error(one["signal"]["both"]["all"], "snr", 4) if one else "" for one in own]
        ratios = list(map(relative_variance, own, plain)) if same_mean else ["", ""]
        after = r.after(run)
        gap = show_difference(after, rloo) if name != "rloo" else ""
        took = show_mean(seconds(seeds(r.out, run, "/metrics.jsonl").values()), 1, 2)
        if name == "rloo" or after or any(snr):
            rows.append([name, *snr, *ratios, show_mean(after), gap, took])
    return markdown(rows) if len(rows) > 2 else ""


def seconds(paths) -> list[float]:
    """The median seconds of an update of each run."""
    return [median(row["seconds"] for row in read_metrics(path) if row["step"]) for path in paths]


def fuzzy(r: Results) -> str:
    head = (
        "fuzzy tokens, CoT positions that still move, tied in bfloat16, CoT norm in E, CoT norm in "
        "the body, cosine in E, cosine in the body, hard-greedy after (%), difference to tau 0.0001"
    )
    rows, paper = [head.split(", ")], r.after("train/fuzzy")
    for name, gradient, run in (
        ("tau 0.0001", "fuzzy-0", "train/fuzzy"),
        ("tau 0.01", "fuzzy-tau-0.01", "fuzzy/tau-0.01"),
        ("tau 0.1", "fuzzy-tau-0.1", "fuzzy/tau-0.1"),
        ("soft, tau 0.5", "soft-0", "train/soft"),
        ("tau 0.0001, logits in bfloat16", "fuzzy-bfloat16", "fuzzy/bfloat16"),
    ):
        measured = r.gradient(gradient)
        if measured:
            E, body = (measured["signal"]["cot"][part] for part in ("E", "body"))
            shares = [f"{measured['ties'][of]:.2%}" for of in ("still_moving", "tied_in_bfloat16")]
            norms = [f"{part['norm']:.3g}" for part in (E, body)]
            cosines = [show_error(part, "cosine") for part in (E, body)]
            after = r.after(run)
            gap = show_difference(after, paper) if len(rows) > 1 else ""
            rows.append([name, *shares, *norms, *cosines, show_mean(after), gap])
    return markdown(rows) if len(rows) > 2 else ""


SECTIONS = (
    ("Learning rates: hard-greedy validation (%), mean of the last two", sweep),
    ("Best checkpoints, which are what is tested", checkpoints),
    ("Finding 1: greedy pass@1", parity),
    ("Finding 2: pass@k under hard-sample inference", diversity),
    ("Finding 3: likelihood out of domain", likelihood),
    ("Finding 4: entropy", profile),
    ("Finding 4 at matched accuracy", matched),
    ("Finding 5: the best inference", inference),
    ("Three times the updates", longer),
    ("Where the gradient comes from", sources),
    (
        "Which terms learn: hard-greedy after training (%), on train.py's own 200 test problems",
        ablation,
    ),
    ("Remedies for the variance of soft tokens", remedies),
    ("Soft tokens that learn: noise on the five best logits", learned),
    ("When fuzzy tokens can learn", fuzzy),
)


def pictures(r: Results) -> dict:
    """{file name: Figure}"""
    runs, gradients, paths = {}, {}, {}
    for kind in PAPER:
        folders = [path.parent for path in seeds(r.out, f"train/{kind}", "/summary.json").values()]
        runs[kind] = [figures.read_run(folder)[1] for folder in folders]
        measured = {step: r.gradient(f"{kind}-{step}") for step in (0, 30, 60)}
        gradients[kind] = {step: one["signal"] for step, one in measured.items() if one}
        paths[kind] = list(trajectories(r, kind).values())
    runs = {kind: metrics for kind, metrics in runs.items() if metrics}
    order = sorted(r.runs, key=lambda run: ("base", *PAPER).index(run["label"]))
    problems = [run for run in order if run["data"] in PROBLEMS]
    drawn = {
        "training.png": figures.training(runs) if runs else None,
        "pass_at_k.png": figures.pass_at_k(problems),
        "entropy.png": figures.entropy(problems),
        "gradient.png": figures.gradient(gradients) if any(gradients.values()) else None,
        "matched.png": figures.matched(paths) if any(paths.values()) else None,
    }
    return {name: figure for name, figure in drawn.items() if figure}


def write(out: Path) -> str:
    """OUT/study.md and pictures from what is there; returns the tables and where they are.  Raises
    InputError, OSError."""
    r = Results(out)
    parts = [f"## {title}\n\n{text}" for title, make in SECTIONS if (text := make(r))]
    if not parts:
        raise InputError(f"{out}: expected results of minisoft.lab.study, found none")
    text = "\n\n".join(parts)
    write_text(out / "study.md", f"# Study\n\n{facts(out)}\n\n{text}\n")
    try:
        for name, figure in pictures(r).items():
            figure.savefig(out / name, dpi=110)
    except ImportError as error:
        missing = f"pictures need the extra `plot`: pip install matplotlib ({error})"
        print(f"minisoft.lab.study: {missing}", file=sys.stderr)
    return f"{text}\n\nwritten: {out / 'study.md'}"


def main(argv=None) -> None:
    parser = command.parser("findings", __doc__)
    what = "folder of python -m minisoft.lab.study --out"
    parser.add_argument("out", type=Path, metavar="STUDY", help=what)
    args = parser.parse_args(argv)
    with command.one_line("findings"):
        print(write(args.out))


if __name__ == "__main__":
    as_program(main)
