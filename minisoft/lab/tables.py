"""What a run tells: one line a step, metrics.jsonl, readable samples; and tables and pictures of what runs reached.

    python -m minisoft.lab.tables RUN                  # draws RUN/training.png and RUN/curves.png
    python -m minisoft.lab.tables a.json b.json ...    # tables and pictures like the paper's from results of eval.py --out

Every number of metrics.jsonl is explained in METRICS.  Pictures need the extra `plot`.
"""

import argparse
import json
import os
import resource
import sys
import time
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import torch

from minisoft.errors import InputError
from minisoft.evaluation import SETTINGS
from minisoft.io.atomic import read_json, write_text
from minisoft.lab import figures
from minisoft.lab.figures import cell, distinct, parts, short_names
from minisoft.soft import KINDS

METRICS = {
    "step": "number of the update, from 1",
    "reward": "mean reward of the step's B x G samples: 100 right, 10 boxed, 0 neither (eq. 11)",
    "accuracy": "share of samples with reward 100", "boxed": "share of samples with a readable boxed answer",
    "truncated": "share of samples that spent the CoT budget",
    "cot_length": "mean number of CoT tokens", "answer_length": "mean number of answer tokens",
    "entropy": "entropy of the next token at temperature 1, nats, mean over CoT positions, then samples",
    "informative": "share of the B problems whose rewards differ: the others have advantage 0",
    "grad_norm": "norm of the summed gradient before clipping",
    "share_E": "norm of the gradient in E (and a tied head) / grad_norm",
    "share_cot": "norm of the gradient of the CoT terms alone / grad_norm (every --shares-every steps)",
    "share_answer": "norm of the gradient of the answer terms alone / grad_norm (the two need not add up to 1)",
    "replay_mismatch": "mean |log-prob replayed - at rollout| per action token of rows with an advantage",
    "replay_mismatch_max": "the largest of these", "lr": "learning rate of the update",
    "seconds": "of the whole step; seconds_rollout, _reward, _backward, _optimizer: of its parts",
    "verifier": "how many of the step's answers were decided how (Verifier.counts in minisoft/reward.py)",
    "validation": "hard-greedy pass@1 on the validation problems (every --validate-every steps)",
    "memory_gib": "peak memory of this process so far, GiB (GPU memory on CUDA)",
}
REQUIRED = {"model": str, "data": str, "problems": int, "samples": int, "seed": int, "settings": dict}  # of a result
SAME = ("problems", "samples", "cot", "dtype", "noise", "top_k", "gamma", "tau", "prompt")  # in the seeds of one row
GENERATIONS = (("boxed (%)", "boxed", 100, 1), ("truncated (%)", "truncated", 100, 1),
               ("CoT length (tokens)", "cot_length", 1, 1), ("entropy (nats)", "entropy", 1, 2))
CHOICES = (("accuracy (%)", "accuracy", 100, 1), ("accuracy_norm (%)", "accuracy_norm", 100, 1),
           ("NLL (nats per token)", "nll", 1, 2))  # column of a table, field, scale, digits


@contextmanager
def clock(seconds: dict[str, float], name: str):
    """seconds[name] = how long the block took, on the GPU too."""
    start = time.perf_counter()
    yield
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    seconds[name] = time.perf_counter() - start


class MetricsFile:
    """metrics.jsonl, one object a step; opening it drops whatever lies after step `last` (a resumed run redoes it)."""

    def __init__(self, path: Path, last: int):
        self.path = path
        lines = path.read_text().splitlines() if path.is_file() else []  # the last one may have been cut by a crash
        write_text(path, "".join(line + "\n" for line in lines[:last]))

    def write(self, metrics: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")


def peak_memory_gib(device) -> float:
    """Peak memory so far: of the GPU's allocator on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def memory_bytes(device) -> float:
    """All the memory there is, free or not, so that a run always finds the same: of the GPU, or a rank's part of the RAM."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def sample_text(generation: dict) -> str:
    """A rollout for people: question, shadow CoT, answer, gold, reward."""
    shorten = lambda text, n: text if len(text) <= n else text[: n // 2] + " [...] " + text[-n // 2:]
    return (f"  question  {shorten(generation['question'], 300)}\n  CoT      {shorten(generation['cot'], 600)}\n"
            f"  answer    {shorten(generation['answer'], 80)}   gold {shorten(generation['gold'], 80)}   "
            f"reward {generation['reward']}")


percent = "{:.1%}".format  # a fraction for people


def table(rows: list[list[str]]) -> str:
    """Rows of cells as a Markdown table, the first row its head."""
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, width)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in width) + "|", *lines[1:]])


