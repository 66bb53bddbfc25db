"""Data sets -> problems and multiple-choice questions.

A source is a .jsonl or .json file; a set beside the embedded model ("tiny", "tiny-test", ...); or,
with the extra `data`, one of the hub: "gsm8k", ..., or "owner/name[:configuration[:split]]".
"""

import json
import re
import string
import sys
from pathlib import Path

from minisoft.data import Choice, Problem, boxed
from minisoft.errors import InputError, expect, expecting
from minisoft.io import WEIGHTS

HUB = {  # short name -> (hub dataset, configuration, split)
    "gsm8k": ("openai/gsm8k", "main", "train"),
    "gsm8k-test": ("openai/gsm8k", "main", "test"),
    "math-500": ("HuggingFaceH4/MATH-500", None, "test"),
    "deepscaler": ("agentica-org/DeepScaleR-Preview-Dataset", None, "train"),
    "olympiadbench": ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"),
    "hellaswag": ("Rowan/hellaswag", None, "validation"),
    "arc-easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "arc-challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "mmlu": ("cais/mmlu", "all", "test"),
}
_NAMES = ("test", "long", "hard", "facts", "sorting", "drills", "references")
EMBEDDED = {"tiny": "train.jsonl", **{f"tiny-{name}": f"{name}.jsonl" for name in _NAMES}}


def load(source: str | Path) -> list[Problem] | list[Choice]:
    """`load_choices` if the first row has `choices` or `endings`, else `load_problems`.

    Raises InputError as these do, so also for a row of the other kind.
    """
    rows = _read(source)
    return _choices(rows) if _is_choice(rows[0][1]) else _problems(rows, source)


def load_problems(source: str | Path) -> list[Problem]:
    """Problems with a free answer, in the formats of `_problem`.

    Rows with an empty answer are left out and named on stderr.  Raises InputError for any other row
    that is no problem.
    """
    return _problems(_read(source), source)


def load_choices(source: str | Path) -> list[Choice]:
    """Multiple-choice questions.  Formats of a row:

        HellaSwag    ctx, endings (texts), label (index); with activity_label, ctx_a and ctx_b:
                     context of these
        ARC          question, choices {text: [...], label: [...]}, answerKey (one of the labels)
        MMLU         question, choices (texts), answer (index, or a letter from A on)

    HellaSwag's and ARC's contexts and texts are those of lm-evaluation-harness.  MMLU's context is
    ARC's, and its options are scored by their text, not by their letter.  Rows without the right
    option's label (test splits that keep it secret) are left out and named on stderr.  Raises
    InputError for any other row.
    """
    return _choices(_read(source))


def read_prompt(path: str | Path) -> str:
    """A prompt template, without newlines at its end.  Raises InputError without one QUESTION."""
    with expecting("a prompt file", path):
        template = Path(path).read_text("utf-8").rstrip("\n")
    times = template.count("QUESTION")
    if times != 1:
        raise InputError(f"{path}: expected the placeholder QUESTION once, found it {times} times")
    return template


# ---------------------------------------------------------------- rows


def _read(source: str | Path) -> list[tuple[str, dict]]:
    """(where, row) of each row, at least one."""
    path = WEIGHTS / "tiny" / EMBEDDED[source] if source in EMBEDDED else Path(source)
    if path.is_file():
        rows = _read_file(path)
    elif path.suffix in (".json", ".jsonl"):
        raise InputError(f"{source}: expected a data file, found no such file")
    else:
        rows = _read_hub(str(source))
    if not rows:
        raise InputError(f"{source}: expected at least one row, found none")
    return rows


def _read_file(path: Path) -> list[tuple[str, dict]]:
    """(where, row) of each row of a JSONL file, or of a JSON list."""
    with expecting("UTF-8 text", path):
        text = path.read_text("utf-8")
    if text.lstrip().startswith("["):
        with expecting("a JSON list", path):
            return [(f"{path}: row {i}", row) for i, row in enumerate(json.loads(text), 1)]
    rows = []
    for i, line in enumerate(text.split("\n"), 1):
        where = f"{path}: line {i}"
        if line.strip():
            with expecting("a JSON object", where):
                rows.append((where, json.loads(line)))
    return rows


def _read_hub(name: str) -> list[tuple[str, dict]]:
    if name not in HUB and name.count("/") != 1:
        known = ", ".join([*EMBEDDED, *HUB])
        raise InputError(
            f"{name}: expected a .jsonl or .json file, owner/name on the hub, or one of {known}; "
            "found no such file"
        )
    dataset, configuration, split = HUB.get(name) or (name.split(":") + [None, None])[:3]
    try:
        import datasets
    except ImportError:
        hint = "datasets of the hub need the extra `data`: pip install datasets"
        raise InputError(f"{name}: {hint}") from None
    hint = "; download it and give the .jsonl file instead"
    with expecting("a dataset of the hub", name, hint):
        rows = datasets.load_dataset(dataset, configuration or None, split=split or "train")
    return [(f"{name}: row {i}", row) for i, row in enumerate(rows, 1)]


def _leave_out(rows: list[tuple], where: list[str], what: str, source) -> list[tuple]:
    """The other (where, row); those left out are named on stderr."""
    if where:
        print(f"{len(where)} rows {what} are left out: {', '.join(where[:5])}", file=sys.stderr)
    if len(where) == len(rows):
        raise InputError(f"{source}: expected at least one row with an answer, found none")
    left_out = set(where)
    return [row for row in rows if row[0] not in left_out]


# ---------------------------------------------------------------- problems


