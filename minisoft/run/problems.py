"""Which problems a run trains on, validates with and tests with; each rank's share of a step."""

import random
from argparse import Namespace

from minisoft import data
from minisoft.data import Problem
from minisoft.run.world import World, share
from minisoft.verifier.compare import only_as_text


class Problems:
    """training, validation, test; copies: how many have the question of another one, and stay with
    it; shares: [(slot of 0..B-1, samples)] of this rank.  Sets args.validation and args.test where
    None; says which gold answers only the same text is equal to.  Raises InputError for too few
    problems."""

    def __init__(self, args: Namespace, world: World, problems: list[Problem]):
        tenth = min(200, len(problems) // 10)
        args.validation = tenth if args.validation is None else args.validation
        args.test = tenth if args.test is None else args.test
        self.training, held_out = data.split(problems, args.validation + args.test)
        # of a file sorted by subject both get all subjects
        order = random.Random("minisoft/test").sample(range(len(held_out)), len(held_out))
        self.validation, self.test = data.divide(held_out, args.validation, order)
        data.batch(len(self.training), args.prompts, 0, 0)  # enough problems?
        self.shares = share(world.rank, world.size, args.prompts, args.group)
        self.copies = len(problems) - len({data.same_question(x) for x in problems})
        if odd := [problem.answer for problem in problems if only_as_text(problem.answer)]:
            named = ", ".join(f"{answer!r:.60}" for answer in odd[:50])
            world.say(
                f"{len(odd)} of {len(problems)} gold answers are neither numbers nor formulas nor "
                f"words to the verifier, so that only the same text is right: {named}"
            )
