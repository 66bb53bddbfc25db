"""The tables that eval.py prints and writes: Markdown like the paper's.  A result is of one model,
data set and seed; its *parts* are settings and multiple choice; of one (label, data), a *cell*."""

import re
from itertools import product
from statistics import fmean, stdev

from minisoft.evaluation import Setting
from minisoft.kinds import KINDS
from minisoft.run.metrics import markdown

PERCENT = (100, 1)  # scale and digits of what is a share
GENERATIONS = {  # head of a column: the field that it shows, its scale and digits
    "reward": ("reward", 1, 1),
    "boxed (%)": ("boxed", *PERCENT),
    "truncated (%)": ("truncated", *PERCENT),
    "CoT length (tokens)": ("cot_length", 1, 1),
    "entropy (nats)": ("entropy", 1, 2),
}
CHOICES = {
    "accuracy (%)": ("accuracy", *PERCENT),
    "accuracy_norm (%)": ("accuracy_norm", *PERCENT),
    "NLL (nats per token)": ("nll", 1, 2),
}


def distinct(runs: list[dict], field: str) -> list[str]:
    """The values of a field in the order in which they first appear."""
    return list(dict.fromkeys(run[field] for run in runs))


def short_names(names) -> dict[str, str]:
    """Name or path -> its last part without .json(l); all stay whole if two would be the same."""
    short = {name: re.sub(r"\.jsonl?$", "", name.rstrip("/").split("/")[-1]) for name in names}
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


def number(seeds: list[dict], field: str, scale: float = 100, digits: int = 1) -> str:
    """A field of the runs of one cell: see `show_mean`; of one run "value [95 % interval]"."""
    seeds = [numbers for numbers in seeds if field in numbers]
    text = show_mean([scale * numbers[field] for numbers in seeds], 1, digits)
    if len(seeds) == 1 and field in seeds[0].get("ci95", {}):
        low, high = (scale * end for end in seeds[0]["ci95"][field])
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text


def tables(runs: list[dict]) -> str:
    """Markdown like the paper's Tables 1-5, and of what generations look like; rows by label."""
    titles = {f"{kind.capitalize()} inference**: pass@k in %": settings([kind]) for kind in KINDS}
    choices = (
        "Multiple choice**: accuracy by log-probability and by log-probability per character "
        "(norm), negative log-likelihood of the correct answer"
    )
    sections = []
    for title, names in (titles | {choices: ["choices"], "Generations**": settings()}).items():
        some = [run for run in runs if parts(run).keys() & set(names)]
        if some:
            rows = (_by_setting if title == "Generations**" else _by_label)(some, names)
            sections.append(f"**{title}. {_sizes(some, names)}\n\n{markdown(rows)}")
    return "\n\n".join(sections)


def _by_label(runs: list[dict], names: list[str]) -> list[list[str]]:
    """A row for each label; columns: for each data set the numbers of the parts `names`."""
    columns = {}  # head: (data, part, what `number` shows)
    for (data, short), part in product(short_names(distinct(runs, "data")).items(), names):
        measured = [run for run in runs if run["data"] == data and part in parts(run)]
        heads = CHOICES
        if part != "choices":
            drawn = part.rpartition("-")[2]  # greedy or sample
            sizes = {1} | {run["samples"] for run in measured if drawn == "sample"}
            heads = {f"{drawn} pass@{k}": (f"pass@{k}",) for k in sorted(sizes)}
        if measured:
            columns |= {f"{short}: {head}": (data, part, how) for head, how in heads.items()}
    rows = [["training", *columns]]
    for label in distinct(runs, "label"):
        cells = [number(cell(runs, label, *where), *how) for *where, how in columns.values()]
        rows.append([label, *cells])
    return rows


def _by_setting(runs: list[dict], names: list[str]) -> list[list[str]]:
    """A row for each label, data set and setting of `names`; columns: GENERATIONS."""
    measured = {field for run in runs for numbers in parts(run).values() for field in numbers}
    columns = {head: x for head, x in GENERATIONS.items() if x[0] in measured}
    rows = [["training", "data", "inference", *columns]]
    datas = short_names(distinct(runs, "data")).items()
    for label, (data, short), part in product(distinct(runs, "label"), datas, names):
        if seeds := cell(runs, label, data, part):
            rows.append([label, short, part, *(number(seeds, *x) for x in columns.values())])
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
