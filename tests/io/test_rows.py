"""Files and folders as they are published, saved and downloaded become rows."""

import codecs
import gzip
import io
import json
import re
import sys

import pytest
from conftest import refuses as refuses_by

from minisoft.data import Choice, Problem
from minisoft.io.datasets import load, load_problems

ROW = {"question": "1+1?", "answer": "2"}
LINE = json.dumps(ROW).encode() + b"\n"
PROBLEM = Problem("1+1?", "2")


def write(folder, **files):
    """Files by name, `__` for a slash; returns the folder."""
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def math_file(number):
    """A file of hendrycks/MATH: one indented object."""
    solution = f"It is $\\boxed{{{number}}}$."
    row = {"problem": f"p{number}", "level": "Level 1", "type": "Algebra", "solution": solution}
    return json.dumps(row, indent=4).encode()


def refuses(source, *parts, by=load):
    assert len(refuses_by(source, *parts, by=by)) < 600


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_byte_order_mark_is_no_text(name, tmp_path):
    content = LINE if name == "a.jsonl" else b"[" + LINE + b"]"
    write(tmp_path, **{name: codecs.BOM_UTF8 + content})
    assert load(tmp_path / name) == [PROBLEM]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_other_encodings_are_named(encoding, tmp_path):
    content = ("\ufeff" + LINE.decode()).encode(encoding)
    refuses(write(tmp_path, **{"a.jsonl": content}), "a.jsonl: expected UTF-8 text, found UTF-16")


def test_what_is_not_utf8_is_named_with_its_line(tmp_path):
    write(tmp_path, **{"a.jsonl": codecs.BOM_UTF8 + LINE + b"\n" + b'{"question": "caf\xe9"}'})
    refuses(tmp_path / "a.jsonl", "a.jsonl: line 3: expected UTF-8 text, found", "0xe9")


HALVES = r"""question {"question": "1 \ud83d?", "answer": "2"}
question {"question": "q", "context": "\udc00", "answer": "2"}
answer {"question": "q", "answer": "2\ude00"}
answer {"question": "q", "final_answer": ["1", "\ud83d"]}
choices {"question": "q", "choices": ["a", "\ud83d"], "answer": 0}
question {"question": "\ud83d", "choices": ["a", "b"], "answer": 0}"""


@pytest.mark.parametrize("line", HALVES.splitlines())
def test_half_an_emoji_is_refused_and_a_whole_one_is_read(line, tmp_path):
    field, row = line.split(" ", 1)
    good = row.replace(r"\ud83d", "x") if "choices" in row else LINE.decode()
    write(tmp_path, **{"a.jsonl": f"{good.strip()}\n{row}".encode()})
    refuses(tmp_path / "a.jsonl", f"a.jsonl: line 2: {field}", "found half an emoji: ")
    write(tmp_path, **{"a.jsonl": b'{"question": "\\ud83d\\ude00?", "answer": "2"}'})
    assert load(tmp_path / "a.jsonl") == [Problem("\U0001f600?", "2")]


# ---------------------------------------------------------------- JSON


def test_objects_may_be_indented_and_follow_each_other(tmp_path):
    write(tmp_path, **{"1.json": math_file(1), "a.json": math_file(1) + b"\n" + math_file(2)})
    assert load(tmp_path / "1.json") == [Problem("p1", "1")]
    assert load(tmp_path / "a.json") == [Problem("p1", "1"), Problem("p2", "2")]
    write(tmp_path, **{"a.json": math_file(1) + b"\n\n{}"})
    refuses(tmp_path / "a.json", "a.json: line 8: expected question")


DAMAGED = {  # LINE stands for it
    b'LINE\n{"question": "q", "answer": "1"\nLINE': "line 2: expected a JSON object",
    b"LINE,\nLINE": "line 1: expected a JSON object, found: Expecting value",
    b"[LINE]\n[]": "expected a JSON list, found: Extra data",
    b"[" * 100_000: "expected a JSON list, found: maximum recursion",
    b'{"data": [LINE]}': "line 1: expected question.*found fields data",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4": "run git lfs pull",
}


