"""Rows of every format become problems, and bad ones name file and line."""

import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import refuses

from minisoft.data import Choice, Problem
from minisoft.io.datasets import EMBEDDED, HUB, load, load_problems


def jsonl(path, *rows):
    """The file, with these rows a line each; those that are texts as they stand."""
    lines = (row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_text("".join(lines), "utf-8")
    return path


# ---------------------------------------------------------------- rows

PLAIN = {"question": "q", "answer": "5"}
HELLASWAG = {"ctx": "A man sits. he", "label": "2"}
HELLASWAG["endings"] = [" runs. ", "eats  it.", "[step] sleeps.", "is [title] Here it is"]
ARC = {"question": "Why?", "choices": {"text": ["sun", "moon", "fog"], "label": [*"ABC"]}}
ARC |= {"id": "Mercury_7", "answerKey": "C"}
MMLU = {"question": "Why? ", "choices": ["no", "yes ", "1", "2"], "answer": 3, "subject": "anatomy"}
PRO = {"question_id": 1, "question": "Which?", "options": ["4", "6", "8", "9", "10", "11"]}
PRO |= {"answer": "F", "answer_index": 5, "category": "math"}  # MMLU-Pro
BASES = {"PLAIN": PLAIN, "HELLASWAG": HELLASWAG, "ARC": ARC, "MMLU": MMLU, "PRO": PRO}


def row_of(text):
    """JSON, behind the name of a row above if it is what that has otherwise or besides."""
    name, _, fields = text.partition(" ")
    return {**BASES[name], **json.loads(fields)} if name in BASES else json.loads(text)


TABLES = (Path(__file__).parent / "rows.txt").read_text("utf-8")
TABLES = [table.split("\n") for table in re.split("^# .*\n", TABLES, flags=re.M)[1:]]
TABLES = [[line.split(" :: ") for line in table if line] for table in TABLES]
BAD_ROWS, BAD_CHOICES, UNUSABLE = [[(x, row_of(row)) for x, row in t] for t in TABLES[1:4]]
BAD_ROWS.append(("found fields field0, .*field19, ...", {f"field{i}": 1 for i in range(5000)}))
CHOICES = {name: (row_of(row), json.loads(expected)) for name, row, expected in TABLES[4]}
ROWS = [(name, row_of(row), expected) for name, row, *expected in TABLES[0]]
ROWS += [
    ("beyond floats", {"question": "2^1200?", "answer": 2**1200}, ("2^1200?", str(2**1200))),
    ("unicode", {"question": "Größe?\u2028Ja", "answer": "π"}, ("Größe?\u2028Ja", "π")),
]


@pytest.mark.parametrize("row, expected", [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_every_format_is_understood_in_jsonl_and_in_a_list(row, expected, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([row], ensure_ascii=False, indent=1), "utf-8")
    line = json.dumps(row, ensure_ascii=False)
    lines = jsonl(tmp_path / "a.jsonl", "\n", f"{line}\r\n", " \n", row)
    assert load_problems(tmp_path / "a.json") == [Problem(*expected)]
    assert load_problems(str(lines)) == [Problem(*expected)] * 2


def test_every_digit_of_a_number_is_kept(tmp_path):
    numbers = ["3.14159265358979323846", "7" * 5000, "-" + "7" * 5000, "0." + "0" * 300 + "1"]
    path = jsonl(tmp_path / "a.jsonl", *[f'{{"input": "q", "target": {n}}}\n' for n in numbers])
    assert [problem.answer for problem in load_problems(path)] == numbers
    path = jsonl(tmp_path / "b.jsonl", '{"input": "q", "target": 1e400}')
    assert load_problems(path) == [Problem("q", "1" + 400 * "0")]


@pytest.mark.parametrize("number", ["1e999999999", "1e-999999999", "1e" + 30 * "9", "Infinity"])
def test_a_number_that_cannot_be_written_out_is_refused(number, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", "\n", f'{{"input": "q", "target": {number}}}\n')
    refuses(path, "a.jsonl: line 2: ", by=load_problems)


def test_a_field_that_is_not_used_may_hold_anything(tmp_path):
    row = '{"question": "q", "answer": "2", "level": NaN, "n": "\\ud83d"}'
    assert load_problems(jsonl(tmp_path / "a.jsonl", row)) == [Problem("q", "2")]


def test_rows_with_an_empty_answer_are_left_out_and_named(tmp_path, capsys):
    empty = [{"question": "q", "answer": answer} for answer in ("", None, "#### ")]
    empty.append({"question": "q", "final_answer": []})
    assert load_problems(jsonl(tmp_path / "a.jsonl", *empty, PLAIN)) == [Problem("q", "5")]
    assert "4 rows with an empty answer are left out" in capsys.readouterr().err
    refuses(jsonl(tmp_path / "b.jsonl", *empty), "at least one row", by=load_problems)


@pytest.mark.parametrize("message, row", BAD_ROWS, ids=str)
def test_a_bad_row_is_named(row, message, tmp_path):
    fields = message.split(".*")
    path = jsonl(tmp_path / "a.jsonl", PLAIN, "\n", json.dumps(row) + "\n", PLAIN)
    refuses(path, "a.jsonl: line 3: ", *fields, by=load_problems)
    path = jsonl(tmp_path / "a.json", json.dumps([PLAIN, row]))
    refuses(path, "a.json: row 2: ", *fields, by=load_problems)


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
@pytest.mark.parametrize("read", [load, load_problems])
def test_a_file_without_rows_is_refused(content, read, tmp_path):
    refuses(jsonl(tmp_path / "a.json", content), "a.json: expected at least one row", by=read)


# ---------------------------------------------------------------- multiple choice


@pytest.mark.parametrize("row, expected", CHOICES.values(), ids=CHOICES)
def test_every_format_of_multiple_choice_is_understood(row, expected, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([row]), "utf-8")
    lines, (context, options, answer) = jsonl(tmp_path / "a.jsonl", row, row), expected
    assert load(tmp_path / "a.json") == [Choice(context, tuple(options), answer)]
    assert load(str(lines)) == [Choice(context, tuple(options), answer)] * 2
    refuses(lines, "a.jsonl: line 1: ", "found multiple choice", by=load_problems)


# ---------------------------------------------------------------- rows that are no use


@pytest.mark.parametrize("why, row", UNUSABLE, ids=str)
def test_a_row_that_cannot_be_used_is_left_out_and_counted(why, row, tmp_path, capsys):
    usable = MMLU if "choices" in row or "options" in row else PLAIN
    found = load(jsonl(tmp_path / "a.jsonl", usable, row, usable, row))
    assert found == load(jsonl(tmp_path / "b.jsonl", usable, usable))
    said = capsys.readouterr().err
    assert re.fullmatch(rf"2 rows .*{why}.* are left out: .*: line 2, .*: line 4\n", said)
    path = jsonl(tmp_path / "c.jsonl", row)
    refuses(path, "c.jsonl: expected ", "found only rows ", why, by=load)


def test_what_many_rows_of_an_unseen_set_have_is_named_in_one_line(tmp_path, capsys):
    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(291)]
    odd = {"question": "<name> has var1 of x_2; see the figure above.", "answer": r"\text{Yes}"}
    load(jsonl(tmp_path / "a.jsonl", *rows, *[odd] * 3))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for name in ("<name>", "var1", "x_2", "figure above", "yes"):
        assert name in said and "(3)" in said
    load(jsonl(tmp_path / "a.jsonl", *rows, *[odd] * 2))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("piece", [r"\boxed{2} and ", "[[[[", "{", "$ ", "<img", "number_", "a_1"])
def test_a_long_row_takes_no_time_to_speak_of(piece, tmp_path):
    text = piece * (200_000 // len(piece))
    path = jsonl(tmp_path / "a.jsonl", {"question": text + "?", "answer": text + "1"})
    started = time.perf_counter()
    load(path)
    assert time.perf_counter() - started < 20


def test_rows_that_keep_their_answer_secret_are_left_out(tmp_path, capsys):
    secret = [{**HELLASWAG, "label": ""}, {**ARC, "answerKey": ""}]
    path = jsonl(tmp_path / "a.jsonl", MMLU, "\n", *secret)
    assert len(load(path)) == 1
    assert "2 rows without an answer are left out: " in capsys.readouterr().err
    refuses(jsonl(tmp_path / "b.jsonl", *secret), "at least one row with an answer", by=load)


@pytest.mark.parametrize("message, row", BAD_CHOICES, ids=str)
def test_a_bad_row_of_multiple_choice_is_named(row, message, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", MMLU, "\n", json.dumps(row) + "\n", ARC)
    refuses(path, "a.jsonl: line 3: ", *message.split(".*"), by=load)


def test_the_first_row_decides_and_the_others_must_be_like_it(tmp_path):
    assert load(jsonl(tmp_path / "a.jsonl", PLAIN)) == [Problem("q", "5")]
    path = jsonl(tmp_path / "b.jsonl", PLAIN, ARC)
    refuses(path, "b.jsonl: line 2: ", "found multiple choice (fields question", by=load)
    path = jsonl(tmp_path / "c.jsonl", HELLASWAG, PLAIN)
    refuses(path, "c.jsonl: line 2: ", "multiple choice", "found fields question, answer", by=load)
    assert load("tiny-test") == load_problems("tiny-test")


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["no.jsonl", "no/where.json"])
def test_a_missing_file_is_said_to_be_missing(name):
    for read in (load, load_problems):
        refuses(name, f"{name}: ", "no such file", by=read)


def test_an_unknown_name_lists_the_known_ones():
    refuses("gsm9k", "gsm9k: expected", *EMBEDDED, *HUB, by=load_problems)


@pytest.mark.parametrize("name", ["gsm8k", "math-500", "owner/name", "owner/name:main:test"])
def test_the_hub_needs_an_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    refuses(name, f"{name}: ", "pip install 'minisoft[data]'", by=load_problems)


HUB_NAMES = """gsm8k openai/gsm8k main train
arc-easy allenai/ai2_arc ARC-Easy test
arc-challenge allenai/ai2_arc ARC-Challenge test
mmlu cais/mmlu all test
hellaswag Rowan/hellaswag - validation
owner/name owner/name - train
owner/name:main owner/name main train
owner/name::test owner/name - test
owner/name:main:test owner/name main test"""


@pytest.mark.parametrize("line", HUB_NAMES.splitlines())
def test_a_hub_name_may_have_a_configuration_and_a_split(line, monkeypatch):
    asked, (name, dataset, configuration, split) = [], line.split()

    def load_dataset(*of, split):
        asked.append((*of, split))
        return [{"question": "q", "answer": "#### 3"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert load(name) == [Problem("q", "3")]
    assert asked == [(dataset, None if configuration == "-" else configuration, split)]


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    def load_dataset(*_, split):
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    refuses("owner/name", "owner/name: expected ", "found: no route", by=load_problems)


# ---------------------------------------------------------------- the embedded problems


def test_training_and_test_problems_hardly_overlap():
    training = {problem.question for problem in load_problems("tiny")}
    assert len(training) > 2990
    assert sum(problem.question in training for problem in load_problems("tiny-test")) <= 2
