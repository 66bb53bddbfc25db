"""Rows -> problems and multiple-choice questions, in the formats of many data sets.

Where rows are read from is the business of `minisoft.io.rows`.
"""

import re
import string
import sys
from decimal import Decimal
from pathlib import Path

from minisoft.data import Choice, Problem, boxed
from minisoft.errors import InputError, expect, expecting
from minisoft.io import rows as sources
from minisoft.io.rows import EMBEDDED, HUB  # noqa: F401 (the names that programs list)

QUESTIONS = ("question", "problem", "input", "Question", "Problem")
BEFORE_IT = ("context", "Body", "body")  # of OlympiadBench, SVAMP: the question's first part
ANSWERS = ("answer", "target", "final_answer", "Answer", "result")
OPTIONS = ("endings", "choices", "options")
NOT_READ = ("passage", "article", "table", "image", "images")  # what a question may be about
# Options in dialects that are not read: in one field, or each in a field of its own.
_TOGETHER = {"option", "options", "choices", "endings", "candidates", "distractors"}
_TOGETHER |= {"incorrect_answers", "mc1_targets", "mc2_targets"}
_OPTION = "option|choice|ending|candidate|distractor|op|answer|(in)?correct[ _]answer"
_APART = re.compile(f"[A-E]|(?i:({_OPTION})[ _]?([a-e]|[0-9]+))")


def load(source: str | Path) -> list[Problem] | list[Choice]:
    """`load_choices` if the first row has endings, choices or options, else `load_problems`.

    Raises InputError as these do, so also for a row of the other kind.
    """
    rows = sources.read(source)
    return _choices(rows) if _is_choice(rows[0][1]) else _problems(rows, source)


def load_problems(source: str | Path) -> list[Problem]:
    """Problems with a free answer, in the formats of `_problem`.

    Rows with an empty answer are left out and named on stderr.  Raises InputError for any other row
    that is no problem.
    """
    return _problems(sources.read(source), source)


def load_choices(source: str | Path) -> list[Choice]:
    """Multiple-choice questions.  Formats of a row:

        HellaSwag    ctx, endings (texts), label (index); with activity_label, ctx_a and ctx_b:
                     context of these
        ARC          question, choices {text: [...], label: [...]}, answerKey (one of the labels)
        MMLU         question, choices (texts), answer (index, or a letter from A on)
        MMLU-Pro     question, options (texts), answer (a letter from A on), answer_index

    HellaSwag's and ARC's contexts and texts are those of lm-evaluation-harness.  The other two have
    ARC's context, and their options are scored by their text, not by their letter.  Rows without
    the right option's label (test splits that keep it secret) are left out and named on stderr.
    Raises InputError for any other row.
    """
    return _choices(sources.read(source))


def read_prompt(path: str | Path) -> str:
    """A prompt template, without the newline at its end, which editors put there: a prompt that
    ends in one, as of chat templates, has an empty line at its end.  Raises InputError without one
    QUESTION."""
    with expecting("a prompt file", path):
        raw = Path(path).read_bytes()
    template = re.sub("\r\n?", "\n", sources.decode(raw, path)).removesuffix("\n")
    times = template.count("QUESTION")
    if times != 1:
        raise InputError(f"{path}: expected the placeholder QUESTION once, found it {times} times")
    return template


# ---------------------------------------------------------------- rows


def _leave_out(rows: list[tuple], where: list[str], what: str, source) -> list[tuple]:
    """The other (where, row); those left out are named on stderr."""
    if where:
        print(f"{len(where)} rows {what} are left out: {', '.join(where[:5])}", file=sys.stderr)
    if len(where) == len(rows):
        raise InputError(f"{source}: expected at least one row with an answer, found none")
    left_out = set(where)
    return [row for row in rows if row[0] not in left_out]


def _fields(row: dict) -> str:
    """The names of its first fields, as a message shows them."""
    names = [(name if name.isprintable() else ascii(name))[:40] for name in list(row)[:20]]
    return f"fields {', '.join(names)}{', ...' if len(row) > 20 else ''}"


def _filled(value) -> bool:
    return value not in (None, [], "")


def _has_other_options(row: dict) -> bool:
    """Is it multiple choice in a dialect that is not read?"""
    filled = {name for name in row if _filled(row[name])}
    apart = [name for name in filled if isinstance(row[name], str) and _APART.fullmatch(name)]
    return len(apart) > 1 or any(name.lower() in _TOGETHER for name in filled)


def _refuse(row: dict, names: tuple[str, ...], where: str) -> None:
    """Refuses a question that is about something in another field."""
    for name in names:
        if _filled(row.get(name)):
            expected = "a question that stands alone (this field is not read)"
            expect(False, f"{where}: {name}", expected, row[name])


def _encodable(text: str, where: str) -> str:
    """The text.  Raises InputError for half a surrogate pair, which no tokenizer takes."""
    half = re.search(r"[\ud800-\udfff]", text)
    if half:
        expected = "characters that UTF-8 has"
        raise InputError(f"{where}: expected {expected}, found half an emoji: {half[0]!r}")
    return text


# ---------------------------------------------------------------- problems


def _problems(rows: list[tuple[str, dict]], source: str | Path) -> list[Problem]:
    problems = [(where, _problem(row, where)) for where, row in rows]
    empty = [where for where, problem in problems if not problem.answer]
    problems = _leave_out(problems, empty, "with an empty answer", source)
    return [problem for _, problem in problems]