def test_damaged_json_is_named_by_its_line(tmp_path):
    for content, message in DAMAGED.items():
        write(tmp_path, **{"a.jsonl": content.replace(b"LINE", LINE.strip())})
        refuses(tmp_path / "a.jsonl", "a.jsonl", *message.split(".*"))


def test_a_gzip_file(tmp_path):
    write(tmp_path, **{"a.jsonl.gz": gzip.compress(LINE * 50)})
    write(tmp_path, **{"b.jsonl.gz": gzip.compress(LINE * 50)[:-12]})
    write(tmp_path, **{"c.json.gz": b"[]"})
    assert load(tmp_path / "a.jsonl.gz") == [PROBLEM] * 50
    refuses(tmp_path / "b.jsonl.gz", "b.jsonl.gz: expected a gzip file")
    refuses(tmp_path / "c.json.gz", "c.json.gz: expected a gzip file")


# ---------------------------------------------------------------- Parquet


def parquet(rows):
    pyarrow = pytest.importorskip("pyarrow")
    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    pytest.importorskip("pyarrow.parquet").write_table(table, buffer)
    return buffer.getvalue()


def test_parquet_as_the_hub_distributes_gsm8k_and_math_500(tmp_path):
    gsm8k = [{"question": "Ann?", "answer": f"So {n}.\n#### {n}"} for n in (7, 8)]
    math = {"problem": "p", "solution": r"\boxed{3}", "answer": "4", "level": 2, "unique_id": "a"}
    for i in range(2):
        write(tmp_path, **{f"main__train-0000{i}-of-00002.parquet": parquet(gsm8k[i : i + 1])})
    write(tmp_path, **{"test.parquet": parquet([math])})
    assert load(tmp_path / "main") == [Problem("Ann?", "7"), Problem("Ann?", "8")]
    assert load_problems(tmp_path / "test.parquet") == [Problem("p", "4")]


def test_parquet_with_numbers_and_nulls(tmp_path):
    rows = [{"question": q, "answer": n, "options": None} for q, n in (("q", 18.0), ("r", 1e23))]
    write(tmp_path, **{"a.parquet": parquet(rows)})
    assert load(tmp_path / "a.parquet") == [Problem("q", "18"), Problem("r", "1" + 23 * "0")]
    write(tmp_path, **{"a.parquet": parquet([rows[0], {**rows[1], "answer": float("nan")}])})
    refuses(tmp_path / "a.parquet", "a.parquet: row 2: answer: expected a finite number", "nan")


@pytest.mark.parametrize("bits", [16, 32])
def test_parquet_with_numbers_of_few_bits_has_their_digits(tmp_path, bits):
    pyarrow = pytest.importorskip("pyarrow")
    numbers = [0.1, 5.0, 3.14, -0.75] + ([1e-7, 16777216.0] if bits == 32 else [])
    column = pyarrow.array(numbers, pyarrow.float32()).cast(f"float{bits}")
    table = pyarrow.table({"question": ["q"] * len(numbers), "answer": column, "level": column})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    golds = [problem.answer for problem in load(tmp_path / "a.parquet")]
    expected = ["0.1", "5", "3.14", "-0.75", "0.0000001", "16777216"]
    assert golds == expected[: len(numbers)]


