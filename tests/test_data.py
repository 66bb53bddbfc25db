"""The prompt and the box are the paper's; (seed, step) alone decide which problems a step uses."""

import random

import pytest

from minisoft import data
from minisoft.data import Problem, batch, boxed, divide, prompt, same_question, split
from minisoft.errors import InputError

# ---------------------------------------------------------------- boxed, prompt


BOXED = r"""18} :: 18
18} and } more :: 18
} ::
\frac{1}{2}} {x} :: \frac{1}{2}
\{1, 2\}} :: \{1, 2\}
\left\{ x \right.} . :: \left\{ x \right.
1 \\} x :: 1 \\
{{{}}}} :: {{{}}}
\frac{1}{2}} and {more}} :: \frac{1}{2}
\{1\}}} :: \{1\}"""


def test_boxed_is_what_stands_before_the_closing_brace():
    pairs = [line.split(" ::") for line in BOXED.splitlines()]
    for text, expected in [*pairs, ("a\nb}", "a\nb")]:
        assert boxed(text) == expected.removeprefix(" "), text
    for text in ("", "18", "{18}", r"18\}", "\\", "{}", r"5\}"):
        assert boxed(text) is None, text


def test_the_prompt_is_that_of_the_paper():
    assert prompt("What is 1+1?") == (
        r"A conversation between User and Assistant. The user asks a question, and the Assistant "
        r"solves it. The assistant first shows the complete reasoning process step by step, then "
        r"provides the final answer in \boxed{}. The assistant must always follow the format: "
        r"'User: [question] Assistant: [detailed reasoning] The final answer is: "
        r"\boxed{[answer]}.' User: What is 1+1? Assistant:"
    )
    prefills = (" \\boxed{", " The final answer is: \\boxed{")
    assert (data.PREFILL_EARLY, data.PREFILL_LATE) == prefills
    assert data.STOP == "The final answer is:"


def test_a_question_is_not_interpreted():
    assert prompt(r"\1 {x} %s QUESTION", "Q: QUESTION A:") == r"Q: \1 {x} %s QUESTION A:"


# ---------------------------------------------------------------- who is used

PROBLEMS = [Problem(f"q{i}", str(i)) for i in range(50)]


def test_validation_is_disjoint_complete_and_always_the_same():
    training, validation = split(PROBLEMS, 12)
    assert len(validation) == 12
    assert sorted(training + validation, key=lambda p: int(p.answer)) == PROBLEMS
    assert split(PROBLEMS, 12) == (training, validation)
    assert validation != PROBLEMS[:12] and validation != PROBLEMS[-12:]
    assert set(validation) < set(split(PROBLEMS, 20)[1])
    assert split(PROBLEMS, 0) == (PROBLEMS, [])


def test_without_duplicates_the_split_is_that_of_a_permutation():
    """Earlier runs used it, and the study's."""
    for held_out in (1, 12, 49):
        order = random.Random("minisoft/validation").sample(range(50), 50)
        expected = [sorted(order[held_out:]), sorted(order[:held_out])]
        sides = split(PROBLEMS, held_out)
        assert [[int(problem.answer) for problem in side] for side in sides] == expected
    assert [problem.answer for problem in split(PROBLEMS, 4)[1]] == ["22", "28", "31", "48"]


COPIES = {
    "alike": lambda problem: problem,
    "white space": lambda problem: Problem(f" {problem.question}\n", problem.answer),
    "answer": lambda problem: Problem(problem.question, "another"),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("copied, held_out", [(1, 12), (25, 12), (50, 20), (50, 98)])
def test_problems_with_the_same_question_stay_together(copy, copied, held_out):
    problems = [*PROBLEMS, *map(copy, PROBLEMS[:copied])]
    training, validation = split(problems, held_out)
    assert len(validation) == held_out and len(training) == len(problems) - held_out
    assert not {same_question(p) for p in training} & {same_question(p) for p in validation}
    assert [p for p in problems if p in training] == training  # the order is kept
    assert [p for p in problems if p in validation] == validation


def test_no_more_are_held_out_than_asked_for():
    hundred = [problem for problem in PROBLEMS for _ in range(100)]
    assert [len(side) for side in split(hundred, 250)] == [4800, 200]
    assert [len(side) for side in split(hundred, 99)] == [5000, 0]
    assert [len(side) for side in split([*hundred, Problem("r", "1")], 99)] == [5000, 1]


def test_divide_takes_the_first_of_an_order():
    problems = [Problem(question, str(i)) for i, question in enumerate("aabc")]
    taken, others = divide(problems, 2, [3, 0, 2, 1])  # c; a and a have no room; b
    assert [p.answer for p in taken] == ["2", "3"] and [p.answer for p in others] == ["0", "1"]


@pytest.mark.parametrize("validation", [-1, 50, 51])
def test_validation_leaves_something_to_train_on(validation):
    with pytest.raises(InputError, match=f"validation: .*50.*found {validation}"):
        split(PROBLEMS, validation)


@pytest.mark.parametrize("count, prompts", [(10, 2), (10, 3), (7, 7), (5, 1), (400, 8)])
def test_an_epoch_uses_no_problem_twice(count, prompts):
    per_epoch = count // prompts
    for epoch in range(3):
        steps = [batch(count, prompts, 0, epoch * per_epoch + i) for i in range(per_epoch)]
        used = [i for step in steps for i in step]
        assert all(len(step) == prompts for step in steps)
        assert len(set(used)) == len(used) == per_epoch * prompts and set(used) <= set(range(count))


def test_a_step_is_a_pure_function_of_seed_and_step():
    expected = [batch(400, 4, 3, step) for step in range(250)]
    random.seed(1)
    assert [batch(400, 4, 3, step) for step in reversed(range(250))] == expected[::-1]
    assert batch(400, 4, 3, 0) != batch(400, 4, 4, 0)
    assert batch(400, 4, 3, 0) != batch(400, 4, 3, 100)  # the next epoch has its own order
    assert expected[0] == [147, 67, 90, 253]  # in every process, so that a run can be resumed


def test_more_prompts_than_problems_are_refused():
    message = "prompts: expected at most the 4 training problems, found 5"
    with pytest.raises(InputError, match=message):
        batch(4, 5, 0, 0)
