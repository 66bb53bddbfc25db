"""Pictures like the paper's Figures 2-4 (extra `plot`: matplotlib).

`training`, `pass_at_k` and `entropy` return a matplotlib Figure.  Lines are labels of
runs, of which runs of one label are the seeds; a line that is a kind of token has its colour.
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
from minisoft.run.show import COLORS, new_figure
from minisoft.run.tables import cell, distinct, short_names

INCIDENTAL = set(  # in config.json of seeds of one run
    "tokens seed out resume sigma device world micro_batch eval_batch validate_every save_every "
    "keep show_every shares_every shard patience saved".split()
)
LABEL = 0.075  # height of a label at the end of a line, in panels
LEAST_ROWS, LEAST_SHARE = 5, 0.05  # fewer generations have no meaningful mean entropy
PANELS = {  # of `training`: fields of metrics.jsonl and their axes
    "accuracy": "right training samples (%)",
    "validation": "validation, own greedy (%)",
    "validation_hard": "validation, hard-greedy (%)",
    "reward": "reward",
    "cot_length": "CoT length (tokens)",
    "entropy": "entropy (nats)",
    "grad_norm": "gradient norm",
    "share_E": "gradient norm in E (% of all)",
}


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
        for row in rows or [{}]:  # an error if it is no number; step 0 has validations only
            abs(row["accuracy"] if row["step"] else row["validation"])
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
        given = [name for name in shown if config.get(name) is not None]
        differ = (f"{name} {shown[name][str(config[name])]}" for name in given)
        label = ", ".join((config["tokens"], *differ))
        other = seeds.setdefault((label, config["seed"]), folder)
        if other != folder:
            what = f"expected another than in {other}, found all settings the same"
            raise InputError(f"{folder}: seed: {what}")
        runs.setdefault(label, []).append(rows)
    return runs


def training(runs: dict[str, list[list[dict]]]):
    """Figure 2 and more over updates: running means (over a twentieth of the updates, at least 5)
    of what each update measured, the mean itself light behind them, and validations.

    runs: {label: metrics of each seed}; a line is the mean of the seeds at the updates that all of
    them have.
    """
    updates = max(len(rows) for seeds in runs.values() for rows in seeds)
    window = max(5, updates // 20) | 1  # odd
    notes = {f"running mean over {window} updates, but for validations"}
    figure, axes = _panels(2, 4)
    for axis, (name, ylabel) in zip(axes.flat, PANELS.items(), strict=True):
        width = 1 if name.startswith("validation") else window
        for index, (label, seeds) in enumerate(runs.items()):
            raw = [series(rows, name, 100 if "%" in ylabel else 1) for rows in seeds]
            raw = [of_seed for of_seed in raw if of_seed]
            mean = {step: fmean(values) for step, values in _together(raw).items()}
            axis.plot(list(mean), list(mean.values()), color=".87", linewidth=0.6, zorder=1)
            notes |= _line(axis, [running_mean(of_seed, width) for of_seed in raw], index, label)
        scale = "log" if name == "grad_norm" else "linear"
        axis.set(xlabel="update", ylabel=ylabel, yscale=scale)
    return _finish(figure, notes)


def pass_at_k(runs: list[dict]):
    """Figure 3: pass@k (%) over k for each data set and kind of inference; None without two samples
    of any problem."""
    figure = _grid(runs, (False,), _percent_by_k, ("k (samples)", "pass@k (%)"))
    for axis in figure.axes if figure else []:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
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


def entropy_profile(numbers: dict) -> dict[int, float]:
    """CoT position from 1 -> mean entropy (nats), up to where too few generations are left."""
    rows = numbers.get("rows_by_position", [])
    least = max(LEAST_ROWS, LEAST_SHARE * rows[0]) if rows else 0
    enough = len(list(takewhile(lambda n: n >= least, rows)))
    return dict(enumerate(numbers.get("entropy_by_position", [])[:enough], 1))


def running_mean(points: dict[int, float], window: int) -> dict[int, float]:
    """Mean over `window` (odd) neighbours, over fewer at both ends."""
    values, half = list(points.values()), window // 2
    return {x: fmean(values[max(0, i - half) : i + half + 1]) for i, x in enumerate(points)}


def series(rows: list[dict], name: str, scale: float = 1) -> dict[int, float]:
    """{step: scale * value} of the rows that have one."""
    return {row["step"]: scale * row[name] for row in rows if row.get(name) is not None}


def _together(seeds: list[dict]) -> dict[int, list[float]]:
    """{x: y} of each seed -> {x: [y of each seed]} at the x that all of them have."""
    common = sorted(set.intersection(*map(set, seeds))) if seeds else []
    return {x: [seed[x] for seed in seeds] for x in common}


def _grid(runs: list[dict], hows: tuple[bool, ...], points: Callable, names: tuple[str, str]):
    """A column for each data set, a row for each kind of inference, a line for each label: the mean
    over seeds of points(numbers) = {x: y}: the Figure, None where nothing was measured.

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
            pairs = seeds[0].get("ci95", {}) if seeds else {}
            interval = [points({x: pair[end] for x, pair in pairs.items()}) for end in (0, 1)]
            notes |= _line(axis, [*map(points, seeds)], index, labels[index], interval)
        axis.set(title=f"{titles[data]}, {setting}", ylabel=names[1], visible=bool(lines))
    figure.supxlabel(names[0], fontsize="medium")
    return _finish(figure, notes)


def _line(axis, seeds: list[dict], index: int, label: str, interval=()) -> set[str]:
    """Draw the mean of {x: y} of the seeds, with a band, of one seed its `interval`, two {x: y};
    index: of the colour, where the label is no kind of token.  Returns {what the band is}."""
    points = _together(seeds)
    if not points:
        return set()
    color = COLORS.get(label) or [*COLORS.values()][index % len(COLORS)]
    mean, note = [*map(fmean, points.values())], "band of one run: 95 % interval"
    axis.plot([*points], mean, label=label, color=color, linewidth=1.6, zorder=3)
    if len(seeds) > 1:
        spread = [*map(stdev, points.values())]
        ends = [[y + sign * s for y, s in zip(mean, spread)] for sign in (-1, 1)]
        note = "band over seeds: ± 1 standard deviation"
    elif interval and {*points} <= {*interval[0]}:
        ends = [[end[x] for x in points] for end in interval]
    else:
        return set()
    axis.fill_between([*points], *ends, color=color, alpha=0.18, linewidth=0, zorder=2)
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
    """The notes above all panels; the labels of lines at their ends."""
    for axis in figure.axes:
        axis.title.set_size("medium")
        axis.get_ylim()  # settles the limits, without which nobody knows where a line ends
        _label_ends(axis)
    if notes:
        look = {"frameon": False, "title": "; ".join(sorted(notes)), "loc": "outside upper center"}
        figure.legend([], [], **look)
    return figure


def _label_ends(axis) -> None:
    """The label of each line right of its end, in its colour, moved up where it would cover the
    one below, and all down where they would leave the panel."""
    inside = axis.transData + axis.transAxes.inverted()
    lines = axis.get_legend_handles_labels()[0]
    ends = {line: inside.transform(line.get_xydata()[-1])[1] for line in lines}
    place, places = -LABEL, {}
    for line in sorted(ends, key=ends.get):
        place = places[line] = max(ends[line], place + LABEL)
    for line, at in places.items():
        style = {"color": line.get_color(), "va": "center", "fontsize": "small"}
        where = (1.02, at - max(0, place - 1))
        axis.annotate(line.get_label(), where, xycoords="axes fraction", **style)
