"""Data sets -> problems and multiple-choice questions: JSONL and JSON files in the formats below, the hub (extra `data`), and
the sets beside the embedded model ("tiny")."""

import json
import re
import string
import sys
from pathlib import Path

from minisoft.data import Choice, Problem, boxed
from minisoft.errors import InputError, expecting
from minisoft.io import WEIGHTS

HUB = {  # short name -> (hub dataset, configuration, split)
    "gsm8k": ("openai/gsm8k", "main", "train"), "gsm8k-test": ("openai/gsm8k", "main", "test"),
    "math-500": ("HuggingFaceH4/MATH-500", None, "test"),
    "deepscaler": ("agentica-org/DeepScaleR-Preview-Dataset", None, "train"),
    "olympiadbench": ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"),
    "hellaswag": ("Rowan/hellaswag", None, "validation"),
    "arc-easy": ("allenai/ai2_arc", "ARC-Easy", "test"), "arc-challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "mmlu": ("cais/mmlu", "all", "test")}
EMBEDDED = {"tiny": "train.jsonl", **{f"tiny-{name}": f"{name}.jsonl" for name in (
    "test", "long", "hard", "facts", "sorting", "drills", "references")}}  # in weights/tiny


def load(source: str | Path) -> list[Problem] | list[Choice]:
    """What `load_choices` gives if the first row is multiple choice (has `choices` or `endings`), else what
    `load_problems` gives; the source is read once.  Raises InputError as these do, so also for a row of the other
    kind."""
    rows = _read(source)
    return _choices(rows) if _is_choice(rows[0][1]) else _problems(rows, source)


def load_problems(source: str | Path) -> list[Problem]:
    """Problems of a .jsonl or .json file, of "tiny", "tiny-test", "tiny-long", "tiny-hard", or of the hub ("gsm8k", ..., or
    "owner/name[:configuration[:split]]").  Rows with an empty answer are left out and named on stderr.  Raises
    InputError for any other row that is no problem."""
    return _problems(_read(source), source)


def load_choices(source: str | Path) -> list[Choice]:
    """Multiple-choice questions of a file, of "tiny-facts", "tiny-sorting", "tiny-drills", "tiny-references", or of the hub
    ("hellaswag", "arc-easy", "arc-challenge", "mmlu", or "owner/name[:configuration[:split]]").  Formats of a row:

        HellaSwag    ctx, endings (texts), label (index); with activity_label, ctx_a and ctx_b: context of these
        ARC          question, choices {text: [...], label: [...]}, answerKey (one of the labels)
        MMLU         question, choices (texts), answer (index, or a letter from A on)

    HellaSwag's and ARC's contexts and texts are those of lm-evaluation-harness.  MMLU's context is ARC's, and its options
    are scored by their text, not by their letter.  Rows without the right option's label (test splits that keep it
    secret) are left out and named on stderr.  Raises InputError for any other row."""
    return _choices(_read(source))


def _read(source: str | Path) -> list[tuple[str, dict]]:
    """(where, row) of each row, at least one."""
    path = WEIGHTS / "tiny" / EMBEDDED[source] if source in EMBEDDED else Path(source)
    if not path.is_file() and path.suffix in (".json", ".jsonl"):
        raise InputError(f"{source}: expected a data file, found no such file")
    rows = _read_file(path) if path.is_file() else _read_hub(str(source))
    if not rows:
        raise InputError(f"{source}: expected at least one row, found none")
    return rows


def _problems(rows: list[tuple[str, dict]], source: str | Path) -> list[Problem]:
    problems = {where: _problem(row, where) for where, row in rows}
    if empty := [where for where, problem in problems.items() if not problem.answer]:
        print(f"{len(empty)} rows with an empty answer are left out: {', '.join(empty[:5])}", file=sys.stderr)
    if len(empty) == len(problems):
        raise InputError(f"{source}: expected at least one row with an answer, found none")
    return [problem for problem in problems.values() if problem.answer]


def _read_file(path: Path) -> list[tuple[str, dict]]:
    """(where, row) of each row of a JSONL file, or of a JSON list."""
    with expecting("UTF-8 text", path):
        text = path.read_text("utf-8")
    if text.lstrip().startswith("["):
        with expecting("a JSON list", path):
            return [(f"{path}: row {i}", row) for i, row in enumerate(json.loads(text), 1)]
    rows = []
    for i, line in enumerate(text.split("\n"), 1):
        if line.strip():
            with expecting("a JSON object", f"{path}: line {i}"):
                rows.append((f"{path}: line {i}", json.loads(line)))
    return rows


def _read_hub(name: str) -> list[tuple[str, dict]]:
    if name not in HUB and name.count("/") != 1:
        raise InputError(f"{name}: expected a .jsonl or .json file, owner/name on the hub, or one of "
                         f"{', '.join([*EMBEDDED, *HUB])}; found no such file")
    dataset, configuration, split = HUB.get(name) or (name.split(":") + [None, None])[:3]
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name}: datasets of the hub need the extra `data`: pip install datasets") from None
    with expecting("a dataset of the hub", name, "; download it and give the .jsonl file instead"):
        rows = datasets.load_dataset(dataset, configuration or None, split=split or "train")
    return [(f"{name}: row {i}", row) for i, row in enumerate(rows, 1)]


