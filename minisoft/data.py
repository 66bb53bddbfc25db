"""Problems, the prompt, the answer format, and which problems a step uses (section 4).

Where problems are read from is the business of `minisoft.io.datasets`.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass

from minisoft.errors import InputError

STOP = "The final answer is:"  # a CoT ends as soon as its (shadow) text has this (section 4)
PREFILL_EARLY = r" \boxed{"  # what follows then
PREFILL_LATE = r" The final answer is: \boxed{"  # what follows a spent CoT budget instead
ANSWER_TOKENS = 32  # then come at most so many (section 4)
PAPER_PROMPT = (  # section 4
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first shows the complete reasoning process step by step, then provides the "
    "final answer in \\boxed{}. The assistant must always follow the format: 'User: [question] "
    "Assistant: [detailed reasoning] The final answer is: \\boxed{[answer]}.' "
    "User: QUESTION Assistant:"
)


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str  # the gold answer as it would stand inside \boxed{}


@dataclass(frozen=True)
class Choice:
    """Multiple choice: each option is scored, after a space, as what continues `context`."""

    context: str
    options: tuple[str, ...]
    answer: int  # index of the right option


def load_problems(source) -> list[Problem]:
    """The problems of a file or a named set: see `minisoft.io.datasets.load_problems`."""
    from minisoft.io import datasets  # not before it is needed: the paper reads no files

    return datasets.load_problems(source)


def boxed(text: str) -> str | None:
    r"""What stands before the brace that closes a box whose `\boxed{` has just been written; None
    if none closes it.  Escaped braces \{ \} are text."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[: match.start()]
    return None


class Format:
    """The tokens of the answer format for one tokenizer: how a CoT ends, what is prefilled, how a
    box closes."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        early = tokenizer.encode_after(STOP, PREFILL_EARLY)
        late = tokenizer.encode_after(":", PREFILL_LATE)
        self.prefill = [early, late]  # after the stop phrase; after a spent budget
        # Only a token that brings the last character can complete a phrase; the text itself is
        # then read, so the test is exact however the phrase is tokenised.
        self.may_stop = frozenset(tokenizer.ids_with(STOP[-1]))
        self.may_close = frozenset(tokenizer.ids_with("}"))

    def cot_ends(self, ids: list[int]) -> bool:
        """Does the (shadow) text of the CoT have the stop phrase?  Its last token may go on behind
        it, as ":\\n" does."""
        return ids[-1] in self.may_stop and STOP in self.tokenizer.decode(ids)

    def answer_ends(self, ids: list[int]) -> bool:
        """EOS, or 32 tokens, or the box is closed."""
        if ids[-1] in self.tokenizer.eos_ids or len(ids) == ANSWER_TOKENS:
            return True
        return ids[-1] in self.may_close and boxed(self.tokenizer.decode(ids)) is not None

    def answer_text(self, ids: list[int]) -> str:
        """The text after the prefilled box, without EOS."""
        return self.tokenizer.decode([i for i in ids if i not in self.tokenizer.eos_ids])


def prompt(question: str, template: str = PAPER_PROMPT) -> str:
    """The text before the CoT (section 4): `template` with QUESTION replaced."""
    return template.replace("QUESTION", question)


def split(problems: list[Problem], validation: int) -> tuple[list[Problem], list[Problem]]:
    """(training, validation): `validation` problems held out, the same whatever a run's seed."""
    n = len(problems)
    if not 0 <= validation < n:
        raise InputError(f"validation: expected fewer than the {n} problems, found {validation}")
    order = random.Random("minisoft/validation").sample(range(n), n)
    held_out, training = divide(problems, validation, order)
    return training, held_out


def divide(problems: list[Problem], count: int, order) -> tuple[list[Problem], list[Problem]]:
    """(`count` problems, the others): the first in `order`, an order of their numbers.

    All problems with the same question are on one side.  A question with more of them than there is
    room for is passed over, so there may be fewer than `count`.
    """
    times = Counter(same_question(problems[i]) for i in order)  # in this order
    taken = set()
    for question, copies in times.items():
        if copies <= count:
            taken.add(question)
            count -= copies
    sides = [], []
    for problem in problems:
        sides[same_question(problem) not in taken].append(problem)
    return sides


def same_question(problem: Problem) -> str:
    """What problems with the same question have in common: its words, whatever the white space."""
    return " ".join(problem.question.split())


def batch(count: int, prompts: int, seed: int, step: int) -> list[int]:
    """Which `prompts` of `count` problems a step uses: every epoch is a new permutation."""
    if prompts > count:
        raise InputError(
            f"prompts: expected at most the {count} training problems, found {prompts}"
        )
    epoch, place = divmod(step, count // prompts)
    order = random.Random(f"minisoft/epoch/{seed}/{epoch}").sample(range(count), count)
    return order[place * prompts : (place + 1) * prompts]
