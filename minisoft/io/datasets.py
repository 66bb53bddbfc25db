"""Rows (of `minisoft.io.rows`) -> problems and multiple-choice questions, in many sets' formats."""

import re
import string
import sys
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path

from minisoft.data import Choice, Problem, boxed
from minisoft.errors import InputError, expect
from minisoft.io import rows as sources
from minisoft.io.rows import EMBEDDED, HUB  # noqa: F401 (the names that programs list)

QUESTIONS = ("question", "problem", "input", "Question", "Problem")
BEFORE_IT = ("context", "Body", "body", "instruction")  # the question's first part
# What holds nothing but the gold comes before "answer", which may be a text or a model's.
ANSWERS = ("final_answer", "expected_answer", "gold_answer", "answer_number", "ground_truth")
ANSWERS += ("gt_answer", "answer", "target", "Answer", "result", "final_ans", "numerical_answer")
NUMBERS = ("Numbers", "numbers", "num_list")  # what stands for the question's placeholders
OPTIONS = ("endings", "choices", "options")
_IMAGE = "image|img|figure|picture|diagram"
# MAWPS has N_00, ASDiv number0, Math23K temp_a, others NUM_1 or [NUM].
_PLACEHOLDER = r"(?a:\b(?:(?:N_0|number_?|NUM_?|num_)\d+|temp_[a-z])\b|[\[<](?:NUM|num)\d*[\]>])"
_UNUSABLE = {  # why a row is left out -> what a field, or what is read, looks like: name=value
    "with an empty answer": "the gold=",
    "with a word for no answer (proof, none, ...)": r"the gold=(\W*(text\W*)?(proof|proved|none|"
    r"not ?found|no answer|null|nan|n/a|omitted|see (the )?(solution|proof|figure))\W*|[-?]+)",
    "about a figure, table or passage": rf"(passage|article|table|((decoded|question|problem)_)?"
    rf"({_IMAGE})s?(_path|_url)?_?\d*)=(?!(false|none|{{}})$).+|((the )?question|choices|options)="
    rf".*(!\[[^]]*\]\([^)]*[./:]|\[img|\\includegraphics|<\|?({_IMAGE})[ _\d>|/]).*",
    "with placeholders for numbers": f"the question=.*(?-i:{_PLACEHOLDER}).*",
    # NuminaMath-1.5; OpenMathInstruct and others; MMLU-Redux; PlatinumBench
    "that their own set calls wrong": r"(problem|solution)_is_valid=(?!(yes|true)$).+|(is_)?"
    r"(valid|correct|answerable)=(false|no)|error_type=(?!(ok|none)$).+|cleaning_status=rejected",
}
_UNUSABLE = {why: re.compile(form, re.I | re.S) for why, form in _UNUSABLE.items()}
# In sets not seen yet: what looks like a placeholder, a figure (none in [asy]), or a word gold.
_FORMULA = re.compile(r"(?s)\A.*\[asy\].*|\$\$.*?\$\$|\$.*?\$|\\\[.*?\\\]|\\\(.*?\\\)")
_SUSPECT = re.compile(
    r"(?<![\w\\}])[\[<{]{1,2}[a-z_]{2,}\d*[\]>}]|\b[a-z]+_?\d+\b|(?<=\n)gold (?:\\text\{)?[a-z]"
    rf"[a-z ,.'/()-]*\}}?$|\b(?:{_IMAGE}) (?:above|below|shows?)\b|\bin the (?:{_IMAGE})\b"
)
_BOX = re.compile(r"\\(?:boxed|fbox)(\s*\{|\s)")
_AND = re.compile(r"(\s|[$,;]|and|\\text\{ ?(and|,)? ?\}|\\q?quad|\\[()\[\]]|\b[a-z]\s*=)*")
# Options in dialects that are not read: in one field, or each in a field of its own.
_TOGETHER = {"option", "options", "choices", "endings", "candidates", "distractors"}
_TOGETHER |= {"incorrect_answers", "mc1_targets", "mc2_targets"}
_OPTION = "option|choice|ending|candidate|distractor|op|answer|(in)?correct[ _]answer"
_APART = re.compile(f"[A-E]|(?i:({_OPTION})[ _]?([a-e]|[0-9]+))")


def load(source: str | Path) -> list[Problem] | list[Choice]:
    """Multiple choice (`_choice`) if the first row has options, else problems (`_problem`);
    _UNUSABLE rows are left out and named on stderr.  Raises InputError for a row unlike it."""
    rows = sources.read(source)
    return _usable(_choice if _is_choice(rows[0][1]) else _problem, rows, source)


