"""Problems, multiple-choice questions, the prompt, the answer format, and which problems a step uses (section 4).

Where they are read from is the business of `minisoft.io.datasets`.
"""

import random
import re
from dataclasses import dataclass

from minisoft.errors import InputError

STOP = "The final answer is:"  # a CoT ends as soon as its (shadow) text ends with this (section 4)
PREFILL_EARLY = r" \boxed{"  # what follows then
PREFILL_LATE = r" The final answer is: \boxed{"  # what follows when the CoT budget is spent instead
PAPER_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first shows the complete reasoning process step by step, then provides the final answer in \\boxed{}. The "
    "assistant must always follow the format: 'User: [question] Assistant: [detailed reasoning] The final answer is: "
    "\\boxed{[answer]}.' User: QUESTION Assistant:")  # section 4

@dataclass(frozen=True)
class Problem:
    question: str
    answer: str  # the gold answer as it would stand inside \boxed{}


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question: each option is scored, after a space, as the continuation of `context`."""

    context: str
    options: tuple[str, ...]
    answer: int  # index of the right option


def load_problems(source) -> list[Problem]:
    """The problems of a file or a named set: see `minisoft.io.datasets.load_problems`."""
    from minisoft.io import (
        datasets,  # a door: the paper's own files do not read data sets
    )

    return datasets.load_problems(source)


def boxed(text: str) -> str | None:
    r"""What stands before the brace that closes a box whose `\boxed{` has just been written; None if none closes it.
    Escaped braces \{ \} are text."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[: match.start()]
    return None


def prompt(question: str, template: str = PAPER_PROMPT) -> str:
    """The text before the CoT (section 4): `template` with QUESTION replaced."""
    return template.replace("QUESTION", question)


def split(problems: list[Problem], validation: int) -> tuple[list[Problem], list[Problem]]:
    """(training, validation): `validation` problems held out, the same ones whatever the seed of a run."""
    if not 0 <= validation < len(problems):
        raise InputError(f"validation: expected fewer than the {len(problems)} problems at hand, found {validation}")
    order = random.Random("minisoft/validation").sample(range(len(problems)), len(problems))
    return [problems[i] for i in sorted(order[validation:])], [problems[i] for i in sorted(order[:validation])]


def batch(count: int, prompts: int, seed: int, step: int) -> list[int]:
    """Which `prompts` of `count` problems step `step` uses: every epoch is a new permutation; (seed, step) decide."""
    if prompts > count:
        raise InputError(f"prompts: expected at most the {count} training problems, found {prompts}")
    per_epoch = count // prompts
    epoch, position = divmod(step, per_epoch)
    order = random.Random(f"minisoft/epoch/{seed}/{epoch}").sample(range(count), count)
    return order[position * prompts: (position + 1) * prompts]
