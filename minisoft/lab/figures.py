"""Pictures like the paper's Figures 2-4 and of a study, readable in black and white (extra `plot`: matplotlib).

Each public function that takes a path returns a matplotlib Figure and saves it where one is given.  `read_runs` and
`curves` raise InputError for a run folder that cannot be read; `pass_at_k` and `entropy` draw runs, results of eval.py with
a "label".
"""

import json
from itertools import product, takewhile
from pathlib import Path
from statistics import fmean, stdev

from minisoft.errors import InputError, expecting
from minisoft.io.atomic import read_json
from minisoft.soft import KINDS

INCIDENTAL = {"seed", "out", "resume", "sigma", "device", "world", "micro_batch", "eval_batch", "validate_every",
              "save_every", "keep", "show_every", "shares_every", "shard", "patience"}  # in config.json of seeds of one run
GREYS, DASHES, MARKERS = ("0", ".4", ".6"), ("-", "--", "-.", ":"), "os^Dv"
STYLES = {label: index for index, label in enumerate(("base", *KINDS))}  # the same in every picture
LEAST_ROWS, LEAST_SHARE = 5, .05  # a CoT position that fewer generations reach has no meaningful mean entropy
PANELS = (("accuracy", "accuracy (%)", 100), ("reward", "reward", 1), ("cot_length", "CoT length (tokens)", 1),
          ("entropy", "entropy (nats)", 1), ("grad_norm", "gradient norm", 1),
          ("share_E", "gradient norm in E (% of all)", 100))  # of `curves`: field, axis, scale


def distinct(runs: list[dict], field: str) -> list[str]:
    """The values of a field in the order in which they first appear."""
    return list(dict.fromkeys(run[field] for run in runs))


def short_names(names) -> dict[str, str]:
    """Name or path -> its last part without .json or .jsonl; all stay whole if two would become the same."""
    short = {name: name.rstrip("/").split("/")[-1].removesuffix(".jsonl").removesuffix(".json") for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in short}


def parts(run: dict) -> dict[str, dict]:
    """What a run measured: {one of the six settings, or "choices": its numbers}."""
    return {**run["settings"], **({"choices": run["choices"]} if run.get("choices") else {})}


def cell(runs: list[dict], label: str, data: str, part: str) -> list[dict]:
    """The numbers of a part of each run of one (label, data), its seeds."""
    return [parts(run)[part] for run in runs if (run["label"], run["data"]) == (label, data) and part in parts(run)]


def read_run(folder: Path) -> tuple[dict, list[dict]]:
    """A folder of train.py -> (config.json, metrics.jsonl); a last line without an end, cut by a crash, is left out.
    Raises InputError."""
    config, path = read_json(folder / "config.json", required=True), folder / "metrics.jsonl"
    with expecting("the fields tokens and seed", folder / "config.json"):
        config["tokens"], config["seed"]
    with expecting("lines with at least step and accuracy", path):
        text = path.read_text("utf-8")
        rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        [(abs(row["step"]), abs(row["accuracy"])) for row in rows or [{}]]  # an error if one is no number
    return config, rows


def read_runs(folders) -> dict[str, list[list[dict]]]:
    """{label: metrics of each seed}; a label is the kind of token and the fields in which the runs differ.
    Raises InputError for two runs with the same label and seed."""
    found, runs, seeds, shown = {Path(folder): read_run(Path(folder)) for folder in folders}, {}, {}, {}
    for name in dict.fromkeys(name for config, _ in found.values() for name in config):
        values = {str(config.get(name)) for config, _ in found.values()}
        if len(values) > 1 and name not in INCIDENTAL | {"tokens"}:
            shown[name] = short_names(values)
    for folder, (config, rows) in found.items():
        label = ", ".join([config["tokens"], *(f"{name} {short[str(config[name])]}" for name, short in shown.items()
                                               if config.get(name) is not None)])
        other = seeds.setdefault((label, config["seed"]), folder)
        if other != folder:
            raise InputError(f"{folder}: seed: expected another than in {other}, found all settings the same")
        runs.setdefault(label, []).append(rows)
    return runs