def load_problems(source: str | Path) -> list[Problem]:
    """As `load` does, where all must be problems with a free answer."""
    return _usable(_problem, sources.read(source), source)


class _LeftOut(Exception):
    """Why a row is not used."""


def _usable(parse, rows: list[tuple], source) -> list:
    """What `parse` makes of the rows; those that it leaves out are counted and named on stderr."""
    items, left_out = [], defaultdict(list)
    for where, row in rows:
        try:
            items.append(parse(row, where))
        except _LeftOut as why:
            left_out[str(why)].append(where)
    if not items:
        found = f"only rows {', and '.join(left_out)}"
        raise InputError(f"{source}: expected at least one row with an answer, found {found}")
    for why, places in left_out.items():
        print(f"{len(places)} rows {why} are left out: {', '.join(places[:5])}", file=sys.stderr)
    _say_suspect(items, source)
    return items


def _check_usable(fields: dict) -> None:
    """Raises _LeftOut for a row that is _UNUSABLE."""
    texts = [f"{name}={value}" for name, value in fields.items() if value not in (None, [])]
    for why, form in _UNUSABLE.items():
        if any(map(form.fullmatch, texts)):
            raise _LeftOut(why)


def _say_suspect(items: list[Problem] | list[Choice], source) -> None:
    """One line on stderr with what of _SUSPECT more than 1 % of the rows have."""
    counts = Counter()
    for item in items:
        text = item.context if isinstance(item, Choice) else f"{item.question}\ngold {item.answer}"
        counts.update({*_SUSPECT.findall(_FORMULA.sub(" ", text).lower())})
    many = [f"{what!r:.60} ({n})" for what, n in counts.items() if n > max(1, len(items) / 100)]
    if many:
        print(f"{source}: many of {len(items)} rows have {', '.join(many[:20])}", file=sys.stderr)


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


def _text(text, where: str, clean=str) -> str:
    """What `clean` leaves of a text.  Raises InputError for nothing, and for half a character."""
    expect(isinstance(text, str) and clean(text).strip(), where, "a text", text)
    if half := re.search(r"[\ud800-\udfff]", text):
        raise InputError(f"{where}: expected UTF-8's characters, found half an emoji: {half[0]!r}")
    return clean(text)


