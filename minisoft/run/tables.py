"""The tables that eval.py prints and writes: Markdown like the paper's.

A result is what eval.py writes of one model, data set and seed; its *parts* are the settings of
inference and multiple choice.  Results of one (label, data) are the seeds of a *cell*.
"""

from dataclasses import dataclass
from itertools import product
from statistics import fmean, stdev

from minisoft.evaluation import Setting
from minisoft.kinds import KINDS
from minisoft.run.metrics import markdown


@dataclass(frozen=True)
class Column:
    """The head of a column, the field that it shows, and how."""

    head: str
    field: str
    scale: float = 100
    digits: int = 1


GENERATIONS = (
    Column("reward", "reward", 1),
    Column("boxed (%)", "boxed"),
    Column("truncated (%)", "truncated"),
    Column("CoT length (tokens)", "cot_length", 1),
    Column("entropy (nats)", "entropy", 1, 2),
)
CHOICES = (
    Column("accuracy (%)", "accuracy"),
    Column("accuracy_norm (%)", "accuracy_norm"),
    Column("NLL (nats per token)", "nll", 1, 2),
)


def distinct(runs: list[dict], field: str) -> list[str]:
    """The values of a field in the order in which they first appear."""
    return list(dict.fromkeys(run[field] for run in runs))


def short_names(names) -> dict[str, str]:
    """Name or path -> its last part without .json or .jsonl; all stay whole if two would become
    the same."""
    short = {}
    for name in names:
        last = name.rstrip("/").split("/")[-1]
        short[name] = last.removesuffix(".jsonl").removesuffix(".json")
    return short if len(set(short.values())) == len(short) else {name: name for name in short}


def settings(kinds=KINDS) -> list[str]:
    """The names of the settings of inference of some kinds of token: greedy and sampled."""
    return [str(Setting(kind, greedy)) for kind in kinds for greedy in (True, False)]


def parts(run: dict) -> dict[str, dict]:
    """What a run measured: {setting, or "choices": its numbers}."""
    choices = {"choices": run["choices"]} if run.get("choices") else {}
    return {**run["settings"], **choices}


def cell(runs: list[dict], label: str, data: str, part: str) -> list[dict]:
    """The numbers of a part of each run of one (label, data)."""
    seeds = [run for run in runs if (run["label"], run["data"]) == (label, data)]
    return [parts(run)[part] for run in seeds if part in parts(run)]


def show_mean(values: list[float], scale: float = 100, digits: int = 1) -> str:
    """ "mean ± standard deviation", of one value the value, of none "" """
    statistics = (fmean, stdev)[: len(values)]
    return " ± ".join(f"{scale * of(values):.{digits}f}" for of in statistics)


def number(seeds: list[dict], column: Column) -> str:
    """A field of the runs of one cell: see `show_mean`; of one run "value [95 % interval]"."""
    field, scale, digits = column.field, column.scale, column.digits
    seeds = [numbers for numbers in seeds if field in numbers]
    text = show_mean([scale * numbers[field] for numbers in seeds], 1, digits)
    if len(seeds) == 1 and field in seeds[0].get("ci95", {}):
        low, high = (scale * end for end in seeds[0]["ci95"][field])
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text


def tables(runs: list[dict]) -> str:
    """Markdown like the paper's Tables 1-5: pass@k by kind of inference, multiple choice, what
    generations look like.

    Rows are in the order in which the labels of the runs first appear.
    """
    sections = []
    for kind in KINDS:
        title = f"**{kind.capitalize()} inference**: pass@k in %"
        sections.append(_section(runs, title, settings([kind]), _by_label))
    title = (
        "**Multiple choice**: accuracy by log-probability and by log-probability per character "
        "(norm), negative log-likelihood of the correct answer"
    )
    sections.append(_section(runs, title, ["choices"], _by_label))
    sections.append(_section(runs, "**Generations**", settings(), _by_setting))
    return "\n\n".join(filter(None, sections))


def _section(runs: list[dict], title: str, names: list[str], layout) -> str:
    """Title and table of the runs that have one of the parts `names`; "" without any."""
    runs = [run for run in runs if parts(run).keys() & set(names)]
    if not runs:
        return ""
    return f"{title}. {_sizes(runs, names)}\n\n{markdown(layout(runs, names))}"


def _by_label(runs: list[dict], names: list[str]) -> list[list[str]]:
    """A row for each label; columns: for each data set the numbers of the parts `names`."""
    head, columns = ["training"], []  # columns: (data, part, Column)
    for (data, short), part in product(short_names(distinct(runs, "data")).items(), names):
        for column in _columns(runs, data, part):
            head.append(f"{short}: {column.head}")
            columns.append((data, part, column))
    rows = [head]
    for label in distinct(runs, "label"):
        cells = [number(cell(runs, label, *where), column) for *where, column in columns]
        rows.append([label, *cells])
    return rows


def _columns(runs: list[dict], data: str, part: str) -> tuple[Column, ...]:
    """What a part is shown as, if it was measured."""
    samples = {run["samples"] for run in runs if run["data"] == data and part in parts(run)}
    if not samples:
        return ()
    if part == "choices":
        return CHOICES
    if Setting.parse(part, KINDS).greedy:
        return (Column("greedy pass@1", "pass@1"),)
    return tuple(Column(f"sample pass@{k}", f"pass@{k}") for k in sorted({1} | samples))


def _by_setting(runs: list[dict], names: list[str]) -> list[list[str]]:
    """A row for each label, data set and setting of `names`; columns: GENERATIONS."""
    measured = {field for run in runs for numbers in parts(run).values() for field in numbers}
    columns = [column for column in GENERATIONS if column.field in measured]
    rows = [["training", "data", "inference", *(column.head for column in columns)]]
    datas = short_names(distinct(runs, "data")).items()
    for label, (data, short), part in product(distinct(runs, "label"), datas, names):
        if seeds := cell(runs, label, data, part):
            rows.append([label, short, part, *(number(seeds, column) for column in columns)])
    return rows


def _sizes(runs: list[dict], names: list[str]) -> str:
    """How numbers are written, and how many runs, problems and samples they are from."""
    sizes = []
    for data, short in short_names(distinct(runs, "data")).items():
        seeds = [run for run in runs if run["data"] == data]
        counts = [f"{len(seeds)} run" if len(seeds) == 1 else f"{len(seeds)} runs"]
        for field in ["problems"] if names == ["choices"] else ["problems", "samples"]:
            counts.append(f"{'/'.join(map(str, distinct(seeds, field)))} {field}")
        sizes.append(f"{short}: {', '.join(counts)}")
    how = "Mean ± standard deviation over runs; of one run, value [95 % interval]."
    return f"{how} {'; '.join(sizes)}"