def _problem(row, where: str) -> Problem:
    """A row of GSM8K, MATH, MATH-500, DeepScaleR, OlympiadBench, MAWPS or SVAMP, or a plain one."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    if _is_choice(row) or _has_other_options(row):
        expected = "a problem with a free answer"
        raise InputError(f"{where}: expected {expected}, found multiple choice ({_fields(row)})")
    _refuse(row, NOT_READ, where)
    questions = [row.get(name) for name in QUESTIONS]
    question = next((text for text in questions if isinstance(text, str)), "").strip()
    answer = _answer(row, where)
    if not question or answer is None:
        raise InputError(
            f"{where}: expected question, problem or input, and answer, final_answer, target or a "
            f"solution with \\boxed{{}}; found {_fields(row)}"
        )
    before = [row.get(name) for name in BEFORE_IT]
    before = [text.strip() for text in before if isinstance(text, str) and text.strip()]
    question = _encodable(" ".join([*before, question]), f"{where}: question")
    return Problem(question, _encodable(answer, f"{where}: answer"))


def _answer(row: dict, where: str) -> str | None:
    """The gold answer, "" where the row leaves it empty, None where it has no place for one."""
    answers = row.get("final_answer")
    if isinstance(answers, list):  # OlympiadBench
        texts = [_answer_text(answer, f"{where}: final_answer") for answer in answers]
        return ", ".join(text.strip().strip("$") for text in texts)
    for name in ANSWERS:
        if row.get(name) is not None:
            text = _answer_text(row[name], f"{where}: {name}")
            return text.rsplit("####", 1)[-1].strip()  # GSM8K: the gold follows ####
    solution = row.get("solution")  # MATH as first published
    if isinstance(solution, str) and (boxes := list(re.finditer(r"\\boxed(\s*\{|\s)", solution))):
        text = solution[boxes[-1].end() :]
        if boxes[-1][1].endswith("{"):
            return boxed(text)
        return re.split(r"\$|\\\)|\\\]", text)[0].strip()  # $\boxed 5$ holds all of the formula
    places = set(ANSWERS) - {"final_answer"}  # which proofs of OlympiadBench have empty
    return "" if places & row.keys() else None


def _answer_text(value, where: str) -> str:
    """A text as it is; a number by all of its digits: 18.0 -> 18, 1e+16 -> 10000000000000000."""
    if isinstance(value, str):
        return value
    number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    expect(number, where, "a text or a number", value)
    exact = Decimal(repr(value) if isinstance(value, float) else value)
    # The digits of 1e999999999 would fill the memory.
    good = exact.is_finite() and abs(exact.as_tuple().exponent) <= 1000
    expect(good, where, "a finite number, of at most 1000 zeros", value)
    text = format(exact, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text if exact else "0"  # -0.0 is 0


# ---------------------------------------------------------------- multiple choice


def _choices(rows: list[tuple[str, dict]]) -> list[Choice]:
    labels = [
        (where, row.get("label"), row.get("answerKey")) for where, row in rows if _is_choice(row)
    ]
    secret = [where for where, *names in labels if "" in names]
    rows = _leave_out(rows, secret, "without an answer", rows[0][0])
    choices = [(where, _choice(row, where)) for where, row in rows]
    for where, choice in choices:
        _encodable(choice.context, f"{where}: question")
        for option in choice.options:
            _encodable(option, f"{where}: option")
    return [choice for _, choice in choices]


def _is_choice(row) -> bool:
    """Does it have options where they are looked for?  Parquet has null where a row has none."""
    return isinstance(row, dict) and any(_filled(row.get(name)) for name in OPTIONS)


def _choice(row, where: str) -> Choice:
    """One row in a format of `load_choices`."""
    if not _is_choice(row):
        kind = _fields(row) if isinstance(row, dict) else type(row).__name__
        raise InputError(
            f"{where}: expected multiple choice (field endings, choices or options), found {kind}"
        )
    if _filled(row.get("endings")):  # HellaSwag
        options = _options(row["endings"], f"{where}: endings", _clean)
        context = _hellaswag_context(row, where)
        return Choice(context, options, _index(row, "label", range(len(options)), where))
    _refuse(row, (*NOT_READ, *BEFORE_IT), where)
    question, choices = row.get("question"), row.get("choices")
    good = isinstance(question, str) and question.strip()
    expect(good, f"{where}: question", "a text", question)
    context = f"Question: {question}\nAnswer:"
    if not _filled(choices):  # MMLU-Pro
        options = _options(row["options"], f"{where}: options")
        return Choice(context, options, _letter_and_index(row, len(options), where))
    if isinstance(choices, dict):  # ARC
        options = _options(choices.get("text"), f"{where}: choices.text")
        labels = choices.get("label")
        good = isinstance(labels, list) and len(labels) == len(options)
        expect(good, f"{where}: choices.label", f"{len(options)} labels", labels)
        return Choice(context, options, _index(row, "answerKey", labels, where))
    options = _options(choices, f"{where}: choices")  # MMLU
    by_letter = isinstance(row.get("answer"), str)
    labels = string.ascii_uppercase[: len(options)] if by_letter else range(len(options))
    return Choice(context, options, _index(row, "answer", labels, where))


def _letter_and_index(row: dict, count: int, where: str) -> int:
    """MMLU-Pro's right option of `count`; answer and answer_index must name the same one."""
    index = row.get("answer_index")
    if index is None or row.get("answer") is not None:
        letter = _index(row, "answer", string.ascii_uppercase[:count], where)
        same = index in (None, letter)
        expect(same, f"{where}: answer_index", f"{letter}, since answer is {row['answer']}", index)
        return letter
    return _index(row, "answer_index", range(count), where)


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
