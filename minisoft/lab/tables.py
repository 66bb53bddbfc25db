"""Tables, and with the extra `plot` pictures, of what runs reached.

    python -m minisoft.lab.tables RUN                # draws RUN/training.png and RUN/curves.png
    python -m minisoft.lab.tables a.json b.json ...  # like the paper's, of results of eval.py --out

A result is what eval.py writes of one model, data set and seed; its *parts* are the settings of
inference and multiple choice.  Results of one (label, data) are the seeds of a *cell*; models of
one label share one only if the user gave it to them as NAME.
"""

import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

from minisoft.errors import InputError, expect
from minisoft.evaluation import Setting
from minisoft.io.atomic import read_json, write_text, writing
from minisoft.kinds import KINDS
from minisoft.lab import command
from minisoft.run.metrics import markdown
from minisoft.run.subjects import MARK, apart, check_written
from minisoft.run.world import as_program

REQUIRED = dict(model=str, data=str, problems=int, samples=int, seed=int, settings=dict)
SAME = "problems samples cot dtype noise top_k gamma tau prompt".split()  # in a cell


@dataclass(frozen=True)
class Column:
    """The head of a column, the field that it shows, and how."""

    head: str
    field: str
    scale: float = 100
    digits: int = 1


GENERATIONS = (
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


def settings() -> list[str]:
    """The names of all settings of inference: greedy and sampled, of every kind of token."""
    return [str(Setting(kind, greedy)) for kind in KINDS for greedy in (True, False)]


def parts(run: dict) -> dict[str, dict]:
    """What a run measured: {setting, or "choices": its numbers}."""
    choices = {"choices": run["choices"]} if run.get("choices") else {}
    return {**run["settings"], **choices}


def cell(runs: list[dict], label: str, data: str, part: str) -> list[dict]:
    """The numbers of a part of each run of one (label, data)."""
    seeds = [run for run in runs if (run["label"], run["data"]) == (label, data)]
    return [parts(run)[part] for run in seeds if part in parts(run)]


def read_results(paths) -> list[dict]:
    """The runs in files of `eval.py --out`, each one run or {"runs": [...]}; where a "label" is
    missing, it becomes the last two parts of the model's path.  Models of one label that the user
    did not give them as NAME are told apart by their paths (`subjects.apart`).

    Raises InputError naming file and field for bad JSON, missing or wrong fields, a (label, model,
    data, seed) that comes twice, and runs of one (label, data) that differ in one of SAME.
    """
    runs, wheres, models = [], [], []
    for path in paths:
        content = read_json(Path(path), required=True)
        several = content.get("runs", [content])
        expect(isinstance(several, list), f"{path}: runs", "a list", several)
        for i, run in enumerate(several):
            where = f"{path}: runs[{i}]" if "runs" in content else str(path)
            _check(run, where)
            label = str(run.get("label") or "/".join(run["model"].strip("/").split("/")[-2:]))
            runs.append(run)
            wheres.append(where)
            models.append((label, run["model"], bool(run.get("named", run.get("label")))))
    labels = apart(models)
    runs = [{**run, "label": label} for run, label in zip(runs, labels)]
    _check_together(runs, wheres)
    return runs


def _check_together(runs: list[dict], wheres: list[str]) -> None:
    """Raises InputError for a (label, model, data, seed) that comes twice, and runs of a cell that
    differ in one of SAME; wheres: the place of each run."""
    places, sizes = {}, {}
    for run, where in zip(runs, wheres):
        key = (run["label"], run["model"], run["data"], run["seed"])
        others = f"others than in {places.get(key)}"
        expect(key not in places, f"{where}: label, model, data, seed", others, key)
        size = [run.get(field) for field in SAME]
        usual = sizes.setdefault((run["label"], run["data"]), size)
        same = f"{usual} as in other runs of {run['label']}"
        expect(size == usual, f"{where}: {', '.join(SAME)}", same, size)
        places[key] = where


def _check(run, where: str) -> None:
    """Raises InputError unless every field that is used is what eval.py writes."""
    expect(isinstance(run, dict), where, "an object", run)
    for name, required in REQUIRED.items():
        value = run.get(name)
        expect(type(value) is required, f"{where}: {name}", required.__name__, value)
    for part, numbers in parts(run).items():
        known = part in (*settings(), "choices")
        expect(known, f"{where}: settings", f"some of {', '.join(settings())}", part)
        expect(isinstance(numbers, dict), f"{where}: {part}", "an object", numbers)
        for name in ["accuracy" if part == "choices" else "pass@1", *numbers]:
            value, what = numbers.get(name), "numbers as eval.py writes them"
            expect(_is_written(name, value), f"{where}: {part}: {name}", what, value)
        values = len(numbers.get("entropy_by_position", []))
        rows = len(numbers.get("rows_by_position", []))
        expect(values == rows, f"{where}: {part}: rows_by_position", f"{values} numbers", rows)


def _is_written(name: str, value) -> bool:
    """Is it what eval.py writes under this name?"""
    if name == "ci95":
        pairs = value.values() if isinstance(value, dict) else [None]
        return all(_are_numbers(pair) and len(pair) == 2 for pair in pairs)
    return _are_numbers(value if name.endswith("_by_position") else [value])


def _are_numbers(values) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)