def read_results(paths) -> list[dict]:
    """The runs in files of `eval.py --out`, each one run or {"runs": [...]}; where a "label" is missing, it becomes the
    last two parts of the model's path.

    Raises InputError naming file and field for bad JSON, missing or wrong fields, a (label, model, data, seed)
    that comes twice, and runs of one (label, data) that differ in one of SAME.
    """
    runs, places, sizes = [], {}, {}
    for path in paths:
        found = read_json(Path(path), required=True)
        _expect(isinstance(found.get("runs", []), list), f"{path}: runs", "a list", found.get("runs"))
        for i, run in enumerate(found.get("runs", [found])):
            where = f"{path}: runs[{i}]" if "runs" in found else str(path)
            _check(run, where)
            label = str(run.get("label") or "/".join(run["model"].strip("/").split("/")[-2:]))
            key, size = (label, run["model"], run["data"], run["seed"]), [run.get(x) for x in SAME]
            _expect(key not in places, f"{where}: label, model, data, seed", f"others than in {places.get(key)}", key)
            places[key], usual = where, sizes.setdefault((label, run["data"]), size)
            _expect(size == usual, f"{where}: {', '.join(SAME)}", f"{usual} as in other runs of {label}", size)
            runs.append({**run, "label": label})
    return runs


def _expect(good: bool, where: str, what: str, found) -> None:
    if not good:
        raise InputError(f"{where}: expected {what}, found {found!r:.200}")


def _check(run, where: str) -> None:
    """Raises InputError unless every field that is used is what eval.py writes."""
    are_numbers = lambda values: isinstance(values, list) and all(type(value) in (int, float) for value in values)
    are_ends = lambda values: isinstance(values, dict) and all(are_numbers(v) and len(v) == 2 for v in values.values())
    _expect(isinstance(run, dict), where, "an object", run)
    for name, kind in REQUIRED.items():
        _expect(type(run.get(name)) is kind, f"{where}: {name}", kind.__name__, run.get(name))
    for part, numbers in parts(run).items():
        _expect(part in (*SETTINGS, "choices"), f"{where}: settings", f"some of {', '.join(SETTINGS)}", part)
        _expect(isinstance(numbers, dict), f"{where}: {part}", "an object", numbers)
        for name in ["accuracy" if part == "choices" else "pass@1", *numbers]:
            value = numbers.get(name)
            good = (are_ends(value) if name == "ci95" else are_numbers(value) if name.endswith("_by_position") else
                    are_numbers([value]))
            _expect(good, f"{where}: {part}: {name}", "numbers as eval.py writes them", value)
        lengths = [len(numbers.get(name, [])) for name in ("entropy_by_position", "rows_by_position")]
        _expect(lengths[0] == lengths[1], f"{where}: {part}: rows_by_position", f"{lengths[0]} numbers", lengths[1])


def number(found: list[dict], name: str, scale: float = 100, digits: int = 1) -> str:
    """A field of the runs of one cell for people: "mean ± standard deviation", of one run "value [95 % interval]"."""
    show, found = (lambda value: f"{scale * value:.{digits}f}"), [numbers for numbers in found if name in numbers]
    if len(found) > 1:
        return " ± ".join(show(of([numbers[name] for numbers in found])) for of in (fmean, stdev))
    ends = [show(end) for numbers in found for end in numbers.get("ci95", {}).get(name, [])]
    return "".join(show(numbers[name]) for numbers in found) + (f" [{', '.join(ends)}]" if ends else "")


def tables(runs: list[dict]) -> str:
    """Markdown like the paper's Tables 1-5: pass@k by kind of inference, multiple choice, what generations look like.
    runs: results of eval.py with a "label"; those of one (label, data) are the seeds of a cell.  Rows are in the order
    in which labels first appear."""
    sections = [*((f"**{kind.capitalize()} inference**: pass@k in %", [f"{kind}-greedy", f"{kind}-sample"], _by_label)
                  for kind in KINDS),
                ("**Multiple choice**: accuracy by log-probability and by log-probability per character (norm), "
                 "negative log-likelihood of the correct answer", ["choices"], _by_label),
                ("**Generations**", SETTINGS, _by_setting)]
    found = []
    for title, names, layout in sections:
        if mine := [run for run in runs if parts(run).keys() & set(names)]:
            found.append(f"{title}. {_about(mine, names)}\n\n{table(layout(mine, names))}")
    return "\n\n".join(found)