def training(runs: dict[str, list[list[dict]]], path: Path | None = None):
    """Figure 2: accuracy (%) over updates.  Left: of the training samples, a running mean with the raw data light
    behind it; right: hard-greedy on the validation problems.  runs: {label: metrics of each seed}, as of `read_runs`; a
    label is one line, the mean of its seeds at the updates that all of them have."""
    bands = set()
    window = smoothing_window(max(len(rows) for seeds in runs.values() for rows in seeds))
    figure, ((left, right),) = _panels(1, 2, sharex=True, sharey=True)
    for index, (label, seeds) in enumerate(runs.items()):
        raw, validation = ([_series(rows, name, 100) for rows in seeds] for name in ("accuracy", "validation"))
        mean = {step: fmean(values) for step, values in _together(raw).items()}
        left.plot(list(mean), list(mean.values()), color=".87", linewidth=.6, zorder=1)
        bands |= _line(left, _together(running_mean(series, window) for series in raw), index, label)
        bands |= _line(right, _together(filter(None, validation)), index, label)
    left.set(title=f"training samples, mean over {window} updates", xlabel="update", ylabel="accuracy (%)")
    right.set(title="validation problems, hard-greedy", xlabel="update", ylabel="accuracy (%)")
    right.tick_params(labelleft=True)
    return _finish(figure, bands, path)


def curves(run: Path, path: Path | None = None):
    """One run in six panels: accuracy, reward, CoT length, entropy, gradient norm and its share in E, over updates;
    running means, the raw data light behind them."""
    rows = read_run(Path(run))[1]
    window, (figure, axes) = smoothing_window(len(rows)), _panels(2, 3)
    for axis, (name, label, scale) in zip(axes.flat, PANELS):
        raw = _series(rows, name, scale)
        axis.plot(list(raw), list(raw.values()), color=".87", linewidth=.6)
        axis.plot(list(raw), list(running_mean(raw, window).values()), color=".45", linewidth=1.4,
                  label=f"training samples, mean over {window} updates")
        axis.set(xlabel="update", ylabel=label, yscale="log" if name == "grad_norm" else "linear")
    _line(axes[0, 0], _together([_series(rows, "validation", 100)]), 0, "validation problems, hard-greedy")
    return _finish(figure, {f"run {Path(run).resolve().name}"}, path)


def pass_at_k(runs: list[dict], path: Path | None = None):
    """Figure 3: pass@k (%) over k for each data set and kind of inference; None without two samples of any problem."""
    by_k = lambda numbers: {int(name[5:]): value for name, value in numbers.items() if name.startswith("pass@")}
    points = lambda numbers: {k: 100 * share for k, share in by_k(numbers).items()}
    intervals = lambda numbers: {k: (100 * a, 100 * b) for k, (a, b) in by_k(numbers.get("ci95", {})).items()}
    return _grid(runs, ("sample",), "pass@2", points, intervals, "k (samples)", "pass@k (%)", path)


def entropy(runs: list[dict], path: Path | None = None):
    """Figure 4: entropy of the next token (nats) by CoT position, mean over the generations that reach it, then over
    seeds; None where no run has entropy_by_position.  Greedy settings are drawn where no sample setting is."""
    return _grid(runs, ("sample", "greedy"), "entropy_by_position", entropy_profile, lambda numbers: {},
                 f"CoT position (tokens), up to where fewer\nthan {100 * LEAST_SHARE:.0f} % or {LEAST_ROWS} of the "
                 "generations are left", "mean entropy (nats)", path)