def test_parquet_of_multiple_choice_and_damaged_parquet(tmp_path):
    arc = {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
    write(tmp_path, **{"a.parquet": parquet([arc])})
    assert load(tmp_path / "a.parquet") == [Choice("Question: q\nAnswer:", ("a", "b"), 1)]
    write(tmp_path, **{"a.parquet": parquet([arc])[:-9]})
    refuses(tmp_path / "a.parquet", "a.parquet: expected a Parquet file, found: ")


def test_parquet_needs_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    write(tmp_path, **{"a.parquet": b"PAR1"})
    refuses(tmp_path, "a.parquet: Parquet files need ", "pip install 'minisoft[data]'")
    refuses(tmp_path / "no.parquet", "no.parquet: expected a data file, found no such file")


# ---------------------------------------------------------------- folders


def test_a_folder_of_hendrycks_math(tmp_path):
    files = {f"MATH__train__algebra__{n}.json": math_file(n) for n in (10, 2, 1)}
    write(tmp_path, **files, MATH__train__geometry__3=b"no", MATH__train__algebra__README=b"no")
    write(tmp_path, **{"MATH__train__algebra__._1.json": b"\0", "MATH__train__.a__7.json": b"\0"})
    write(tmp_path, **{"MATH__train__geometry__3.json": math_file(3)})
    expected = [Problem(f"p{n}", n) for n in ("1", "2", "10", "3")]
    assert load(str(tmp_path / "MATH" / "train")) == load(tmp_path / "MATH") == expected
    write(tmp_path, **{"MATH__train__geometry__4.json": b'\n{"problem": "p"}'})
    refuses(tmp_path / "MATH", "geometry/4.json: line 2: expected question")


SECOND = ["MATH__test__algebra__1.json", "MATH__more.json", "MATH__train__valid-0.jsonl"]


@pytest.mark.parametrize("second", SECOND)
def test_a_folder_is_of_one_split(second, tmp_path):
    name = second.removeprefix("MATH__").replace("__", "/")
    write(tmp_path, **{"MATH__train__algebra__1.json": math_file(1), second: math_file(2)})
    if "valid" in second:  # in the folder train, and so of this split
        assert len(load(tmp_path / "MATH")) == 2
        return
    refuses(tmp_path / "MATH", "MATH: expected data files of one format and one split", name)


SPLITS = """trainset testset validset; training testing; GSM8KTrain GSM8KTest; train devset
gsm8ktrain gsm8ktest; trainset_nodup testset_nodup; train_math test_math; MATH MATH500"""


@pytest.mark.parametrize("names", re.split("[;\n]", SPLITS))
def test_a_split_in_one_word_with_others_is_a_split(names, tmp_path):
    write(tmp_path, **{f"{name}.jsonl": LINE for name in names.split()})
    refuses(tmp_path, "expected data files of one format and one split, found ")


def test_words_that_hold_the_name_of_a_split_are_none(tmp_path):
    names = ("contest", "latest", "constraints", "evaluations", "intervals", "devices")
    write(tmp_path, **{f"{name}.jsonl": LINE for name in names})
    assert load(tmp_path) == [PROBLEM] * len(names)


def test_a_folder_has_data_of_one_format(tmp_path):
    refuses(write(tmp_path, README=b"no"), "expected a .jsonl, ", ".parquet file in it, found none")
    write(tmp_path, **{"a.jsonl": LINE, "b.parquet": b"PAR1"})
    refuses(tmp_path, "one format and one split, found a.jsonl and b.parquet")


def test_half_a_data_set_and_one_that_is_there_twice_are_refused(tmp_path):
    names = [f"train-0000{i}-of-00002-{'ab'[i]}.jsonl" for i in range(2)]
    write(tmp_path, **{names[0]: LINE})
    refuses(tmp_path, "train: expected its 2 files", "found 1")
    assert load(tmp_path / names[0]) == [PROBLEM]
    write(tmp_path, **{names[1]: LINE})
    assert load(tmp_path) == [PROBLEM] * 2
    write(tmp_path, **{"train_a.jsonl": LINE, "train_a.json.gz": gzip.compress(LINE)})
    refuses(tmp_path, "train_a: expected one file of that name, found 2")


def test_a_link_to_nothing_is_not_passed_over(tmp_path):
    write(tmp_path, **{"a.jsonl": LINE})
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    refuses(tmp_path, "b.jsonl: expected a data file")


def test_a_name_of_the_hub_is_no_folder(tmp_path, monkeypatch):
    """A folder that has the name of a data set is meant by ./name only."""
    monkeypatch.chdir(write(tmp_path, **{"gsm8k__a.jsonl": LINE}))
    monkeypatch.setitem(sys.modules, "datasets", None)
    refuses("gsm8k", "gsm8k: datasets of the hub need")
    assert load("./gsm8k") == [PROBLEM]
