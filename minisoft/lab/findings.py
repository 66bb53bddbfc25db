"""Tables and pictures of a study (minisoft.lab.study): one table for each question, differences
with 95 % intervals over seeds.

    python -m minisoft.lab.findings runs/study

± is the standard deviation over seeds; of what minisoft.lab.gradient measures, in cosines, SNR and
E|g|^2, the standard error.  A difference of two kinds is that of their means over seeds
with Welch's interval; a difference to the base, which has no seeds, has Student's interval of one
sample.  Intervals are over seeds only: all models meet the same problems, and what another 200 of
these would change is not in them (eval.py's intervals have it).

Below, every function of SECTIONS gives its tables as (title, rows), with a head only where nothing
was measured.
"""

import json
import os
import sys
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean, median, stdev, variance

import torch

from minisoft.errors import InputError
from minisoft.evaluation import SOFTNESS
from minisoft.io.atomic import read_json, write_text
from minisoft.kinds import PAPER
from minisoft.lab import command, figures
from minisoft.lab.machine import processor
from minisoft.lab.tables import read_results
from minisoft.lab.trainings import EARLIER, LADDER, LATER, TRAININGS
from minisoft.run.metrics import markdown
from minisoft.run.tables import Column, cell, number, show_mean
from minisoft.run.world import as_program

