"""Rows of every format become problems, and bad ones name file and line."""

import json
import re
import sys
import time
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
ROWS = r"""plain :: {"question": "1+1?", "answer": "2"} :: 1+1? :: 2
spaces :: {"question": " 1+1? \n", "answer": " 2\n"} :: 1+1? :: 2
whole number :: {"question": "q", "answer": 2} :: q :: 2
zero :: {"question": "q", "answer": 0} :: q :: 0
negative :: {"question": "q", "answer": -3.0} :: q :: -3
GSM8K :: {"question": "Ann?", "answer": "She has 2 * <<2*4=8>>4.\nSo 8.\n#### 1,008"} :: Ann? ::
  1,008
MATH :: {"problem": "p", "level": "Level 1", "solution": "\\boxed{0}, then
  $\\boxed{\\frac{1}{\\{2\\}}}$, done."} :: p :: \frac{1}{\{2\}}
MATH, no braces :: {"problem": "p", "solution": "$\\boxed{3}$ or, better, $x = \\boxed 5$, which
  costs $2."} :: p :: 5
MATH, no braces, display :: {"problem": "p", "solution": "\\[x = \\boxed -\\frac{1}{2} \\] as $x <
  0$"} :: p :: -\frac{1}{2}
MATH, no braces, then braces :: {"problem": "p", "solution": "$\\boxed 5$, no, $\\boxed {6}$."} ::
  p :: 6
MATH-500 :: {"problem": "p", "solution": "So \\boxed{3}.", "answer": "\\left( 3, \\pi \\right)",
  "unique_id": "a/1"} :: p :: \left( 3, \pi \right)
DeepScaleR :: {"problem": "p", "answer": "-\\frac{2}{3}", "solution": ""} :: p :: -\frac{2}{3}
OlympiadBench :: {"question": "q", "context": null, "final_answer": ["$2^{9}$"], "solution":
  ["long"]} :: q :: 2^{9}
OlympiadBench, several :: {"question": "q", "context": " Let $n$ be odd. ", "final_answer": ["$1$",
  "$3$ "]} :: Let $n$ be odd. q :: 1, 3
MAWPS :: {"input": "Joan found 7 and 7 shells.", "target": "14.0"} :: Joan found 7 and 7 shells. ::
  14.0
MAWPS, number :: {"input": "i", "target": 14.0} :: i :: 14
MAWPS, fraction :: {"input": "i", "target": 0.25} :: i :: 0.25
MAWPS, large :: {"input": "i", "target": 1e+16} :: i :: 10000000000000000
larger than floats are exact :: {"question": "q", "answer": 1e+23} :: q :: 100000000000000000000000
small :: {"question": "q", "answer": -1e-07} :: q :: -0.0000001
minus zero :: {"question": "q", "answer": -0.0} :: q :: 0
hundreds :: {"question": "q", "answer": 1200} :: q :: 1200
OlympiadBench, number :: {"question": "q", "final_answer": [18.0, 5]} :: q :: 18, 5
SVAMP :: {"ID": "chal-1", "Body": "Ann has 3.", "Question": "How many?", "Answer": 3.0, "Type":
  "-"} :: Ann has 3. How many? :: 3
SVAMP, hub :: {"Body": "If 3", "Question": "How many?", "Answer": "3.0", "question_concat": "If 3
  How"} :: If 3 How many? :: 3.0
SVAMP, small letters :: {"body": "Ann has 3.", "question": "How many?", "answer": 3.0} :: Ann has
  3. How many? :: 3
Calc-SVAMP :: {"question": "q", "chain": "<x/>", "result": "145"} :: q :: 145
AIME 2024 :: {"ID": "2024-II-4", "Problem": "p", "Answer": 33} :: p :: 33
no options :: {"question": "q", "answer": "2", "options": [], "choices": null} :: q :: 2
A, B are numbers :: {"question": "A+B?", "A": 1, "B": 2, "answer": 3} :: A+B? :: 3
MATH, a list of boxes :: {"problem": "p", "solution": "As \\boxed{1} is odd, $x=\\boxed{2}$,
  $\\boxed 3$, and $\\boxed{-4}$."} :: p :: 2, 3, -4
MATH, either :: {"problem": "p", "solution": "$x = \\boxed{-2}$ or $x = \\boxed{7}$."} :: p :: -2, 7
MATH, another spelling :: {"problem": "p", "solution": "$\\boxed{1\\frac{1}{2}},$ or
  $\\boxed{\\frac{3}{2}}$."} :: p :: \frac{3}{2}
MATH, twice :: {"problem": "p", "solution": "\\boxed{3}. So $\\fbox{3}$"} :: p :: 3
a box in a sentence :: {"problem": "p", "answer": "It is $\\boxed{9}$."} :: p :: 9
answer beside :: {"question": "q", "answer": null, "answer_number": 18.0} :: q :: 18
answer beside, text :: {"question": "q", "answer": "", "ground_truth": "5"} :: q :: 5
in the solution :: {"problem": "p", "answer": "", "solution": "\\boxed{5}"} :: p :: 5
OpenMathInstruct :: {"problem": "p", "generated_solution": "\\boxed{8}", "expected_answer": "7"} ::
  p :: 7
MAWPS, hub :: {"Question": "Ann has N_00 , then N_01 less .", "Numbers": "8.0 2.5", "Answer": 5.5}
  :: Ann has 8 , then 2.5 less . :: 5.5
ASDiv :: {"body": "Of number1", "question": "number0 go.", "numbers": [8.0, -2.5], "answer": 1} ::
  Of -2.5 8 go. :: 1
a base :: {"question": "q", "answer": "10 (base two)"} :: q :: 10 (base two)
no image :: {"question": "q", "answer": "5", "image": false, "images": {}} :: q :: 5
ASDiv, a unit :: {"body": "b", "question": "q", "answer": "2.5 (m)"} :: b q :: 2.5
Math23K :: {"question": "有temp_a个，又temp_b个", "num_list": ["3", "1/2"], "answer": "3.5"} ::
  有3个，又1/2个 :: 3.5
a figure that is text :: {"problem": "The figure: [asy] draw(A--B); [/asy]", "answer": "1",
  "image": null} :: The figure: [asy] draw(A--B); [/asy] :: 1
formulas :: {"problem": "$N_1 < num$, n![k](2)", "answer": "-1"} :: $N_1 < num$, n![k](2) :: -1
other fields :: {"question": "q", "answer": "5", "label": "", "gold": "", "error": "1e-1"} :: q :: 5
no solution is one :: {"problem": "p", "answer": "no solution"} :: p :: no solution
OpenR1, NuminaMath-1.5 :: {"problem": "p", "answer": "2", "problem_is_valid": "Yes",
  "solution_is_valid": "Yes", "correctness_math_verify": [true, false]} :: p :: 2
"""
ROWS = [line.split(" :: ") for line in re.sub("\n  ", " ", ROWS).splitlines()]
ROWS = [(name, json.loads(row), expected) for name, row, *expected in ROWS]
ROWS += [
    ("beyond floats", {"question": "2^1200?", "answer": 2**1200}, ("2^1200?", str(2**1200))),
    ("unicode", {"question": "Größe?\u2028Ja", "answer": "π"}, ("Größe?\u2028Ja", "π")),
]
BAD_ROWS = [
    ([1], "expected a JSON object, found list"),
    ("text", "expected a JSON object, found str"),
    ({"answer": "2"}, "question, problem or input.*answer"),
    ({"question": " ", "answer": "2"}, "question"),
    ({"question": 3, "answer": "2"}, "question"),
    ({"question": "q"}, "answer.*question"),
    ({"question": "q", "answer": True}, "answer"),
    ({"question": "q", "answer": 1, "choices": ["a", "b"]}, "choice"),
    ({"problem": "p", "solution": "no box"}, "answer.*solution"),
    ({"problem": "p", "solution": r"\boxed{1"}, "answer"),
    ({}, "question"),
    ({"problem": "p", "solution": r"\boxed"}, "answer"),
    ({"ctx": "c", "endings": ["a", "b"], "label": 0}, "choice"),
    ({"question": "q", "answer": ["1"], "solution": r"\boxed{2}"}, "answer: .*found ['1'"),
    ({"question": "q", "answer": {"value": 1}}, "answer: expected a text or a number"),
    ({"question": "q", "final_answer": [None]}, "final_answer: .*found None"),
    ({"question": "q", "final_answer": [["1"]]}, "final_answer: .*found ['1'"),
    ({"question": "q", "answer": float("nan")}, "answer: expected a finite number.*nan"),
    ({"question": "q", "target": float("-inf")}, "target: expected a finite number.*-inf"),
    ({"question": "q", "final_answer": [float("nan")]}, "final_answer: .*finite number.*nan"),
    ({"question": "q", "options": ["a", "b"], "answer": "B"}, "choice.*fields question, options"),
    ({"Question": "q", "A": "a", "B": "b", "C": "c", "Answer": "B"}, "choice.*Question, A, B"),
    ({"question": "q", "option_a": "a", "option_b": "b", "answer": "a"}, "choice.*option_a"),
    ({"question": "q", "optionA": "a", "optionB": "b", "answer": "A"}, "choice.*optionA"),
    ({"question": "q", "opa": "a", "opb": "b", "cop": 1, "answer": "b"}, "choice.*opa, opb"),
    ({"question": "q", "choice1": "a", "choice2": "b", "answer": "1"}, "choice.*choice1"),
    ({"question": "q", "distractor1": "a", "distractor2": "b", "answer": "c"}, "choice"),
    ({"question": "q", "Options": ["a", "b"], "answer": "A"}, "choice.*Options"),
    ({"question": "q", "incorrect_answers": ["a"], "answer": "A"}, "choice.*incorrect_answers"),
    ({"\ufeffquestion": "q", "answer": "2"}, r"found fields '\ufeffquestion', answer"),
    ({f"field{i}": 1 for i in range(5000)}, "found fields field0, .*field19, ..."),
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


@pytest.mark.parametrize("row, message", BAD_ROWS, ids=str)
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

HELLASWAG = {
    "ctx": "A man sits. he",
    "endings": [" runs. ", "eats  it.", "[step] sleeps.", "is [title] Here it is"],
    "label": "2",
}
ENDINGS = ("runs.", "eats it.", " sleeps.", "is. Here it is")
ARC = {"question": "Why?", "choices": {"text": ["sun", "moon", "fog"], "label": [*"ABC"]}}
ARC |= {"id": "Mercury_7", "answerKey": "C"}
MMLU = {"question": "Why? ", "choices": ["no", "yes ", "1", "2"], "answer": 3, "subject": "anatomy"}
PRO = {"question_id": 1, "question": "Which?", "options": ["4", "6", "8", "9", "10", "11"]}
PRO |= {"answer": "F", "answer_index": 5, "category": "math"}  # MMLU-Pro
OF_PRO = ("Question: Which?\nAnswer:", ("4", "6", "8", "9", "10", "11"), 5)
TAGS = " [header] How to sit [title] Sit. [step] Be [a  b] calm.  [step] Now "
ACTIVITY = {"activity_label": "Resting", "ctx_a": "A man sits.", "ctx_b": "he Then"}
ALONE = {"activity_label": "How to", "ctx_a": "[header] Sit. [step] Now.", "ctx_b": ""}
DIGITS = {"choices": {"text": [*"wxyz"], "label": [*"1234"]}, "answerKey": "1"}
FIVE = {"choices": {"text": [*"vwxyz"], "label": [*"ABCDE"]}, "answerKey": "E"}
CHOICES = {
    "HellaSwag": (HELLASWAG, ("A man sits. he", ENDINGS, 2)),
    "HellaSwag, whole number": ({**HELLASWAG, "label": 0}, ("A man sits. he", ENDINGS, 0)),
    "HellaSwag, tags": (  # three spaces become two, as in the harness
        {**HELLASWAG, "ctx": TAGS},
        (" How to sit. Sit. Be calm.  Now", ENDINGS, 2),
    ),
    "HellaSwag, activity": (HELLASWAG | ACTIVITY, ("Resting: A man sits. He then", ENDINGS, 2)),
    "HellaSwag, activity alone": (HELLASWAG | ALONE, ("How to: Sit. Now.", ENDINGS, 2)),
    "HellaSwag, no parts": ({**HELLASWAG, "activity_label": "R"}, ("A man sits. he", ENDINGS, 2)),
    "ARC": (ARC, ("Question: Why?\nAnswer:", ("sun", "moon", "fog"), 2)),
    "ARC, numbers": (ARC | DIGITS, ("Question: Why?\nAnswer:", (*"wxyz",), 0)),
    "ARC, five": (ARC | FIVE, ("Question: Why?\nAnswer:", (*"vwxyz",), 4)),
    "MMLU": (MMLU, ("Question: Why? \nAnswer:", (*MMLU["choices"],), 3)),
    "MMLU, letter": ({**MMLU, "answer": "B"}, ("Question: Why? \nAnswer:", (*MMLU["choices"],), 1)),
    "MMLU-Pro": (PRO, OF_PRO),
    "MMLU-Pro, letter": ({**PRO, "answer_index": None}, OF_PRO),
    "MMLU-Pro, index": ({**PRO, "answer": None}, OF_PRO),
    "MMLU-Pro, nulls": ({**PRO, "choices": None, "context": None, "image": None}, OF_PRO),
}
BAD_CHOICES = [
    ([1], "expected multiple choice .*found list"),
    ({"question": "q", "answer": "a"}, "expected multiple choice .*question"),
    ({**HELLASWAG, "label": "4"}, "label: expected one of 0, 1, 2, 3, found '4'"),
    ({**HELLASWAG, "label": 4}, "label: .*found 4"),
    ({**HELLASWAG, "label": -1}, "label: .*found -1"),
    ({**HELLASWAG, "label": True}, "label: .*found True"),
    ({**HELLASWAG, "label": 1.0}, "label: .*found .*1.0"),
    ({**HELLASWAG, "ctx": None}, "ctx: expected a text, found None"),
    ({**HELLASWAG, "ctx": "[a]"}, "ctx: .*[a]"),
    ({**HELLASWAG, "endings": ["a", "[step]"]}, "endings: .*found '[step]'"),
    ({**HELLASWAG, "endings": "abcd"}, "endings: .*found 'abcd'"),
    ({**ARC, "answerKey": "D"}, "answerKey: expected one of A, B, C, found 'D'"),
    ({**ARC, "answerKey": 0}, "answerKey: .*found 0"),
    ({**ARC, "question": " "}, "question: expected a text, found ' '"),
    ({**ARC, "choices": {"text": ["a", "b"], "label": ["A"]}}, "choices.label: expected 2 labels"),
    ({**ARC, "choices": {"label": ["A"]}}, "choices.text: .*found None"),
    ({**MMLU, "answer": 4}, "answer: expected one of 0, 1, 2, 3, found 4"),
    ({**MMLU, "answer": "E"}, "answer: .*A, B, C, D"),
    ({**MMLU, "answer": "2"}, "answer: .*'2'"),
    ({**MMLU, "answer": ""}, "answer: .*found ''"),
    ({**MMLU, "answer": "AB"}, "answer: .*'AB'"),
    ({"question": "q", "choices": ["a", "b"]}, "answer: .*found None"),
    ({**MMLU, "choices": ["a"]}, "choices: expected a list of at least two texts"),
    ({**MMLU, "choices": ["a", ""]}, "choices: .*found ''"),
    ({**MMLU, "choices": ["a", 2]}, "choices: .*found 2"),
    ({**MMLU, "choices": None}, "expected multiple choice .*found fields question, choices"),
    ({**MMLU, "choices": []}, "expected multiple choice .*found fields question, choices"),
    ({**PRO, "answer": 5}, "answer: expected one of A, B, C, D, E, F, found 5"),
    ({**PRO, "answer": "G"}, "answer: expected one of A, B, C, D, E, F, found 'G'"),
    ({**PRO, "answer": "11"}, "answer: expected one of A, B, C, D, E, F, found '11'"),
    ({**PRO, "answer_index": 4}, "answer_index: expected 5, since answer is F, found 4"),
    ({**PRO, "answer": None, "answer_index": 6}, "answer_index: expected one of 0, 1.*found 6"),
    ({"question": "q", "options": ["A) 1", "B) 2"], "correct": "B"}, "answer: .*found None"),
    ({**PRO, "options": {"A": "x", "B": "y"}}, "options: expected a list of at least two texts"),
    ({**PRO, "options": "a ) 38 , b ) 27"}, "options: expected a list of at least two texts"),
    ({**MMLU, "question": 5}, "question: .*found 5"),
]


@pytest.mark.parametrize("row, expected", CHOICES.values(), ids=CHOICES)
def test_every_format_of_multiple_choice_is_understood(row, expected, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([row]), "utf-8")
    lines = jsonl(tmp_path / "a.jsonl", row, row)
    assert load(tmp_path / "a.json") == [Choice(*expected)]
    assert load(str(lines)) == [Choice(*expected)] * 2
    refuses(lines, "a.jsonl: line 1: ", "found multiple choice", by=load_problems)


# ---------------------------------------------------------------- rows that are no use

NO_ANSWERS = "proof;Proof.;notfound;\\text{None};N/A;nan;?;see Figure".split(";")
UNUSABLE = [
    *[("a word", {**PLAIN, "answer": word}) for word in NO_ANSWERS],
    ("a word", {"problem": "p", "solution": r"So $\boxed{\text{proof}}$."}),
    ("parts", {"problem": "p", "solution": r"(a) $\boxed{1}$. (b) $\boxed{2}$."}),
    ("figure", {**PLAIN, "image_1": {"bytes": "iVBO"}}),
    ("figure", {**PLAIN, "decoded_image": "a.png"}),
    ("figure", {"Question": "q", "Answer": "5", "Picture": "a.png"}),
    ("figure", {**PLAIN, "question": "The figure <image_1> shows a square."}),
    ("figure", {**PLAIN, "question": "q ![](https://cdn.example.org/a.jpg)"}),
    ("figure", {**PLAIN, "context": 'See <img src="a.png">.'}),
    ("passage", {**PLAIN, "passage": "Ann is old."}),
    ("table", {**PLAIN, "table": "a | b"}),
    ("placeholders", {**PLAIN, "question": "N_00 and N_01?", "Numbers": "8 2 3"}),
    ("placeholders", {**PLAIN, "question": "[NUM] and [NUM]?", "numbers": [8, 2]}),
    ("placeholders", {**PLAIN, "question": "number0 and number1?"}),
    ("wrong", {**PLAIN, "problem_is_valid": "Incomplete"}),
    ("wrong", {**PLAIN, "solution_is_valid": "Problem not solved"}),
    ("wrong", {**PLAIN, "is_correct": False}),
    ("wrong", {**PLAIN, "answerable": False}),
    ("wrong", {**MMLU, "error_type": "wrong_groundtruth"}),
    ("passage", {**MMLU, "context": "Ann is old."}),
    ("passage", {**ARC, "passage": "Ann is old."}),
    ("passage", {**PRO, "article": "Once."}),
    ("figure", {**PRO, "image_2": "a.png"}),
    ("figure", {**MMLU, "choices": ["<image 1>", "2"]}),
    ("figure", {**MMLU, "question": "Which is <image 1>?"}),
]


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


@pytest.mark.parametrize("row, message", BAD_CHOICES, ids=str)
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
