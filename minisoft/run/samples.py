"""Which problems are trained on, and which rank takes which of a step's B x G samples."""

import random
from argparse import Namespace
from collections import Counter, defaultdict
from dataclasses import dataclass

import torch

from minisoft import data
from minisoft.data import Problem
from minisoft.evaluation import SOFTNESS
from minisoft.run.world import World, share
from minisoft.verifier.compare import only_as_text

COLUMNS = ("reward", "cot_tokens", "answer_tokens", "entropy", "truncated", *SOFTNESS)  # a sample's


@dataclass(frozen=True)
class Part:
    """One rank's part of a problem of a step: slot b of 0..B-1, its number among the training
    problems, its samples of 0..G-1."""

    slot: int
    number: int
    problem: Problem
    samples: range


@dataclass(frozen=True)
class Scores:
    """What a step's samples reached: table (B G, COLUMNS and the verifier's reward) of all ranks,
    in order; this rank's generations; how the verifier decided."""

    table: torch.Tensor
    generations: list[dict]
    counts: Counter

    def rewards(self, B: int) -> torch.Tensor:
        """(B, G) float64."""
        return self.table[:, 0].view(B, -1)


class Samples:
    """The problems of a run: training, validation, test; and the samples of its steps.

    Sets args.validation and args.test where they are None.  Raises InputError for too few problems
    or ranks that do not divide B G.
    """

    def __init__(self, args: Namespace, world: World, problems: list[Problem]):
        self.args, self.world = args, world
        tenth = min(200, len(problems) // 10)
        args.validation = tenth if args.validation is None else args.validation
        args.test = tenth if args.test is None else args.test
        self.training, held_out = data.split(problems, args.validation + args.test)
        # of a file sorted by subject both get all subjects
        order = random.Random("minisoft/test").sample(range(len(held_out)), len(held_out))
        self.validation, self.test = data.divide(held_out, args.validation, order)
        data.batch(len(self.training), args.prompts, 0, 0)  # enough problems?
        self.shares = share(world.rank, world.size, args.prompts, args.group)
        self._say_duplicates(problems)
        odd = [p.answer for p in problems if only_as_text(p.answer)]
        if odd:
            named = ", ".join(f"{answer!r:.60}" for answer in odd[:50])
            world.say(
                f"{len(odd)} of {len(problems)} gold answers are neither numbers nor formulas nor "
                f"words to the verifier, so that only the same text is right: {named}"
            )

    def _say_duplicates(self, problems: list[Problem]) -> None:
        """Says how many problems there are more than once, and what became of them."""
        answers = defaultdict(list)  # question -> the gold answers of its problems
        for problem in problems:
            answers[data.same_question(problem)].append(problem.answer)
        copies = len(problems) - len(answers)
        if not copies:
            return
        unlike = sum(len(set(gold)) > 1 for gold in answers.values())
        disputed = f"; questions with several gold answers: {unlike}" if unlike else ""
        self.world.say(
            f"{copies} of {len(problems)} problems are duplicates: each has the question of an "
            f"earlier one, and stays with it in training, validation or test{disputed}"
        )
        asked, found = self.args.validation + self.args.test, len(self.validation) + len(self.test)
        if found < asked:
            self.world.say(f"{found} problems are held out, not {asked}, so that they can stay")

    def parts(self, step: int) -> list[Part]:
        """This rank's part of the step's B problems x G samples; (seed, step) decide which
        problems, and (seed, step, problem, sample) every draw."""
        args = self.args
        numbers = data.batch(len(self.training), args.prompts, args.seed, step)
        numbers = self.world.balance(numbers, lambda number: len(self.training[number].question))
        parts = []
        for slot, samples in self.shares:
            number = numbers[slot]
            parts.append(Part(slot, number, self.training[number], samples))
        return parts

    @staticmethod
    def own(advantages: torch.Tensor, parts: list[Part]) -> list[torch.Tensor]:
        """Advantages (B, G) of all ranks -> those (n,) of this rank's rows of each problem."""
        return [advantages[part.slot, part.samples.start : part.samples.stop] for part in parts]
