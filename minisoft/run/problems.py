"""Which problems a run trains on, validates with and tests with; each rank's share of a step."""

import random
from argparse import Namespace
from collections import Counter

from minisoft import data
from minisoft.data import Problem
from minisoft.run.world import World, share
from minisoft.verifier.compare import only_as_text


class Problems:
    """training, validation, test; shares: [(slot of 0..B-1, samples)] of this rank.  Sets
    args.validation and args.test where None.  Raises InputError for too few problems."""

    def __init__(self, args: Namespace, world: World, problems: list[Problem]):
        tenth = min(200, len(problems) // 10)
        args.validation = tenth if args.validation is None else args.validation
        args.test = tenth if args.test is None else args.test
        asked = args.validation + args.test
        self.training, held_out = data.split(problems, asked)
        # of a file sorted by subject both get all subjects
        order = random.Random("minisoft/test").sample(range(len(held_out)), len(held_out))
        self.validation, self.test = data.divide(held_out, args.validation, order)
        data.batch(len(self.training), args.prompts, 0, 0)  # enough problems?
        self.shares = share(world.rank, world.size, args.prompts, args.group)
        for line in (*duplicates(problems, asked, len(held_out)), *unreadable(problems)):
            world.say(line)


def duplicates(problems: list[Problem], asked: int, held_out: int) -> list[str]:
    """What is said of duplicate problems; asked: how many were to be held out."""
    pairs = {(data.same_question(problem), problem.answer) for problem in problems}
    answers = Counter(question for question, _ in pairs)  # how many gold ones a question has
    copies, unlike = len(problems) - len(answers), sum(n > 1 for n in answers.values())
    if not copies:
        return []
    disputed = f"; questions with several gold answers: {unlike}" if unlike else ""
    lines = [
        f"{copies} of {len(problems)} problems are duplicates: each has the question of an "
        f"earlier one, and stays with it in training, validation or test{disputed}"
    ]
    if held_out < asked:
        lines.append(f"{held_out} problems are held out, not {asked}, so that they can stay")
    return lines


def unreadable(problems: list[Problem]) -> list[str]:
    """What is said of gold answers that only the same text is equal to."""
    odd = [p.answer for p in problems if only_as_text(p.answer)]
    named = ", ".join(f"{answer!r:.60}" for answer in odd[:50])
    line = (
        f"{len(odd)} of {len(problems)} gold answers are neither numbers nor formulas nor "
        f"words to the verifier, so that only the same text is right: {named}"
    )
    return [line] if odd else []