def number(seeds: list[dict], column: Column) -> str:
    """A field of the runs of one cell for people: "mean ± standard deviation", of one run
    "value [95 % interval]"."""
    field, scale, digits = column.field, column.scale, column.digits
    seeds = [numbers for numbers in seeds if field in numbers]
    values = [scale * numbers[field] for numbers in seeds]
    if len(values) > 1:
        return f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}"
    text = "".join(f"{value:.{digits}f}" for value in values)
    for low, high in [n["ci95"][field] for n in seeds if field in n.get("ci95", {})]:
        text += f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
    return text


def tables(runs: list[dict]) -> str:
    """Markdown like the paper's Tables 1-5: pass@k by kind of inference, multiple choice, what
    generations look like.

    Rows are in the order in which the labels of the runs first appear.
    """
    sections = []
    for kind in KINDS:
        names = [str(Setting(kind, greedy)) for greedy in (True, False)]
        title = f"**{kind.capitalize()} inference**: pass@k in %"
        sections.append(_section(runs, title, names, _by_label))
    title = (
        "**Multiple choice**: accuracy by log-probability and by log-probability per character "
        "(norm), negative log-likelihood of the correct answer"
    )
    sections.append(_section(runs, title, ["choices"], _by_label))
    sections.append(_section(runs, "**Generations**", settings(), _by_setting))
    return "\n\n".join(filter(None, sections))


def _section(runs: list[dict], title: str, names: list[str], layout) -> str:
    """Title and table of the runs that have one of the parts `names`; "" without any."""
    measured = [run for run in runs if parts(run).keys() & set(names)]
    if not measured:
        return ""
    return f"{title}. {_sizes(measured, names)}\n\n{markdown(layout(measured, names))}"


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
    rows = [["training", "data", "inference", *(column.head for column in GENERATIONS)]]
    datas = short_names(distinct(runs, "data")).items()
    for label, (data, short), part in product(distinct(runs, "label"), datas, names):
        seeds = cell(runs, label, data, part)
        if seeds:
            numbers = [number(seeds, column) for column in GENERATIONS]
            rows.append([label, short, part, *numbers])
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


def pictures(folders: list[Path], runs: list[dict]) -> dict:
    """{file name: Figure} of run folders and results.  Raises InputError for a folder that cannot
    be read, then ImportError without matplotlib."""
    from minisoft.lab import figures  # here, since train.py and eval.py need tables only

    histories = figures.read_runs(folders)
    drawn = {"pass_at_k.png": figures.pass_at_k(runs), "entropy.png": figures.entropy(runs)}
    if folders:
        drawn["training.png"] = figures.training(histories)
    if len(folders) == 1:
        drawn["curves.png"] = figures.curves(folders[0])
    return {name: figure for name, figure in drawn.items() if figure}


def write(paths: list[Path], out: Path | None) -> None:
    """Print the tables, write tables and pictures into `out`, after all input was read.  Raises
    InputError, OSError."""
    folders = [path for path in paths if path.is_dir()]
    files = [path for path in paths if not path.is_dir()]
    for path in files:
        expect(path.suffix == ".json", str(path), "a run folder or a .json file", "neither")
    runs = read_results(files)
    text, drawn = tables(runs), {}
    try:
        drawn = pictures(folders, runs)
    except ImportError as error:
        missing = f"pictures need the extra `plot`: pip install matplotlib ({error})"
        if not text:
            raise InputError(missing) from None
        print(f"minisoft.lab.tables: {missing}", file=sys.stderr)
    folder = out or (files[0].parent if files else folders[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*(["tables.md"] if text else []), *drawn]:
        check_written(folder / name)
    if text:
        write_text(folder / "tables.md", text + "\n")
        print(f"{text}\n\nwrote {folder / 'tables.md'}")
    for name, figure in drawn.items():
        with writing(folder / name):
            figure.savefig(folder / name, dpi=160, metadata=MARK)
        print(f"wrote {folder / name}")


def main(argv=None) -> None:
    parser = command.parser("tables", __doc__)
    of_paths = "run folder of train.py, or .json file of eval.py --out"
    of_out = (
        "where tables.md, training.png, pass_at_k.png, entropy.png and, for one run folder, "
        "curves.png go (default: where the first .json file is, else the first run folder)"
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=of_paths)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=of_out)
    args = parser.parse_args(argv)
    with command.one_line("tables"):
        write(args.paths, args.out)


if __name__ == "__main__":
    as_program(main)