def _problems(rows: list[tuple[str, dict]], source: str | Path) -> list[Problem]:
    problems = [(where, _problem(row, where)) for where, row in rows]
    empty = [where for where, problem in problems if not problem.answer]
    problems = _leave_out(problems, empty, "with an empty answer", source)
    return [problem for _, problem in problems]


def _problem(row, where: str) -> Problem:
    """A row of GSM8K, MATH, MATH-500, DeepScaleR, OlympiadBench or MAWPS, or a plain one."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    fields = ", ".join(row)
    if _is_choice(row):
        expected = "a problem with a free answer"
        raise InputError(f"{where}: expected {expected}, found multiple choice (fields {fields})")
    questions = [row.get(name) for name in ("question", "problem", "input")]
    question = next((text for text in questions if isinstance(text, str)), "").strip()
    answer = _answer(row)
    if not question or answer is None:
        raise InputError(
            f"{where}: expected question, problem or input, and answer, final_answer, target or a "
            f"solution with \\boxed{{}}; found fields {fields}"
        )
    context = row.get("context")  # OlympiadBench
    if isinstance(context, str) and context.strip():
        question = f"{context.strip()} {question}"
    return Problem(question, answer)


def _answer(row: dict) -> str | None:
    """The gold answer, "" where the row leaves it empty, None where it has no place for one."""
    if isinstance(row.get("final_answer"), list):  # OlympiadBench
        return ", ".join(str(answer).strip().strip("$") for answer in row["final_answer"])
    answers = [row.get(name) for name in ("answer", "target", "final_answer")]
    value = next((answer for answer in answers if answer is not None), None)
    if isinstance(value, (int, float)) and not isinstance(value, bool):  # MAWPS: 14.0
        return str(int(value)) if float(value).is_integer() else repr(value)
    if isinstance(value, str):
        return value.rsplit("####", 1)[-1].strip()  # GSM8K: the gold follows ####
    solution = row.get("solution")  # MATH as first published
    if isinstance(solution, str) and (boxes := list(re.finditer(r"\\boxed(\s*\{|\s)", solution))):
        text = solution[boxes[-1].end() :]
        if boxes[-1][1].endswith("{"):
            return boxed(text)
        return re.split(r"\$|\\\)|\\\]", text)[0].strip()  # $\boxed 5$ holds all of the formula
    return "" if {"answer", "target"} & set(row) and value is None else None


# ---------------------------------------------------------------- multiple choice


def _choices(rows: list[tuple[str, dict]]) -> list[Choice]:
    labels = [
        (where, row.get("label"), row.get("answerKey")) for where, row in rows if _is_choice(row)
    ]
    secret = [where for where, *names in labels if "" in names]
    rows = _leave_out(rows, secret, "without an answer", rows[0][0])
    return [_choice(row, where) for where, row in rows]


def _is_choice(row) -> bool:
    return isinstance(row, dict) and ("choices" in row or "endings" in row)


def _choice(row, where: str) -> Choice:
    """One row in a format of `load_choices`."""
    if not _is_choice(row):
        kind = f"fields {', '.join(row)}" if isinstance(row, dict) else type(row).__name__
        raise InputError(
            f"{where}: expected multiple choice (field choices or endings), found {kind}"
        )
    if "endings" in row:  # HellaSwag
        options = _options(row["endings"], f"{where}: endings", _clean)
        context = _hellaswag_context(row, where)
        return Choice(context, options, _index(row, "label", range(len(options)), where))
    question, choices = row.get("question"), row["choices"]
    good = isinstance(question, str) and question.strip()
    expect(good, f"{where}: question", "a text", question)
    context = f"Question: {question}\nAnswer:"
    if isinstance(choices, dict):  # ARC
        options, labels = (
            _options(choices.get("text"), f"{where}: choices.text"),
            choices.get("label"),
        )
        good = isinstance(labels, list) and len(labels) == len(options)
        expect(good, f"{where}: choices.label", f"{len(options)} labels", labels)
        return Choice(context, options, _index(row, "answerKey", labels, where))
    options = _options(choices, f"{where}: choices")  # MMLU
    by_letter = isinstance(row.get("answer"), str)
    labels = string.ascii_uppercase[: len(options)] if by_letter else range(len(options))
    return Choice(context, options, _index(row, "answer", labels, where))


def _options(texts, where: str, clean=str) -> tuple[str, ...]:
    """At least two texts, each passed through `clean` and not empty."""
    several = isinstance(texts, list) and len(texts) > 1
    expect(several, where, "a list of at least two texts", texts)
    for text in texts:
        good = isinstance(text, str) and clean(text).strip()
        expect(good, where, "texts that are not empty", text)
    return tuple(clean(text) for text in texts)


def _index(row: dict, field: str, labels, where: str) -> int:
    """Which of the options' labels, numbers or texts, row[field] is."""
    labels, label = [str(label) for label in labels], row.get(field)
    expect(str(label) in labels, f"{where}: {field}", f"one of {', '.join(labels)}", label)
    return labels.index(str(label))


def _hellaswag_context(row: dict, where: str) -> str:
    context = row.get("ctx")
    parts = [row.get(name) for name in ("activity_label", "ctx_a", "ctx_b")]
    if all(isinstance(part, str) for part in parts):
        context = f"{parts[0]}: {parts[1]} {parts[2].capitalize()}"
    good = isinstance(context, str) and _clean(context).strip()
    expect(good, f"{where}: ctx", "a text", context)
    return _clean(context)


def _clean(text: str) -> str:
    """HellaSwag's text without the [tags] of WikiHow, as lm-evaluation-harness has it."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
