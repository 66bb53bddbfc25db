"""Tables, and with the extra `plot` pictures, of what runs reached.

    python -m minisoft.lab.tables RUN ...            # draws RUN/training.png
    python -m minisoft.lab.tables a.json b.json ...  # like the paper's, of results of eval.py --out

Results of one label and data set are the seeds of a cell of the tables; models of one label share a
cell only if the user gave the label to them as NAME.
"""

import sys
from pathlib import Path

from minisoft.errors import expect, expecting
from minisoft.io.atomic import read_json, write_text
from minisoft.kinds.options import Option
from minisoft.lab import command, figures
from minisoft.run.show import save_picture
from minisoft.run.subjects import apart, check_written
from minisoft.run.tables import parts, settings, tables
from minisoft.run.world import as_program

REQUIRED = dict(
    model=str, label=str, named=bool, data=str, problems=int, samples=int, seed=int, settings=dict
)
SAME = "problems samples cot dtype noise top_k gamma tau prompt".split()  # in a cell


def read_results(paths) -> list[dict]:
    """The runs in files of `eval.py --out`, each one run or {"runs": [...]}.  Models of one label
    that the user did not give them as NAME are told apart by their paths (`subjects.apart`).

    Raises InputError naming file and field for bad JSON, missing or wrong fields, a (label, model,
    data, seed) that comes twice, and runs of one (label, data) that differ in one of SAME.
    """
    read = []  # each with its place
    for path in paths:
        content = read_json(Path(path), required=True)
        several = content.get("runs", [content])
        expect(isinstance(several, list), f"{path}: runs", "a list", several)
        for i, run in enumerate(several):
            where = f"{path}: runs[{i}]" if "runs" in content else str(path)
            _check(run, where)
            read.append((where, run))
    labels = apart([(run["label"], run["model"], run["named"]) for _, run in read])
    runs, places, sizes = [], {}, {}
    for (where, run), label in zip(read, labels):
        key = (label, run["model"], run["data"], run["seed"])
        others = f"others than in {places.get(key)}"
        expect(key not in places, f"{where}: label, model, data, seed", others, key)
        size = [run.get(field) for field in SAME]
        usual = sizes.setdefault((label, run["data"]), size)
        same = f"{usual} as in other runs of {label}"
        expect(size == usual, f"{where}: {', '.join(SAME)}", same, size)
        places[key] = where
        runs.append({**run, "label": label})
    return runs


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
            with expecting("numbers as eval.py writes them", f"{where}: {part}: {name}"):
                _add_up(name, numbers[name])
        lengths = {name: len(numbers[name]) for name in numbers if name.endswith("_by_position")}
        alike = len(lengths) != 1 and len(set(lengths.values())) < 2
        expect(alike, f"{where}: {part}: {', '.join(lengths)}", "two of one length", lengths)


def _add_up(name: str, value) -> float:
    """What eval.py writes under this name: a number, several by position, or pairs; an error if it
    is something else."""
    if name == "ci95":
        return sum(low + high for low, high in value.values())
    return sum(value if name.endswith("_by_position") else [value])


def write(paths: list[Path], out: Path | None) -> None:
    """Print the tables, write tables and pictures into `out`, after all input was read.  Raises
    InputError, OSError."""
    files = [path for path in paths if not path.is_dir()]
    for path in files:
        expect(path.suffix == ".json", str(path), "a run folder or a .json file", "neither")
    runs, histories = read_results(files), figures.read_runs([x for x in paths if x.is_dir()])
    text, drawn = tables(runs), {}
    try:
        drawn = {"pass_at_k.png": figures.pass_at_k(runs), "entropy.png": figures.entropy(runs)}
        drawn["training.png"] = figures.training(histories) if histories else None
    except ImportError as error:
        if not text:
            raise
        print(f"minisoft.lab.tables: {error}", file=sys.stderr)
    folder = out or (files[0].parent if files else paths[0])
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {name: figure for name, figure in drawn.items() if figure}
    for name in [*(["tables.md"] if text else []), *drawn]:
        check_written(folder / name)
    if text:
        write_text(folder / "tables.md", text + "\n")
        print(f"{text}\n\nwrote {folder / 'tables.md'}")
    for name, figure in drawn.items():
        save_picture(folder / name, figure)
        print(f"wrote {folder / name}")


FLAGS = [
    Option("paths", Path, "RUN, or .json of eval.py", nargs="+", metavar="PATH", positional=True),
    Option("out", Path, "for tables and pictures (default that of the first)", metavar="FOLDER"),
]


def main(argv=None) -> None:
    with command.one_line("tables"):
        args = command.read("tables", __doc__, FLAGS, argv)
        write(args.paths, args.out)


if __name__ == "__main__":
    as_program(main)
