"""The world of weights/tiny: right is right, wrong has one error, the files are what the code
makes."""

import json
import re
import sys
from operator import add, mul, sub

import pytest

from minisoft.io import datasets
from minisoft.io.checkpoint import WEIGHTS

sys.path.insert(0, str(WEIGHTS))  # the two programs there are no package
import corpus  # noqa: E402
import pretrain  # noqa: E402

SKILLS = {  # number of options, question
    "facts": (4, r"Which animal lives in (\w+)\? (.*) Assistant: The final answer is:"),
    "sorting": (4, r"(\w+): (.*)\. Assistant: The final answer is:"),
    "drills": (2, r"What is (.*)\? Assistant:"),
    "references": (2, r"(.*) Assistant:"),
}
BY = {"+": add, "-": sub, "*": mul, "plus": add, "minus": sub, "times": mul}
CHANGES = {
    r"finds (\d+) more|Then (\d+) more come": add,
    r"loses (\d+)|Then (\d+) are sold": sub,
    r"buys (\d+) \w+ of (\d+)": add,
    r"gives away (\d+) \w+ of (\d+)": sub,
    r"number is (doubled|tripled)": mul,
}


def counts(story):
    """The count at the start of a story and after every sentence, read from the words alone."""
    first, *sentences, _ = re.split(r"(?<=[.?]) ", story)
    found = [int(re.search(r"has (\d+) ", first)[1])]
    for sentence in sentences:
        matches = [(re.search(pattern, sentence), by) for pattern, by in CHANGES.items()]
        ((match, by),) = [(match, by) for match, by in matches if match]
        numbers = [{"doubled": 2, "tripled": 3}.get(x) or int(x) for x in match.groups() if x]
        found.append(by(found[-1], numbers[0] * (numbers[1] if len(numbers) > 1 else 1)))
    return found


def errors(text):
    """(claimed - right result of every computation of a chain of thought)."""
    found, count = [], None
    for sentence in text.split(". "):
        sentence = sentence.removesuffix(".")
        if match := re.fullmatch(r"Start with (\d+)", sentence):
            count = int(match[1])
        elif match := re.fullmatch(r"([-+*]) (-?\d+), now (-?\d+)", sentence):
            found.append(int(match[3]) - BY[match[1]](count, int(match[2])))
            count = int(match[3])
        elif match := re.fullmatch(r"In one go: ([-+*() \d]+) = (-?\d+)", sentence):
            found.append(int(match[2]) - eval(match[1]))
        else:
            match = re.fullmatch(r"(-?\d+) (\S+) (-?\d+) (?:=|is|makes) (-?\d+)", sentence)
            a, sign, b, result = match.groups()
            found.append(int(result) - BY[sign](int(a), int(b)))
    return found


def parts(ending):
    """(chain of thought, what its box holds)"""
    return re.fullmatch(r"(.*?)(?: The final answer is: )?\\boxed\{(.*)\}", ending).groups()


def choices(skill):
    """[(match of the question with its pattern, [(is it right, chain of thought, box) of every
    option])]"""
    size, pattern = SKILLS[skill]
    rows = [corpus.choice(skill, i) for i in range(300)]
    assert rows == [corpus.choice(skill, i) for i in range(300)]
    assert len({json.dumps(row) for row in rows}) > 290
    assert all(len(set(row["endings"])) == len(row["endings"]) == size for row in rows)
    assert {row["label"] for row in rows} == set(range(size))
    found = []
    for row in rows:
        options = [(i == row["label"], *parts(end)) for i, end in enumerate(row["endings"])]
        found.append((re.fullmatch(f"User: {pattern}", row["ctx"]).groups(), options))
    return found


def test_facts_are_those_of_the_corpus():
    for (town, listed), options in choices("facts"):
        animals, home = dict(re.findall(r"\((\w)\) (\w+)", listed)), corpus.TOWNS.index(town)
        assert {box for _, _, box in options} == set(animals) == set("ABCD")
        assert len(set(animals.values())) == 4
        assert all((animals[box] == corpus.fact(home)) == right for right, _, box in options)


def test_sorted_is_sorted_and_reversed_reversed():
    found = choices("sorting")
    for (word, asked), options in found:
        numbers = list(map(int, asked.split(", ")))
        exact = {"Sort": sorted(numbers), "Reverse": numbers[::-1]}[word]
        for right, _, box in options:
            listed = list(map(int, box.split(", ")))
            assert (listed == exact) == right and sorted(listed) == sorted(numbers)
    assert {word for (word, _), _ in found} == {"Sort", "Reverse"}


def test_drills_are_right_or_have_one_error():
    for (asked,), options in choices("drills"):
        for right, thought, box in options:
            sums = [claim.split(" = ") for claim in thought.removesuffix(".").split(". ")]
            assert ", ".join(text for text, _ in sums) == asked
            assert ", ".join(n for _, n in sums) == box
            expected = [[0] * 4] if right else [[0, 0, 0, 1], [0, 0, 0, 10]]
            assert sorted(errors(thought)) in expected


def test_references_are_right_or_have_one_error():
    for (asked,), options in choices("references"):
        story = counts(asked)
        for right, thought, box in options:
            assert (int(box) == story[-1]) == right and re.findall(r"-?\d+", thought)[-1] == box
            assert [e for e in errors(thought) if e] in ([[]] if right else [[1], [10]])
            steps = 1 if thought.startswith("In one go") else len(story) - 1
            assert len(errors(thought)) >= steps


def test_the_files_are_what_the_code_writes(tmp_path):
    pretrain.write_problems(tmp_path / "new")
    pretrain.write_sidecar(tmp_path)
    config = json.dumps(pretrain.make_config(179, 128), indent=2) + "\n"
    assert (WEIGHTS / "tiny/config.json").read_text() == config
    sidecar = "minisoft.json"
    assert (WEIGHTS / "tiny" / sidecar).read_text() == (tmp_path / sidecar).read_text()
    written = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (WEIGHTS / "tiny").glob("*.jsonl")}
    assert set(written) == set(datasets.EMBEDDED.values())


EMBEDDED = [("tiny", 3000, {2, 3, 4}), ("tiny-test", 400, {2, 3, 4})]
EMBEDDED += [("tiny-long", 400, {4, 5}), ("tiny-hard", 400, {5, 6})]


@pytest.mark.parametrize("name, size, changes", EMBEDDED)
def test_embedded_problems_have_right_answers_and_as_many_changes_as_they_say(name, size, changes):
    problems = datasets.load_problems(name)
    found = [counts(problem.question) for problem in problems]
    assert len({problem.question for problem in problems}) == len(problems) == size
    assert [int(problem.answer) for problem in problems] == [story[-1] for story in found]
    assert {len(story) - 1 for story in found} == changes
    assert all(1 <= n <= 99 for story in found for n in story)


@pytest.mark.parametrize("name", SKILLS)
def test_embedded_choices_load(name):
    found = datasets.load(f"tiny-{name}")
    assert len(found) == 300
    for i, choice in enumerate(found):
        row = corpus.choice(name, i)
        expected = (row["ctx"], row["endings"], row["label"])
        assert (choice.context, list(choice.options), choice.answer) == expected