def _by_label(runs: list[dict], names: list[str]) -> list[list[str]]:
    """A row for each label; columns: for each data set the numbers of the parts `names`."""
    columns = []  # (data, part, head, field, scale, digits)
    for (data, short), part in product(short_names(distinct(runs, "data")).items(), names):
        samples = {run["samples"] for run in runs if run["data"] == data and part in parts(run)}
        ks = sorted({1} | samples if part.endswith("sample") else {1}) if samples else []
        fields = CHOICES if part == "choices" else [(f"{part.split('-')[1]} pass@{k}", f"pass@{k}") for k in ks]
        columns += [(data, part, f"{short}: {head}", *field) for head, *field in fields]
    return [["training", *(column[2] for column in columns)]] + [
        [label, *(number(cell(runs, label, data, part), *field) for data, part, _, *field in columns)]
        for label in distinct(runs, "label")]


def _by_setting(runs: list[dict], names: list[str]) -> list[list[str]]:
    """A row for each label, data set and setting of `names`; columns: GENERATIONS."""
    return [["training", "data", "inference", *(head for head, *_ in GENERATIONS)]] + [
        [label, short, part, *(number(found, *field) for _, *field in GENERATIONS)]
        for label, (data, short), part in product(
            distinct(runs, "label"), short_names(distinct(runs, "data")).items(), names)
        if (found := cell(runs, label, data, part))]


def _about(runs: list[dict], names: list[str]) -> str:
    """How the numbers are written, and how many runs, problems and samples they are from."""
    sizes = []
    for data, short in short_names(distinct(runs, "data")).items():
        mine = [run for run in runs if run["data"] == data]
        counts = {field: "/".join(map(str, distinct(mine, field))) for field in ("problems", "samples")}
        sizes.append(f"{short}: {len(mine)} run{'s'[:len(mine) > 1]}, " + ", ".join(
            f"{n} {field}" for field, n in counts.items() if field == "problems" or names != ["choices"]))
    return f"Mean ± standard deviation over runs; of one run, value [95 % interval]. {'; '.join(sizes)}"


def write(paths: list[Path], out: Path | None) -> None:
    """Print the tables, write tables and pictures into `out`, after all input was read.  Raises InputError, OSError."""
    folders, files = [path for path in paths if path.is_dir()], [path for path in paths if not path.is_dir()]
    for path in files:
        _expect(path.suffix == ".json", str(path), "a run folder or a .json file", "neither")
    runs, pictures = read_results(files), {}
    text, folder = tables(runs), out or (files[0].parent if files else folders[0])
    try:
        pictures = {"training.png": figures.training(figures.read_runs(folders)) if folders else None,
                    "curves.png": figures.curves(folders[0]) if len(folders) == 1 else None,
                    "pass_at_k.png": figures.pass_at_k(runs), "entropy.png": figures.entropy(runs)}
    except ImportError as error:
        missing = f"pictures need the extra `plot`: pip install matplotlib ({error})"
        if not text:
            raise InputError(missing) from None
        print(f"minisoft.lab.tables: {missing}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    if text:
        (folder / "tables.md").write_text(text + "\n", "utf-8")
        print(f"{text}\n\nwrote {folder / 'tables.md'}")
    for name, figure in pictures.items():
        if figure:
            figure.savefig(folder / name, dpi=160)
            print(f"wrote {folder / name}")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m minisoft.lab.tables", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH",
                        help="run folder of train.py, or .json file of eval.py --out")
    parser.add_argument("--out", type=Path, metavar="FOLDER",
                        help="where tables.md, training.png, pass_at_k.png, entropy.png and, for one run folder, "
                        "curves.png go (default: where the first .json file is, else the first run folder)")
    args = parser.parse_args(argv)
    try:
        write(args.paths, args.out)
    except (InputError, OSError) as error:
        sys.exit(f"minisoft.lab.tables: error: {error}")


if __name__ == "__main__":
    main()