T95 = (  # Student's 0.975 quantile for 1 ... 20 degrees of freedom
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
PROBLEMS = ("tiny-test", "tiny-long")
SKILLS = ("tiny-facts", "tiny-sorting", "tiny-drills", "tiny-references")
Table = tuple[str, list[list[str]]]  # a title, "" for none, and rows, the first one the head
PUBLISHED = Path(__file__).with_name("paper.tsv")  # of the paper's Tables 2-5, where ours are alike


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


def text_of(tables: list[Table]) -> str:
    """As Markdown, without those that have a head only."""
    titles = {"": ""} | {title: f"**{title}**\n\n" for title, _ in tables if title}
    return "\n\n".join(titles[title] + markdown(rows) for title, rows in tables if rows[1:])


def seeds(out: Path, run: str, suffix: str) -> dict[int, Path]:
    """{seed: path} of what is there of a study's runs OUT/RUN-sSEED."""
    paths = {}
    for path in out.glob(f"{run}-s*{suffix}"):
        seed = path.relative_to(out).as_posix().removeprefix(f"{run}-s").removesuffix(suffix)
        if seed.isdigit():  # not what was moved away
            paths[int(seed)] = path
    return dict(sorted(paths.items()))


class Results:
    """What is in the folder of a study: everything, and the tests of the base and of trainings."""

    def __init__(self, out: Path, kinds: tuple[str, ...] = (*TRAININGS,), tests: str = "test"):
        self.out = out
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

    def gradient(self, name: str) -> dict:
        """What minisoft.lab.gradient has measured; "softness" is not in older files."""
        return read_json(self.out / f"gradient/{name}.json")

    def compare(self, unit: str, measures, scale: float = 100, digits: int = 1) -> list[Table]:
        """For each (data, part, field) a table of the base and every training, with the differences
        to hard training and to the base; of own-greedy and own-sample each training's own kind of
        inference, beside hard inference of hard training and of the base."""
        tables, how = [], (scale, digits)
        for data, part, field in measures:
            rows = [["training", "runs", unit, "- hard", "- base"]]
            of_hard, of_base = (
                self.values(kind, data, part.replace("own", "hard"), field)
                for kind in ("hard", "base")
            )
            for kind in ("base", *self.tested):
                own = "hard" if kind == "base" else TRAININGS[kind].tokens
                values = self.values(kind, data, part.replace("own", own), field)
                gaps = ["", ""]
                if kind not in ("base", "hard"):
                    gaps[0] = show_difference(values, of_hard, *how)
                if kind != "base" and of_base:
                    gaps[1] = show_difference(values, of_base[0], *how)
                if values:
                    count, mean = str(len(values)), show_mean(values, *how)
                    rows.append([kind, count, mean, *gaps])
            tables.append((f"{data}, {part}, {field}".replace("choices, ", ""), rows))
        return tables

    def summary(self) -> list[Table]:
        """The findings: numbers in %, then nats."""
        if not self.tested:
            return []
        parts = [("hard-greedy", 1), ("soft-greedy", 1), ("hard-sample", 1), ("hard-sample", 32)]
        shares = [(data, part, f"pass@{k}") for data, (part, k) in product(PROBLEMS, parts)]
        nats = [(data, "choices", "nll") for data in SKILLS]
        nats += [(data, "hard-sample", "entropy") for data in PROBLEMS]
        return self.compare("%", shares) + self.compare("nats", nats, 1, 4)


def read_cells(out: Path) -> list[dict]:
    """The lines of OUT/cells.jsonl, one for each time that a cell was done or failed."""
    path = out / "cells.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def facts(out: Path) -> str:
    """When and where: commit, hardware, minutes."""
    lines, (cpu, *_) = read_cells(out), processor(torch.device("cpu")).split(", ")
    minutes = sum(line["seconds"] for line in lines) / 60
    commits = ", ".join(dict.fromkeys(line["commit"] for line in lines))
    return (
        f"{len({line['cell'] for line in lines})} cells of one thread, {minutes:.0f} minutes in "
        f"all (two at a time; those done again\nincluded), commits {commits}; "
        f"{os.cpu_count()} x {cpu}, torch {torch.__version__.split('+')[0]}"
    )


def last_validations(run: Path) -> float:
    """Mean of the last two hard-greedy validations of a run, so that neither a lucky one counts nor
    a run that collapses."""
    accuracy = figures.series(figures.read_metrics(run / "metrics.jsonl"), "validation_hard")
    return fmean(list(accuracy.values())[-2:])


def rates(out: Path, name: str) -> dict[str, float]:
    """{learning rate: last validations} of a study's own sweep."""
    runs = {rate: out / f"sweep/{name}-{rate}" for rate in LADDER}
    done = {rate: run for rate, run in runs.items() if (run / "summary.json").is_file()}
    return {rate: last_validations(run) for rate, run in done.items()}


def swept(out: Path) -> dict[str, dict[str, float]]:
    """The sweep of each training: of this study, else of the older one."""
    older = read_json(EARLIER)
    found = {name: rates(out, name) or older.get(name) for name in TRAININGS}
    return {name: reached for name, reached in found.items() if reached}


def sweep(r: Results) -> list[Table]:
    reached, own = swept(r.out), {name for name in TRAININGS if rates(r.out, name)}
    tried = [rate for rate in LADDER if any(rate in of for of in reached.values())]
    rows = [["tokens", *tried, "of"]]
    for name, of in reached.items() if own or read_cells(r.out) else ():
        shown = [f"{100 * of[rate]:.1f}" if rate in of else "" for rate in tried]
        rows.append([name, *shown, "this study" if name in own else "an older one"])
    return [("", rows)]


def parity(r: Results) -> list[Table]:
    parts = ("hard-greedy", "soft-greedy", "own-greedy")
    return r.compare("%", product(PROBLEMS, parts, ["pass@1"]))


def diversity(r: Results) -> list[Table]:
    hard = product(PROBLEMS, ["hard-sample"], [f"pass@{k}" for k in (1, 4, 16, 32)])
    own = product(PROBLEMS, ["own-sample"], ("pass@1", "pass@32"))
    return r.compare("%", [*hard, *own])


def likelihood(r: Results) -> list[Table]:
    nll = r.compare("nats a token", product(SKILLS, ["choices"], ["nll"]), 1, 4)
    return nll + r.compare("%", product(SKILLS, ["choices"], ["accuracy"]))


def profile(r: Results) -> list[Table]:
    return r.compare("nats", product(PROBLEMS, ["hard-sample"], ["entropy"]), 1, 3)


def trajectories(r: Results, kind: str) -> dict[int, list[dict]]:
    """{seed: path}: greedy, sample (pass@1 on tiny-test) and entropy (nats), all of hard inference,
    of the base and a run's checkpoints, in the order of updates; without these, the best only."""
    on_the_way, base = seeds(r.out, f"checkpoints/{kind}", ".json"), r.out / "test/base.json"
    if not base.is_file():
        return {}
    paths = {}
    for seed, path in (on_the_way or seeds(r.out, f"test/{kind}", ".json")).items():
        runs = read_json(base)["runs"] + read_json(path)["runs"]
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


def matched(r: Results) -> list[Table]:
    """Entropy of the runs of other kinds where they are most accurate (on these problems), if more
    so than the base, beside that of the hard run of the same seed where it was as accurate."""
    head = "tokens, runs, accuracy (%), entropy (nats), hard runs', difference"
    tables, hard = [], trajectories(r, "hard")
    for how in ("greedy", "sample"):
        rows = [head.split(", ")]
        for kind in [*TRAININGS][1:]:
            runs = {seed: run for seed, run in trajectories(r, kind).items() if seed in hard}
            found = []  # (accuracy, entropy, the hard run's entropy)
            for seed, (base, *points) in runs.items():
                best = max(points, key=lambda point: point[how])
                entropy = at_accuracy(hard[seed], how, best[how])
                if entropy is not None and best[how] > base[how]:
                    found.append((best[how], best["entropy"], entropy))
            if found:
                accuracy, own, other = map(list, zip(*found))
                gaps = [a - b for a, b in zip(own, other)]
                shown = [show_mean(accuracy), show_mean(own, 1, 3), show_mean(other, 1, 3)]
                shown.append(show_difference(gaps, 0.0, 1, 3))
                rows.append([kind, f"{len(found)} of {len(runs)}", *shown])
        tables.append((f"at equal hard-{how} pass@1", rows))
    return tables


def inference(r: Results) -> list[Table]:
    """Which inference is best, for each kind of training: pass@k, and differences of the same
    runs."""
    tables = []
    measures = (("greedy", "pass@1"), ("sample", "pass@1"), ("sample", "pass@32"))
    for (how, field), data in product(measures, PROBLEMS if r.runs else ()):
        values = [["training", *(f"{kind} inference" for kind in PAPER), "own inference"]]
        gaps = [["training", *(f"{kind} - hard" for kind in (*PAPER[1:], "own"))]]
        for training in ("base", *r.tested):
            kinds = [*PAPER, TRAININGS[training].tokens if training in LATER else None]
            parts = [f"{kind}-{how}" for kind in kinds]
            shown = [number(cell(r.runs, training, data, p), Column("", field)) for p in parts]
            hard, *others = (r.values(training, data, part, field) for part in parts)
            pairs = [zip(hard, other) if len(other) == len(hard) else () for other in others]
            differences = [show_difference([b - a for a, b in pair], 0.0) for pair in pairs]
            values.append([training, *shown])
            if any(differences):
                gaps.append([training, *differences])
        title = f"{data}, {how}, {field}"
        tables += [(f"{title}, %", values), (f"{title}, difference", gaps)]
    return tables


def checkpoints(r: Results) -> list[Table]:
    """Which checkpoint of each run is its best, by what, and how good it was on validation
    problems, then and at the end."""
    head = "tokens, seed, best at, best (%), last (%), chosen by, hard-greedy there (%)"
    rows = [head.split(", ")]
    for name, training in TRAININGS.items():
        for seed, path in seeds(r.out, f"train/{name}", "/metrics.jsonl").items():
            metrics = [row for row in figures.read_metrics(path) if "validation" in row]
            if metrics:
                best = max(metrics, key=lambda row: row["validation"])  # the first of equals
                step, validation = best["step"], best["validation"]
                summary = read_json(path.parent / "summary.json")
                if summary.get("best_step") == 0:  # the untrained model has no line of its own
                    step, validation = 0, summary["validation"]
                shares = [f"{100 * x:.1f}" for x in (validation, metrics[-1]["validation"])]
                hard = f"{100 * best['validation_hard']:.1f}" if step else ""
                by = f"{training.tokens}-greedy"
                rows.append([name, str(seed), str(step), *shares, by, hard])
    return [("", rows)]


def longer(r: Results) -> list[Table]:
    """The findings after three times the updates."""
    return Results(r.out, tests="longer-test").summary()


def softness(r: Results) -> list[Table]:
    """How many tokens positions carry: of the best checkpoints on test problems, and in the batches
    of the gradient before training (update 0) and at its end (60, first seed)."""
    of_best = [["training", "runs", "mean", "above 1.5 (%)", "largest weight"]]
    head = "training, mean at 0, above 1.5 (%) at 0, median at 60, 99 % are below at 60"
    of_batches = [head.split(", ")]
    for name, training in TRAININGS.items():
        first, last = (r.gradient(f"{name}-{step}").get("softness") for step in (0, 60))
        part = f"{training.tokens}-sample"
        support, largest, soft = (r.values(name, "tiny-test", part, x) for x in SOFTNESS)
        if support:
            shown = [show_mean(support, 1, 2), show_mean(soft), show_mean(largest, 1, 3)]
            of_best.append([name, str(len(support)), *shown])
        if first and last:
            base = [f"{first['support']:.2f}", f"{100 * first['share_soft']:.1f}"]
            ends = [f"{last['quantiles']['support'][at]:.4f}" for at in (50, 99)]
            of_batches.append([name, *base, *ends])
    return [("best checkpoints, tiny-test", of_best), ("batches of the gradient", of_batches)]


def published(r: Results) -> list[Table]:
    """The paper's numbers about the same thing."""
    (_, *head), *lines = (line.split("\t") for line in PUBLISHED.read_text("utf-8").splitlines())
    tables = []
    for measure in dict.fromkeys(line[0] for line in lines) if r.tested else ():
        rows = [head]
        part, field = measure.split() if " " in measure else ("choices", "nll")
        for data in SKILLS[:3] if part == "choices" else PROBLEMS:
            of_kinds = [r.values(kind, data, part, field) for kind in ("base", *PAPER)]
            how = (1, 4) if part == "choices" else ()
            rows.append([f"here, {data}", *(show_mean(values, *how) for values in of_kinds)])
        rows += [line for name, *line in lines if name == measure]
        tables.append((measure, rows))
    return tables


def sizes(of_term: dict) -> list[str]:
    """Norm of a gradient in E, in the rest (which is of the weights); cosines of batches there."""
    parts = [of_term[part] for part in ("E", "body")]
    return [f"{x['norm']:.3g}" for x in parts] + [show_error(x, "cosine") for x in parts]


def sources(r: Results) -> list[Table]:
    """Of the CoT's terms and of the answer's."""
    head = "tokens, update, norm in E, in rest, cosine in E, in rest, snr of all"
    places = [(kind, f"{kind}-{step}", step) for kind, step in product(TRAININGS, (0, 30, 60))]
    places.append(("all logits", "logits-0", 0))
    tables = []
    for shown, term in (("CoT", "cot"), ("answer", "answer")):
        rows, batches = [head.split(", ")], set()
        for name, file, step in places:
            measured = r.gradient(file)
            if measured:
                batches.add(measured["batches"])
                of_term = measured["signal"][term]
                snr = show_error(of_term["all"], "snr")
                rows.append([name, str(step), *sizes(of_term), snr])
        count = " or ".join(map(str, sorted(batches)))
        tables.append((f"terms of the {shown}, {count} batches", rows))
    return tables


def ablation(r: Results) -> list[Table]:
    head = "tokens, both, CoT only, answer only, CoT only - both, answer only - both"
    rows = [head.split(", ")]
    for kind in ("hard", "soft") if list(r.out.glob("ablation/*/summary.json")) else ():
        both, cot = r.after(f"train/{kind}"), r.after(f"ablation/{kind}-cot")
        answer = r.after(f"ablation/{kind}-answer")
        gaps = [show_difference(cot, both), show_difference(answer, both)]
        rows.append([kind, *map(show_mean, (both, cot, answer)), *gaps])
    return [("", rows)]


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


def remedies(r: Results) -> list[Table]:
    """Before training and with soft tokens' weights of update 30; variance: in units of rloo's."""
    rows = [["estimator", "snr at 0", "at 30", "variance at 0", "at 30"]]
    trained = [["estimator", "hard-greedy after (%)", "difference", "seconds an update"]]
    rloo, plain = r.after("train/soft"), [r.gradient(f"soft-{step}") for step in (0, 30)]
    for x in (Remedy("rloo", ()), *REMEDIES):
        run = f"train/{x.name}" if x.name in TRAININGS else f"variance/{x.name}"
        own = [r.gradient(f"{x.name}-{step}") for step in (0, 30)]
        if x.name == "rloo":
            run, own = "train/soft", plain
        snr = [show_error(one["signal"]["both"]["all"], "snr") if one else "" for one in own]
        ratios = list(map(relative_variance, own, plain)) if x.same_mean else ["", ""]
        after, paths = r.after(run), seeds(r.out, run, "/metrics.jsonl").values()
        gap = show_difference(after, rloo) if x.name != "rloo" else ""
        if x.name == "rloo" or after or any(snr):
            rows.append([x.name, *snr, *ratios])
            trained.append([x.name, show_mean(after), gap, show_mean(seconds(paths), 1, 2)])
    return [("", rows), ("", trained)] if len(rows) > 2 else []


def seconds(paths) -> list[float]:
    """The median seconds of an update of each run that has made one."""
    each = [[row["seconds"] for row in figures.read_metrics(path) if row["step"]] for path in paths]
    return [median(of) for of in each if of]


def fuzzy(r: Results) -> list[Table]:
    """Positions that still move, and that tie in bfloat16; the gradient of the CoT's terms; what
    was learnt, and the difference to tau 0.0001."""
    head = "tokens, moving, tied, norm in E, in rest, cosine in E, in rest"
    trained = [["tokens", "hard-greedy after (%)", "difference"]]
    rows, paper = [head.split(", ")], r.after("train/fuzzy")
    for name, gradient, run in (
        ("tau 0.0001", "fuzzy-0", "train/fuzzy"),
        ("tau 0.01", "fuzzy-tau-0.01", "fuzzy/tau-0.01"),
        ("tau 0.1", "fuzzy-tau-0.1", "fuzzy/tau-0.1"),
        ("soft, tau 0.5", "soft-0", "train/soft"),
        ("tau 0.0001, bfloat16", "fuzzy-bfloat16", "fuzzy/bfloat16"),
    ):
        measured, after = r.gradient(gradient), r.after(run)
        if measured:
            shares = [f"{measured['ties'][of]:.2%}" for of in ("still_moving", "tied_in_bfloat16")]
            gap = show_difference(after, paper) if len(rows) > 1 else ""
            rows.append([name, *shares, *sizes(measured["signal"]["cot"])])
            trained.append([name, show_mean(after), gap])
    return [("", rows), ("", trained)] if len(rows) > 2 else []


SECTIONS = (
    ("Learning rates: hard-greedy validation (%), mean of the last two", sweep),
    ("Best checkpoints, which are what is tested", checkpoints),
    ("Finding 1: greedy pass@1", parity),
    ("Finding 2: pass@k under hard-sample inference", diversity),
    ("Finding 3: likelihood of the right answer, out of domain", likelihood),
    ("Finding 4: entropy", profile),
    ("Finding 4 at matched accuracy", matched),
    ("Finding 5: the best inference", inference),
    ("Are they soft? Effective number of tokens at a position of the CoT, own sampling", softness),
    ("The paper's numbers", published),
    ("Three times the updates", longer),
    ("Where the gradient comes from", sources),
    (
        "Which terms learn: hard-greedy after training (%), on train.py's own 200 test problems",
        ablation,
    ),
    ("Remedies for the variance of soft tokens", remedies),
    ("When fuzzy tokens can learn", fuzzy),
)


def pictures(r: Results) -> dict:
    """{file name: Figure}; those of the later kinds, beside hard tokens, end in _later."""
    drawn = {}
    for end, kinds in (("", PAPER), ("_later", ("hard", *LATER))):
        some = Results(r.out, kinds)
        runs, paths = {}, {}
        for kind in kinds:
            whole = seeds(r.out, f"train/{kind}", "/summary.json").values()
            runs[kind] = [figures.read_run(path.parent)[1] for path in whole]
            paths[kind] = list(trajectories(r, kind).values())
        if end and not any([*runs.values(), *paths.values()][1:]):
            continue
        order = sorted(some.runs, key=lambda run: ("base", *kinds).index(run["label"]))
        problems = [run for run in order if run["data"] in PROBLEMS]
        runs = {kind: metrics for kind, metrics in runs.items() if metrics}
        drawn[f"training{end}.png"] = figures.training(runs) if runs else None
        drawn[f"pass_at_k{end}.png"] = figures.pass_at_k(problems)
        drawn[f"entropy{end}.png"] = figures.entropy(problems)
        drawn[f"matched{end}.png"] = figures.matched(paths) if any(paths.values()) else None
    measured = {kind: {n: r.gradient(f"{kind}-{n}") for n in (0, 30, 60)} for kind in TRAININGS}
    signal = {k: {n: x["signal"] for n, x in steps.items() if x} for k, steps in measured.items()}
    signal = {kind: signal[kind] for kind in PAPER}
    soft = {k: [steps[n].get("softness") for n in (0, 60)] for k, steps in measured.items()}
    soft = {kind: both for kind, both in soft.items() if all(both)}
    drawn["gradient.png"] = figures.gradient(signal) if any(signal.values()) else None
    drawn["softness.png"] = figures.softness(soft) if soft else None
    return {name: figure for name, figure in drawn.items() if figure}


def write(out: Path) -> str:
    """OUT/study.md and pictures from what is there; returns the tables and where they are.  Raises
    InputError, OSError."""
    r = Results(out)
    parts = [f"## {title}\n\n{text}" for title, make in SECTIONS if (text := text_of(make(r)))]
    if not parts:
        raise InputError(f"{out}: expected results of minisoft.lab.study, found none")
    text = "\n\n".join(parts)
    write_text(out / "study.md", f"# Study\n\n{facts(out)}\n\n{text}\n")
    try:
        for name, figure in pictures(r).items():
            figure.savefig(out / name, dpi=110)
    except ImportError as error:
        print(f"minisoft.lab.study: {error}", file=sys.stderr)
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