def gradient(kinds: dict[str, dict[int, dict]], path: Path | None = None):
    """Norm of the gradient's parts, and the cosine between those of independent batches (± 1 standard error), over updates;
    kinds: {kind of token: {update: "signal" of minisoft.gradient}}, a column for each."""
    figure, axes = _panels(2, len(kinds), sharex=True, sharey="row")
    parts = [(term, part) for term in ("cot", "answer") for part in ("E", "body")]
    for (top, bottom), (kind, steps) in zip(axes.T, kinds.items()):
        for index, (term, part) in enumerate(parts):
            label = f"{'CoT' if term == 'cot' else 'answer'} terms, {'E' if part == 'E' else 'the rest'}"
            found = {step: signal[term][part] for step, signal in steps.items()}
            _line(top, {step: [s["norm"]] for step, s in found.items()}, index, label)
            _line(bottom, {step: [s["cosine"]] for step, s in found.items()}, index, label, {
                step: (s["cosine"] - s["cosine_error"], s["cosine"] + s["cosine_error"]) for step, s in found.items()})
        top.set(title=f"{kind} tokens", yscale="log", ylabel="gradient norm")
        bottom.set(xlabel="update", ylabel="cosine between batches")
        bottom.axhline(0, color=".7", linewidth=.8, zorder=1)
    return _finish(figure, {"band: ± 1 standard error"}, path)


def matched(kinds: dict[str, list[list[dict]]], path: Path | None = None):
    """Entropy of hard-sampled CoTs over greedy and over sampled accuracy, along training: a line for each run, from the base
    on; kinds: {kind: [[{"greedy", "sample", "entropy"}, ...] of each seed]}."""
    figure, ((left, right),) = _panels(1, 2, sharey=True)
    for axis, how in ((left, "greedy"), (right, "sample")):
        for kind, runs in kinds.items():
            index = STYLES[kind]
            for number, run in enumerate(runs):
                axis.plot([100 * point[how] for point in run], [point["entropy"] for point in run],
                          color=GREYS[index % len(GREYS)], linestyle=DASHES[index], marker=MARKERS[index],
                          markerfacecolor="white", markersize=4.5, linewidth=1.2, label=kind if number == 0 else None)
        axis.set(xlabel=f"hard-{how} pass@1 (%)", ylabel="entropy of hard-sampled CoTs (nats)")
        axis.tick_params(labelleft=True)
    left.set_ylim(bottom=0)
    return _finish(figure, set(), path)


def entropy_profile(numbers: dict) -> dict[int, float]:
    """CoT position from 1 -> mean entropy (nats), up to where too few generations are left."""
    rows = numbers["rows_by_position"]
    enough = takewhile(lambda n: n >= max(LEAST_ROWS, LEAST_SHARE * rows[0]), rows)
    return {t: value for t, (value, _) in enumerate(zip(numbers["entropy_by_position"], enough), 1)}