def _problem(row, where: str) -> Problem:
    """A row of GSM8K, MATH, MATH-500, DeepScaleR, OlympiadBench, MAWPS or SVAMP, or a plain one."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    if _is_choice(row) or _has_other_options(row):
        expected = "a problem with a free answer"
        raise InputError(f"{where}: expected {expected}, found multiple choice ({_fields(row)})")
    _check_usable(row)
    question = next((text for text in map(row.get, QUESTIONS) if isinstance(text, str)), "").strip()
    answer = _answer(row, where) if question else None
    if answer is None:
        raise InputError(
            f"{where}: expected question, problem or input, and answer, final_answer, target or a "
            f"solution with \\boxed{{}}; found {_fields(row)}"
        )
    texts = [*map(row.get, BEFORE_IT), question]
    question = " ".join(text.strip() for text in texts if isinstance(text, str) and text.strip())
    question = _put_in(row, _text(question, f"{where}: question"))
    _check_usable({"the question": question, "the gold": answer})
    return Problem(question, _text(answer, f"{where}: answer"))


def _put_in(row: dict, question: str) -> str:
    """The question with its numbers in the places that it has for them, if it has as many."""
    places = sorted({*re.findall(_PLACEHOLDER, question)}, key=lambda place: (len(place), place))
    numbers = str(next(filter(_filled, map(row.get, NUMBERS)), ""))
    numbers = re.findall(r"-?\d+(?:[./]\d+)?%?", re.sub(r"\.0+\b", "", numbers))
    of_place = dict(zip(places, numbers if len(numbers) == len(places) else places))
    return re.sub(_PLACEHOLDER, lambda match: of_place[match[0]], question)


def _answer(row: dict, where: str) -> str | None:
    """The gold answer, "" where the row leaves it empty, None where it has no place for one."""
    for name in ANSWERS:
        value = row.get(name)
        if isinstance(value, list) and name == "final_answer":  # OlympiadBench
            texts = [_answer_text(answer, f"{where}: {name}") for answer in value]
            text = ", ".join(text.strip().strip("$") for text in texts)
        else:
            text = "" if value is None else _answer_text(value, f"{where}: {name}")
        if text := text.rsplit("####", 1)[-1].strip():  # GSM8K: the gold follows ####
            return _boxes(text) or re.sub(r"(?<=\d) \((?!base|mod)[a-z ]+\)$", "", text)  # ASDiv
    solution, has_place = row.get("solution"), row.keys() & ANSWERS  # MATH as first published
    if isinstance(solution, str) and not (has_place or re.search(r"\\f?box", solution)):
        raise _LeftOut("whose solution has no \\boxed{}")  # NuminaMath-CoT's proofs
    gold = _boxes(solution) if isinstance(solution, str) else None
    return "" if gold is None and has_place else gold


def _boxes(text: str) -> str | None:
    """What the last box holds, with those that it is listed with (2 and 3); None without a box.
    Raises _LeftOut where boxes answer parts (a) and (b)."""
    golds, end = [], 0
    for box in list(_BOX.finditer(text))[-20:]:
        between = text[end : box.start()]
        if golds and re.search(r"\((b|ii|2)\)", between):
            raise _LeftOut("with several parts")
        is_number = golds and re.fullmatch(r"-?\d+", golds[-1] or "")  # else or spells it anew
        if not _AND.fullmatch(between.replace("or", "and") if is_number else between):
            golds = []
        rest = text[box.end() :]
        formula = re.split(r"\$|\\\)|\\\]", rest)[0]  # $\boxed 5$ holds all of it
        golds.append(boxed(rest) if box[1].endswith("{") else formula.strip())
        end = box.end() + len(golds[-1] or "") + 1
    return ", ".join(dict.fromkeys(golds)) if golds and None not in golds else None


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


def _is_choice(row) -> bool:
    """Does it have options where they are looked for?  Parquet has null where a row has none."""
    return isinstance(row, dict) and any(_filled(row.get(name)) for name in OPTIONS)


def _choice(row, where: str) -> Choice:
    """A multiple-choice question in one of these formats:

        HellaSwag    ctx, endings (texts), label (index); with activity_label, ctx_a and ctx_b:
                     context of these
        ARC          question, choices {text: [...], label: [...]}, answerKey (one of the labels)
        MMLU         question, choices (texts), answer (index, or a letter from A on)
        MMLU-Pro     question, options (texts), answer (a letter from A on), answer_index

    HellaSwag's and ARC's contexts and texts are those of lm-evaluation-harness.  The other two have
    ARC's context, and their options are scored by their text, not by their letter.
    """
    if not _is_choice(row):
        found = _fields(row) if isinstance(row, dict) else type(row).__name__
        expected = "multiple choice (field endings, choices or options)"
        raise InputError(f"{where}: expected {expected}, found {found}")
    if "" in (row.get("label"), row.get("answerKey")):  # test splits that keep it secret
        raise _LeftOut("without an answer")
    _check_usable({**row, "passage": row.get("passage") or row.get("context")})
    if _filled(row.get("endings")):  # HellaSwag
        options = _options(row["endings"], f"{where}: endings", _clean)
        context = _hellaswag_context(row, where)
        return Choice(context, options, _index(row, "label", range(len(options)), where))
    context = f"Question: {_text(row.get('question'), f'{where}: question')}\nAnswer:"
    choices = row.get("choices")
    if isinstance(choices, dict):  # ARC
        options = _options(choices.get("text"), f"{where}: choices.text")
        labels = choices.get("label")
        good = isinstance(labels, list) and len(labels) == len(options)
        expect(good, f"{where}: choices.label", f"{len(options)} labels", labels)
        return Choice(context, options, _index(row, "answerKey", labels, where))
    name = "choices" if _filled(choices) else "options"  # MMLU, MMLU-Pro
    options = _options(row[name], f"{where}: {name}")
    return Choice(context, options, _letter_and_index(row, len(options), where))


def _letter_and_index(row: dict, count: int, where: str) -> int:
    """The right option of `count`: answer, by index or letter, and answer_index name the same."""
    answer, index = row.get("answer"), row.get("answer_index")
    if answer is None and index is not None:
        return _index(row, "answer_index", range(count), where)
    by_index = _filled(row.get("choices")) and not isinstance(answer, str)  # in MMLU only
    labels = range(count) if by_index else string.ascii_uppercase[:count]
    right = _index(row, "answer", labels, where)
    same = index in (None, right)
    expect(same, f"{where}: answer_index", f"{right}, since answer is {answer}", index)
    return right


def _options(texts, where: str, clean=str) -> tuple[str, ...]:
    """At least two texts, each passed through `clean` and not empty."""
    several = isinstance(texts, list) and len(texts) > 1
    expect(several, where, "a list of at least two texts", texts)
    return tuple(_text(text, where, clean) for text in texts)


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
    return _text(context, f"{where}: ctx", _clean)


def _clean(text: str) -> str:
    """HellaSwag's text without the [tags] of WikiHow, as lm-evaluation-harness has it."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
