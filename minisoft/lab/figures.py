"""Pictures like the paper's Figures 2-4 and of a study, readable in black and white (extra `plot`:
matplotlib).

Each public function without `read` in its name returns a matplotlib Figure.  Where data sets or
kinds of token are panels, lines are labels of runs, and runs of one label are its seeds.
"""

import json
from collections.abc import Callable
from itertools import product, takewhile
from pathlib import Path
from statistics import fmean, stdev

from minisoft.errors import InputError, expecting
from minisoft.evaluation import Setting
from minisoft.io.atomic import read_json
from minisoft.kinds import KINDS
from minisoft.lab.trainings import TRAININGS
from minisoft.run.show import new_figure
from minisoft.run.tables import cell, distinct, short_names

INCIDENTAL = set(  # in config.json of seeds of one run
    "tokens seed out resume sigma device world micro_batch eval_batch validate_every save_every "
    "keep show_every shares_every shard patience saved".split()
)
POINTS = "os^Dv<>P*Xdp"  # of `why`
GREYS, DASHES, MARKERS = ("0", ".4", ".6"), ("-", "--", "-.", ":"), "os^Dv"
STYLES = {label: index for index, label in enumerate(("base", *TRAININGS))}  # the same everywhere
LEAST_ROWS, LEAST_SHARE = 5, 0.05  # fewer generations have no meaningful mean entropy
PANELS = {  # of `curves`: fields and their axes
    "accuracy": "accuracy (%)",
    "reward": "reward",
    "cot_length": "CoT length (tokens)",
    "entropy": "entropy (nats)",
    "grad_norm": "gradient norm",
    "share_E": "gradient norm in E (% of all)",
}
GREEDY = "validation problems, hard-greedy"


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl; a last one without an end, cut by a crash or being written, is
    left out."""
    text = path.read_text("utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def read_run(folder: Path) -> tuple[dict, list[dict]]:
    """A folder of train.py -> (config.json, metrics.jsonl).  Raises InputError."""
    config, path = read_json(folder / "config.json", required=True), folder / "metrics.jsonl"
    with expecting("the fields tokens and seed", folder / "config.json"):
        str(config["tokens"]) + str(config["seed"])
    with expecting("lines with at least step and accuracy", path):
        rows = read_metrics(path)
        for row in rows or [{}]:
            first = row["step"] == 0  # has validations only
            abs(row["validation"] if first else row["accuracy"])  # an error if it is no number
    return config, rows


def read_runs(folders) -> dict[str, list[list[dict]]]:
    """{label: metrics of each seed}; a label is the kind of token and the fields in which the runs
    differ.  Raises InputError for two runs with the same label and seed."""
    content = {Path(folder): read_run(Path(folder)) for folder in folders}
    configs = [config for config, _ in content.values()]
    shown = {}  # field -> {its value: short name}
    for name in dict.fromkeys(name for config in configs for name in config):
        values = {str(config.get(name)) for config in configs}
        if len(values) > 1 and name not in INCIDENTAL:
            shown[name] = short_names(values)
    runs, seeds = {}, {}
    for folder, (config, rows) in content.items():
        label = config["tokens"]
        for name, short in shown.items():
            if config.get(name) is not None:
                label += f", {name} {short[str(config[name])]}"
        other = seeds.setdefault((label, config["seed"]), folder)
        if other != folder:
            what = f"expected another than in {other}, found all settings the same"
            raise InputError(f"{folder}: seed: {what}")
        runs.setdefault(label, []).append(rows)
    return runs


def training(runs: dict[str, list[list[dict]]]):
    """Figure 2: accuracy (%) over updates.  Left: of the training samples, a running mean with the
    raw data light behind it; right: hard-greedy on the validation problems.

    runs: {label: metrics of each seed}; a line is the mean of the seeds at the updates that all of
    them have.
    """
    notes = set()
    window = smoothing_window(max(len(rows) for seeds in runs.values() for rows in seeds))
    figure, ((left, right),) = _panels(1, 2, sharex=True, sharey=True)
    for index, (label, seeds) in enumerate(runs.items()):
        raw = [series(rows, "accuracy", 100) for rows in seeds]
        mean = {step: fmean(values) for step, values in _together(raw).items()}
        left.plot(list(mean), list(mean.values()), color=".87", linewidth=0.6, zorder=1)
        smooth = [running_mean(of_seed, window) for of_seed in raw]
        notes |= _line(left, _together(smooth), index, label)
        greedy = [series(rows, "validation_hard", 100) for rows in seeds]
        notes |= _line(right, _together(filter(None, greedy)), index, label)
    left.set(title=f"training samples, mean over {window} updates")
    right.set(title=GREEDY)
    for axis in (left, right):
        axis.set(xlabel="update", ylabel="accuracy (%)")
    right.tick_params(labelleft=True)
    return _finish(figure, notes)


def curves(run: Path):
    """One run in six panels over updates: running means, the raw data light behind them."""
    rows = read_run(Path(run))[1]
    window, (figure, axes) = smoothing_window(len(rows)), _panels(2, 3)
    label = f"training samples, mean over {window} updates"
    for axis, (name, ylabel) in zip(axes.flat, PANELS.items(), strict=True):
        raw = series(rows, name, 100 if "%" in ylabel else 1)
        smooth = running_mean(raw, window)
        axis.plot(list(raw), list(raw.values()), color=".87", linewidth=0.6)
        axis.plot(list(smooth), list(smooth.values()), color=".45", linewidth=1.4, label=label)
        scale = "log" if name == "grad_norm" else "linear"
        axis.set(xlabel="update", ylabel=ylabel, yscale=scale)
    _line(axes[0, 0], _together([series(rows, "validation_hard", 100)]), 0, GREEDY)
    return _finish(figure, {f"run {Path(run).resolve().name}"})


def pass_at_k(runs: list[dict]):
    """Figure 3: pass@k (%) over k for each data set and kind of inference; None without two samples
    of any problem."""
    figure = _grid(runs, (False,), _percent_by_k, ("k (samples)", "pass@k (%)"))
    for axis in figure.axes if figure else []:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        for line in axis.lines:
            line.set_markevery([i for i, k in enumerate(line.get_xdata()) if k & (k - 1) == 0])
    for axis in figure.axes if figure else []:  # after all, as columns share their y axis
        axis.set_ylim(bottom=max(0, axis.get_ylim()[0]))
    return figure


def entropy(runs: list[dict]):
    """Figure 4: entropy of the next token (nats) by CoT position, mean over the generations that
    reach it, then over seeds; None where no run has it.  Greedy settings are drawn where no sample
    setting is."""
    xlabel = (
        f"CoT position (tokens), up to where fewer\nthan {100 * LEAST_SHARE:.0f} % or {LEAST_ROWS} "
        "of the generations are left"
    )
    figure = _grid(runs, (False, True), entropy_profile, (xlabel, "mean entropy (nats)"))
    for axis in figure.axes if figure else []:
        axis.set_ylim(bottom=0)
    return figure


def _percent_by_k(numbers: dict) -> dict[int, float]:
    """{"pass@1": .4, "pass@2": .5, ...} -> {1: 40, 2: 50, ...}, {} if there is only one."""
    by_k = {int(x.removeprefix("pass@")): 100 * numbers[x] for x in numbers if x[:5] == "pass@"}
    return by_k if len(by_k) > 1 else {}


def _intervals_by_k(numbers: dict) -> dict[int, tuple[float, float]]:
    ends = numbers.get("ci95", {})
    low, high = ({name: pair[i] for name, pair in ends.items()} for i in (0, 1))
    low, high = _percent_by_k(low), _percent_by_k(high)
    return {k: (low[k], high[k]) for k in low}


def entropy_profile(numbers: dict) -> dict[int, float]:
    """CoT position from 1 -> mean entropy (nats), up to where too few generations are left."""
    rows = numbers.get("rows_by_position", [])
    least = max(LEAST_ROWS, LEAST_SHARE * rows[0]) if rows else 0
    enough = len(list(takewhile(lambda n: n >= least, rows)))
    return dict(enumerate(numbers.get("entropy_by_position", [])[:enough], 1))


def gradient(kinds: dict[str, dict[int, dict]]):
    """Norm of the gradient's parts, and the cosine between those of independent batches (± 1
    standard error), over updates.

    kinds: {kind of token: {update: "signal" of minisoft.lab.gradient}}, a column for each.
    """
    figure, axes = _panels(2, len(kinds), sharex=True, sharey="row")
    terms, places = {"cot": "CoT", "answer": "answer"}, {"E": "E", "body": "the rest"}
    for (top, bottom), (kind, steps) in zip(axes.T, kinds.items(), strict=True):
        for index, (term, part) in enumerate(product(terms, places)):
            label = f"{terms[term]} terms, {places[part]}"
            norm, cosine, band = {}, {}, {}
            for step, signal in steps.items():
                one = signal[term][part]
                mean, error = one["cosine"], one["cosine_error"]
                norm[step], cosine[step] = [one["norm"]], [mean]
                band[step] = (mean - error, mean + error)
            _line(top, norm, index, label)
            _line(bottom, cosine, index, label, band)
        top.set(title=f"{kind} tokens", yscale="log", ylabel="gradient norm")
        bottom.set(xlabel="update", ylabel="cosine between batches")
        bottom.axhline(0, color=".7", linewidth=0.8, zorder=1)
    return _finish(figure, {"band: ± 1 standard error"})


def why(cases: dict[str, dict], parts: dict[str, str]):
    """Noise (variance of a batch's gradient, in units of hard tokens') and signal to noise in parts
    of the model: measured (± 1 standard error) over predicted, for each case of minisoft.lab.why.
    Where an error bar reaches 0 its upper limit, 2 standard errors, is drawn instead.

    cases: {case: {"noise", "predicted", "measured"}}; parts: {part: its title}.
    """
    figure, axes = _panels(2, len(parts))
    for column, (part, title) in zip(axes.T, parts.items(), strict=True):
        for index, (name, row) in enumerate(cases.items()):
            noise, snr = row["noise"][part], row["measured"][part]
            error = noise["measured"] * noise["relative_error"]
            if noise["predicted"] is not None:
                _against(column[0], noise["predicted"], noise["measured"], error, index, name)
            if row["predicted"][part] is not None:
                _against(column[1], row["predicted"][part], snr["snr"], snr["snr_error"], index)
        for axis, what in zip(column, ("noise / hard tokens'", "signal to noise"), strict=True):
            axis.set(xscale="log", yscale="log", title=f"{what}, in {title}")
            axis.set(xlabel="predicted", ylabel="measured")
            axis.axline((0.1, 0.1), (1, 1), color=".7", linewidth=0.8)
    return _finish(figure, {"bar: ± 1 standard error; hollow with arrow: upper limit"})


def _against(axis, x: float, y: float, error: float, index: int, label: str | None = None) -> None:
    """A point with its error, or its upper limit where the error reaches 0."""
    known = y > error
    color = GREYS[index % len(GREYS)]
    style = {"color": color, "marker": POINTS[index], "markersize": 6, "linestyle": "none"}
    style |= {"markerfacecolor": color if known else "white", "capsize": 2, "linewidth": 1}
    if not known:
        y = max(y, 0) + 2 * error
    axis.errorbar(x, y, error if known else 0.4 * y, uplims=not known, **style)
    if label:
        axis.plot([], [], label=label, **{x: style[x] for x in ("color", "marker", "linestyle")})


def matched(kinds: dict[str, list[list[dict]]]):
    """Entropy of hard-sampled CoTs over greedy and over sampled accuracy, along training: a line
    for each run, from the base on.

    kinds: {kind: [[{"greedy", "sample", "entropy"}, ...] of each seed]}
    """
    figure, ((left, right),) = _panels(1, 2, sharey=True)
    for axis, how in ((left, "greedy"), (right, "sample")):
        for kind, run in [(kind, run) for kind, runs in kinds.items() for run in runs]:
            label = kind if run is kinds[kind][0] else None
            x, y = [100 * point[how] for point in run], [point["entropy"] for point in run]
            axis.plot(x, y, label=label, linewidth=1.2, **_style(STYLES[kind]))
        axis.set(xlabel=f"hard-{how} pass@1 (%)", ylabel="entropy of hard-sampled CoTs (nats)")
        axis.tick_params(labelleft=True)
    left.set_ylim(bottom=0)
    return _finish(figure, set())


def softness(kinds: dict[str, list[dict]]):
    """How many tokens the positions of a CoT carry, before and after training: the share of them
    with more than an effective support, and with less than a largest weight.

    kinds: {kind: "softness" of minisoft.lab.gradient, of the base and of the trained model}
    """
    figure, axes = _panels(2, 2, sharex="row", sharey=True)
    for column, when in enumerate(("before training", "after training")):
        for kind, both in kinds.items():
            quantiles = both[column]["quantiles"]
            below = [100 * i / (len(quantiles["support"]) - 1) for i in range(101)]
            style = _style(STYLES[kind]) | {"linewidth": 1.2, "markevery": 20, "label": kind}
            axes[0, column].plot(quantiles["support"], [100 - share for share in below], **style)
            axes[1, column].plot(quantiles["largest_weight"], below, **style)
        axes[0, column].set(title=when, xlabel="effective support 1 / Σp² of the input (tokens)")
        axes[1, column].set(xlabel="largest weight of the input", ylim=(1, 100), yscale="log")
    axes[0, 0].set(ylabel="positions with more (%)")
    axes[1, 0].set(ylabel="positions with less (%)")
    return _finish(figure, {"first seed, own sampling"})


def smoothing_window(updates: int) -> int:
    """How many updates (odd) a training curve is smoothed over: a twentieth, at least 5."""
    return max(5, updates // 20) | 1


def running_mean(points: dict[int, float], window: int) -> dict[int, float]:
    """Mean over `window` (odd) neighbours, over fewer at both ends."""
    values, half = list(points.values()), window // 2
    return {x: fmean(values[max(0, i - half) : i + half + 1]) for i, x in enumerate(points)}


def series(rows: list[dict], name: str, scale: float = 1) -> dict[int, float]:
    """{step: scale * value} of the rows that have one."""
    return {row["step"]: scale * row[name] for row in rows if row.get(name) is not None}


def _together(seeds) -> dict[int, list[float]]:
    """{x: y} of each seed -> {x: [y of each seed]} at the x that all of them have."""
    seeds = list(seeds)
    common = sorted(set.intersection(*map(set, seeds))) if seeds else []
    return {x: [seed[x] for seed in seeds] for x in common}


def _grid(runs: list[dict], hows: tuple[bool, ...], points: Callable, names: tuple[str, str]):
    """A column for each data set, a row for each kind of inference, a line for each label: the mean
    over seeds of points(numbers) = {x: y}; None where nothing was measured.

    hows: greedy?  A second one is drawn where the first was not measured.  names: of x and y.
    """
    labels, panels, notes = distinct(runs, "label"), {}, set()
    for kind, data, greedy in product(KINDS, distinct(runs, "data"), hows):
        setting = str(Setting(kind, greedy))
        cells = [cell(runs, label, data, setting) for label in labels]
        lines = [[numbers for numbers in seeds if points(numbers)] for seeds in cells]
        if any(lines):
            panels.setdefault((kind, data), (setting, lines))
    if not panels:
        return None
    kinds = list(dict.fromkeys(kind for kind, _ in panels))
    titles = short_names(data for _, data in panels)
    figure, axes = _panels(len(kinds), len(titles), sharey="col")
    for (row, kind), (column, data) in product(enumerate(kinds), enumerate(titles)):
        axis, (setting, lines) = axes[row, column], panels.get((kind, data), ("", []))
        for index, seeds in enumerate(lines):
            bands = _intervals_by_k(seeds[0]) if seeds and points is _percent_by_k else {}
            notes |= _line(axis, _together(map(points, seeds)), index, labels[index], bands)
        axis.set(title=f"{titles[data]}, {setting}", ylabel=names[1], visible=bool(lines))
    figure.supxlabel(names[0], fontsize="medium")
    return _finish(figure, notes)


def _style(index: int) -> dict:
    """How the index-th line looks."""
    return {
        "color": GREYS[index % len(GREYS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markerfacecolor": "white",
        "markersize": 4.5,
    }


def _line(axis, points: dict[int, list], index: int, label: str, intervals=None) -> set[str]:
    """Draw the mean of {x: values of the seeds} in the index-th style, with a band.  Returns {what
    the band is}."""
    if not points:
        return set()
    x, y = list(points), [fmean(values) for values in points.values()]
    index, every = STYLES.get(label, index), max(1, len(x) // 8)
    where = (index * every // 3 % every, every)
    style = {**_style(index), "linewidth": 1.4, "zorder": 3, "markevery": where}
    axis.plot(x, y, label=label, **style)
    if len(points[x[0]]) > 1:
        band = [(fmean(ys) - stdev(ys), fmean(ys) + stdev(ys)) for ys in points.values()]
        note = "band over seeds: ± 1 standard deviation"
    elif intervals and set(x) <= set(intervals):
        band = [intervals[k] for k in x]
        note = "band of one run: 95 % interval"
    else:
        return set()
    low, high = zip(*band, strict=True)
    axis.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0, zorder=2)
    return {note}


def _panels(rows: int, columns: int, **share):
    """(Figure, array of its Axes)."""
    figure = new_figure(max(5, 3.7 * columns), 2.8 * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False, **share)
    for axis in axes.flat:
        axis.grid(color=".9", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finish(figure, notes: set[str]):
    """Small titles, one legend above all panels with the notes as its title."""
    handles = {}
    for axis in figure.axes:
        axis.title.set_size("medium")
        lines, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    columns = max(1, int(12 * figure.get_figwidth() / (max(map(len, handles), default=0) + 8)))
    figure.set_figheight(figure.get_figheight() + 0.21 * (len(handles) // columns))
    look = {"ncols": max(1, min(len(handles), columns)), "handlelength": 3.5, "frameon": False}
    title = "; ".join(sorted(notes))
    place = "outside upper center"
    figure.legend(handles.values(), handles, loc=place, title=title, **look)
    return figure