def smoothing_window(updates: int) -> int:
    """How many updates (odd) a training curve is smoothed over: a twentieth of them, at least 5."""
    return max(5, updates // 20) | 1


def running_mean(series: dict[int, float], window: int) -> dict[int, float]:
    """Mean over `window` (odd) neighbours, over fewer at both ends."""
    values, half = list(series.values()), window // 2
    return {x: fmean(values[max(0, i - half): i + half + 1]) for i, x in enumerate(series)}


def _series(rows: list[dict], name: str, scale: float) -> dict[int, float]:
    """{step: scale * value} of the rows that have one."""
    return {row["step"]: scale * row[name] for row in rows if row.get(name) is not None}


def _together(seeds) -> dict[int, list[float]]:
    """{x: y} of each seed -> {x: [y of each seed]} at the x that all of them have."""
    seeds = list(seeds)
    return {x: [seed[x] for seed in seeds] for x in sorted(set.intersection(*map(set, seeds)))} if seeds else {}


def _grid(runs, hows, field, points, intervals, xlabel, ylabel, path):
    """A column for each data set, a row for each kind of inference, a line for each label: the mean over seeds of
    points(numbers) = {x: y}; intervals(numbers) = {x: (low, high)} are drawn around a single run."""
    labels, panels, bands = distinct(runs, "label"), {}, set()
    for kind, data, how in product(KINDS, distinct(runs, "data"), hows):
        lines = [[numbers for numbers in cell(runs, label, data, f"{kind}-{how}") if field in numbers]
                 for label in labels]
        if any(lines):
            panels.setdefault((kind, data), (f"{kind}-{how}", lines))
    if not panels:
        return None
    kinds, titles = list(dict.fromkeys(kind for kind, _ in panels)), short_names(data for _, data in panels)
    figure, axes = _panels(len(kinds), len(titles), sharey="col")
    for (row, kind), (column, data) in product(enumerate(kinds), enumerate(titles)):
        axis, (setting, lines) = axes[row, column], panels.get((kind, data), ("", []))
        for index, seeds in enumerate(lines):
            if seeds:
                bands |= _line(axis, _together(map(points, seeds)), index, labels[index], intervals(seeds[0]))
        axis.set(title=f"{titles[data]}, {setting}", ylabel=ylabel, visible=bool(lines))
        if field == "pass@2":
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:.0f}")
            for line in axis.lines:
                line.set_markevery([i for i, k in enumerate(line.get_xdata()) if k & (k - 1) == 0])
    for axis in axes.flat:  # after all lines, as columns share their y axis
        axis.set_ylim(bottom=max(0, axis.get_ylim()[0]) if field == "pass@2" else 0)
    figure.supxlabel(xlabel, fontsize="medium")
    return _finish(figure, bands, path)


def _line(axis, points: dict[int, list[float]], index: int, label: str, intervals: dict = {}) -> set[str]:
    """Draw the mean of {x: values of the seeds} in the index-th style, with a band.  Returns {what the band is}."""
    if not points:
        return set()
    x, seeds, every = list(points), len(next(iter(points.values()))), max(1, len(points) // 8)
    index = STYLES.get(label, index)
    line, = axis.plot(x, [fmean(values) for values in points.values()], color=GREYS[index % len(GREYS)], label=label,
                      linestyle=DASHES[index % len(DASHES)], marker=MARKERS[index % len(MARKERS)], zorder=3,
                      markerfacecolor="white", markersize=4.5, linewidth=1.4,
                      markevery=(index * every // 3 % every, every))
    if seeds == 1 and not set(x) <= set(intervals):
        return set()
    ends = [intervals[k] for k in x] if seeds == 1 else [
        (fmean(values) - stdev(values), fmean(values) + stdev(values)) for values in points.values()]
    axis.fill_between(x, *zip(*ends), color=line.get_color(), alpha=.18, linewidth=0, zorder=2)
    return {"band of one run: 95 % interval" if seeds == 1 else "band over seeds: ± 1 standard deviation"}


def _panels(rows: int, columns: int, **share):
    """(Figure, array of its Axes)."""
    from matplotlib.figure import (
        Figure,  # here, since nothing else needs matplotlib; PNG files are drawn by Agg
    )
    figure = Figure(figsize=(max(5, 3.7 * columns), 2.8 * rows + .6), layout="constrained")
    figure.get_layout_engine().set(w_pad=.1, h_pad=.06)
    axes = figure.subplots(rows, columns, squeeze=False, **share)
    for axis in axes.flat:
        axis.grid(color=".9", linewidth=.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finish(figure, notes: set[str], path: Path | None):
    """Small titles, one legend above all panels with the notes as its title; saved if a path is given."""
    for axis in figure.axes:
        axis.title.set_size("medium")
    handles = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels())}
    columns = max(1, int(12 * figure.get_figwidth() / (max(map(len, handles), default=0) + 8)))
    figure.set_figheight(figure.get_figheight() + .21 * (len(handles) // columns))
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=max(1, min(len(handles), columns)),
                  title="; ".join(sorted(notes)), handlelength=3.5, frameon=False)
    if path:
        figure.savefig(path, dpi=160)
    return figure
