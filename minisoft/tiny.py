"""The problems of the embedded model: small stories about counting, as many as one wants.

`problem(seed, i)` is number i of stream `seed`, a pure function of its arguments.  (What the model was pretrained on,
worked solutions among it, is in weights/pretrain.py.)
"""

import random
from dataclasses import dataclass

NAMES = "Mia Tom Ana Ben Lea Sam Eva Max Ida Leo Zoe Jan".split()
OBJECTS = "apples pears plums cards coins beads nails bolts tiles".split()
BOXES = "bags boxes crates jars".split()
LARGEST = 99


@dataclass(frozen=True)
class Step:
    """One change of the count: `sign` + or - with `times` x `size` things, or sign * to multiply by `size`."""

    sign: str
    times: int
    size: int

    def apply(self, count: int) -> int:
        change = self.times * self.size
        return {"+": count + change, "-": count - change, "*": count * self.size}[self.sign]


@dataclass(frozen=True)
class Story:
    name: str
    thing: str
    start: int
    steps: tuple[Step, ...]

    def counts(self) -> list[int]:
        """The count at the start and after every step."""
        counts = [self.start]
        for step in self.steps:
            counts.append(step.apply(counts[-1]))
        return counts


def draw_step(rng: random.Random) -> Step:
    kind = rng.random()
    if kind < .3:
        return Step("+", 1, rng.randint(1, 50))
    if kind < .6:
        return Step("-", 1, rng.randint(1, 50))
    if kind < .85:
        return Step(rng.choice("+-"), rng.randint(2, 9), rng.randint(2, 9))
    return Step("*", 1, rng.choice((2, 2, 3)))


def draw_story(rng: random.Random, steps: int) -> Story:
    """A story whose every count lies between 1 and LARGEST."""
    while True:
        story = Story(rng.choice(NAMES), rng.choice(OBJECTS), rng.randint(3, 90),
                      tuple(draw_step(rng) for _ in range(steps)))
        if all(1 <= count <= LARGEST for count in story.counts()):
            return story


def question(story: Story, rng: random.Random) -> str:
    """The story in words."""
    lines = [f"{story.name} has {story.start} {story.thing}."]
    for step in story.steps:
        box = rng.choice(BOXES)
        lines.append({
            ("+", True): rng.choice((f"{story.name} finds {step.size} more.", f"Then {step.size} more come.")),
            ("-", True): rng.choice((f"{story.name} loses {step.size}.", f"Then {step.size} are sold.")),
            ("+", False): f"{story.name} buys {step.times} {box} of {step.size}.",
            ("-", False): f"{story.name} gives away {step.times} {box} of {step.size}.",
            ("*", True): f"Then the number is {'doubled' if step.size == 2 else 'tripled'}.",
        }[step.sign, step.times == 1])
    return " ".join(lines) + f" How many {story.thing} are there now?"


def problem(seed: int, index: int, steps: tuple[int, int] = (2, 4)) -> tuple[str, str]:
    """(question, answer) number `index` of stream `seed`, with steps[0] to steps[1] changes of the count."""
    rng = random.Random(f"minisoft/{seed}/{index}")
    story = draw_story(rng, rng.randint(*steps))
    return question(story, rng), str(story.counts()[-1])
