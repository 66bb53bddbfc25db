"""Which problems a run trains on, validates with and tests with; duplicates stay together."""

from argparse import Namespace

from minisoft.data import Problem, same_question, split
from minisoft.run.problems import Problems
from minisoft.run.world import World

PROBLEMS = [Problem(f"{i}+1?", str(i + 1)) for i in range(40)]


def flags(validation=None, test=None):
    return Namespace(prompts=2, group=2, seed=0, validation=validation, test=test)


def divided(problems, args):
    return Problems(args, World("cpu"), problems)


def test_no_question_is_in_two_of_training_validation_and_test():
    problems = [*PROBLEMS, *PROBLEMS, *PROBLEMS[:7], Problem(" 0+1?\n", "one")]
    of_run = divided(problems, flags(10, 20))
    parts = [of_run.training, of_run.validation, of_run.test]
    assert [len(part) for part in parts] == [58, 10, 20]
    questions = [{same_question(problem) for problem in part} for part in parts]
    assert sum(map(len, questions)) == len(set.union(*questions)) == 40
    assert of_run.copies == 48
    few = divided([problem for problem in PROBLEMS for _ in range(5)], flags(6, 6))
    assert [len(few.validation), len(few.test)] == [5, 5]  # a question is held out whole or not


def test_without_duplicates_nothing_is_said_and_sizes_are_a_tenth(capsys):
    args = flags()
    of_run = divided(PROBLEMS, args)
    assert [len(of_run.training), len(of_run.validation), len(of_run.test)] == [32, 4, 4]
    assert (args.validation, args.test) == (4, 4) and of_run.copies == 0
    said = capsys.readouterr()
    assert not said.out + said.err


def test_of_a_file_sorted_by_subject_every_part_has_every_subject():
    """As MATH's folder is read: algebra first, precalculus last."""
    subjects = [letter * 3 for letter in "abcdefg"]
    problems = [Problem(f"{subject} {i}", str(i)) for subject in subjects for i in range(60)]
    first, again = (divided(problems, flags(40, 40)) for _ in range(2))
    assert (first.validation, first.test) == (again.validation, again.test)
    for part in (first.training, first.validation, first.test):
        assert {problem.question[:3] for problem in part} == set(subjects)


def test_what_is_trained_on_and_its_order_do_not_depend_on_who_tests():
    whole = divided(PROBLEMS, flags(8, 8))
    assert whole.training == divided(PROBLEMS, flags(16, 0)).training
    assert whole.training == divided(PROBLEMS, flags(0, 16)).training == split(PROBLEMS, 16)[0]