def _problem(row, where: str) -> Problem:
    """One row in the format of GSM8K, MATH, MATH-500, DeepScaleR, OlympiadBench, MAWPS, or plain question/answer."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    if _is_choice(row):
        raise InputError(f"{where}: expected a problem with a free answer, found multiple choice (fields "
                         f"{', '.join(row)})")
    question = next((row[k] for k in ("question", "problem", "input") if isinstance(row.get(k), str)), "").strip()
    answer = _answer(row)
    if not question or answer is None:
        raise InputError(f"{where}: expected question, problem or input, and answer, final_answer, target or a "
                         f"solution with \\boxed{{}}; found fields {', '.join(row)}")
    context = row.get("context")  # OlympiadBench
    if isinstance(context, str) and context.strip():
        question = f"{context.strip()} {question}"
    return Problem(question, answer)


def _answer(row: dict) -> str | None:
    if isinstance(row.get("final_answer"), list):  # OlympiadBench
        return ", ".join(str(a).strip().strip("$") for a in row["final_answer"])
    value = next((row[k] for k in ("answer", "target", "final_answer") if row.get(k) is not None), None)
    if isinstance(value, (int, float)) and not isinstance(value, bool):  # MAWPS: 14.0
        return str(int(value)) if float(value).is_integer() else repr(value)
    if isinstance(value, str):
        return value.rsplit("####", 1)[-1].strip()  # GSM8K: the gold follows ####
    solution = row.get("solution")  # MATH as first published
    if isinstance(solution, str) and (boxes := list(re.finditer(r"\\boxed(\s*\{|\s)", solution))):
        text = solution[boxes[-1].end():]
        return boxed(text) if boxes[-1][1].endswith("{") else _unbraced(text)
    return "" if {"answer", "target"} & set(row) and value is None else None


def _unbraced(text: str) -> str:
    r"""What a box without braces holds, by MATH's convention: $\boxed 5$ holds all up to the end of the formula."""
    return re.split(r"\$|\\\)|\\\]", text)[0].strip()


def _choices(rows: list[tuple[str, dict]]) -> list[Choice]:
    secret = [where for where, row in rows if _is_choice(row) and "" in (row.get("label"), row.get("answerKey"))]
    if secret:
        print(f"{len(secret)} rows without an answer are left out: {', '.join(secret[:5])}", file=sys.stderr)
    if len(secret) == len(rows):
        raise InputError(f"{rows[0][0]}: expected at least one row with an answer, found none")
    left_out = set(secret)
    return [_choice(row, where) for where, row in rows if where not in left_out]


def _is_choice(row) -> bool:
    return isinstance(row, dict) and ("choices" in row or "endings" in row)


def _choice(row, where: str) -> Choice:
    """One row in a format of `load_choices`."""
    if not _is_choice(row):
        found = f"fields {', '.join(row)}" if isinstance(row, dict) else type(row).__name__
        raise InputError(f"{where}: expected multiple choice (field choices or endings), found {found}")
    if "endings" in row:  # HellaSwag
        options = _options(row["endings"], f"{where}: endings", _clean)
        return Choice(_hellaswag_context(row, where), options, _answer_index(row, "label", range(len(options)), where))
    question = row.get("question")
    _expect(isinstance(question, str) and question.strip(), f"{where}: question", "a text", question)
    context = f"Question: {question}\nAnswer:"
    if isinstance(row["choices"], dict):  # ARC
        options, labels = _options(row["choices"].get("text"), f"{where}: choices.text"), row["choices"].get("label")
        _expect(isinstance(labels, list) and len(labels) == len(options), f"{where}: choices.label",
                f"{len(options)} labels", labels)
        return Choice(context, options, _answer_index(row, "answerKey", labels, where))
    options = _options(row["choices"], f"{where}: choices")  # MMLU
    names = string.ascii_uppercase[: len(options)] if isinstance(row.get("answer"), str) else range(len(options))
    return Choice(context, options, _answer_index(row, "answer", names, where))


def _expect(ok, where: str, expected: str, found) -> None:
    if not ok:
        raise InputError(f"{where}: expected {expected}, found {found!r:.80}")


def _options(texts, where: str, clean=str) -> tuple[str, ...]:
    """At least two texts, each passed through `clean` and not empty."""
    _expect(isinstance(texts, list) and len(texts) > 1, where, "a list of at least two texts", texts)
    for text in texts:
        _expect(isinstance(text, str) and clean(text).strip(), where, "texts that are not empty", text)
    return tuple(clean(text) for text in texts)


def _answer_index(row: dict, field: str, names, where: str) -> int:
    """Which of the names of the options row[field] is, as a number or a text."""
    names = [str(name) for name in names]
    _expect(str(row.get(field)) in names, f"{where}: {field}", f"one of {', '.join(names)}", row.get(field))
    return names.index(str(row[field]))


def _hellaswag_context(row: dict, where: str) -> str:
    context, parts = row.get("ctx"), [row.get(name) for name in ("activity_label", "ctx_a", "ctx_b")]
    if all(isinstance(part, str) for part in parts):
        context = f"{parts[0]}: {parts[1]} {parts[2].capitalize()}"
    _expect(isinstance(context, str) and _clean(context).strip(), f"{where}: ctx", "a text", context)
    return _clean(context)


def _clean(text: str) -> str:
    """HellaSwag's text without the [tags] of WikiHow, as lm-evaluation-harness has it."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def read_prompt(path: str | Path) -> str:
    """A prompt template from a file, without newlines at its end.  Raises InputError without exactly one QUESTION."""
    with expecting("a prompt file", path):
        template = Path(path).read_text("utf-8").rstrip("\n")
    if template.count("QUESTION") != 1:
        raise InputError(f"{path}: expected the placeholder QUESTION once, found it {template.count('QUESTION')} times")
    return template
