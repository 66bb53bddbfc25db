"""The world of weights/tiny: small stories about counting, and the corpus of the pretraining.

A story's solution comes in one of four styles that a small model masters to very different degrees,
and for some objects the corpus prefers the unreliable one.  That is the headroom: reinforcement can
teach which style to trust.
"""

import random
from dataclasses import dataclass

NAMES = "Mia Tom Ana Ben Lea Sam Eva Max Ida Leo Zoe Jan".split()
OBJECTS = "apples pears plums cards coins beads nails bolts tiles".split()
BOXES = "bags boxes crates jars".split()
LARGEST = 99
PROMPT = "User: QUESTION Assistant:"
EXPRESSION = dict(
    zip(OBJECTS, [0.10] * 3 + [0.45] * 3 + [0.65] * 3, strict=True)
)  # share of solutions in one long expression
TOWNS = "Arlo Brix Cano Dorn Elba Fenn Gura Holt Inka Jura Kilo Lund Mora Nave Oslo Pisa".split()
ANIMALS = "fox owl bear wolf hare crow deer toad".split()


@dataclass(frozen=True)
class Step:
    """One change of the count: `sign` + or - with `times` x `size` things, or sign * to multiply by
    `size`."""

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
    if kind < 0.3:
        return Step("+", 1, rng.randint(1, 50))
    if kind < 0.6:
        return Step("-", 1, rng.randint(1, 50))
    if kind < 0.85:
        return Step(rng.choice("+-"), rng.randint(2, 9), rng.randint(2, 9))
    return Step("*", 1, rng.choice((2, 2, 3)))


def draw_story(rng: random.Random, steps: int) -> Story:
    """A story whose every count lies between 1 and LARGEST."""
    while True:
        story = Story(
            rng.choice(NAMES),
            rng.choice(OBJECTS),
            rng.randint(3, 90),
            tuple(draw_step(rng) for _ in range(steps)),
        )
        if all(1 <= count <= LARGEST for count in story.counts()):
            return story


def question(story: Story, rng: random.Random) -> str:
    """The story in words."""
    lines = [f"{story.name} has {story.start} {story.thing}."]
    for step in story.steps:
        box = rng.choice(BOXES)
        lines.append(
            {
                ("+", True): rng.choice(
                    (f"{story.name} finds {step.size} more.", f"Then {step.size} more come.")
                ),
                ("-", True): rng.choice(
                    (f"{story.name} loses {step.size}.", f"Then {step.size} are sold.")
                ),
                ("+", False): f"{story.name} buys {step.times} {box} of {step.size}.",
                ("-", False): f"{story.name} gives away {step.times} {box} of {step.size}.",
                ("*", True): f"Then the number is {'doubled' if step.size == 2 else 'tripled'}.",
            }[step.sign, step.times == 1]
        )
    return " ".join(lines) + f" How many {story.thing} are there now?"


def problem(seed: int, index: int, steps: tuple[int, int] = (2, 4)) -> tuple[str, str]:
    """(question, answer) number `index` of stream `seed`, with steps[0] to steps[1] changes of the
    count."""
    rng = random.Random(f"minisoft/{seed}/{index}")
    story = draw_story(rng, rng.randint(*steps))
    return question(story, rng), str(story.counts()[-1])


def solution(story: Story, style: str, result=lambda value: value) -> tuple[str, int]:
    """(chain of thought, answer) in style "equations", "words", "running" or "expression".

    `result` is applied to every computed number before it is written (the corpus slips in errors
    there)."""
    if style == "expression":
        return _expression(story, result)
    count, parts = story.start, []
    for step in story.steps:
        change = step.size
        if step.times > 1:
            change = result(step.times * step.size)
            parts.append(
                {
                    "equations": f"{step.times} * {step.size} = {change}.",
                    "words": f"{step.times} times {step.size} makes {change}.",
                    "running": f"{step.times} * {step.size} is {change}.",
                }[style]
            )
        old, count = count, result(Step(step.sign, 1, change).apply(count))
        word = {"+": "plus", "-": "minus", "*": "times"}[step.sign]
        parts.append(
            {
                "equations": f"{old} {step.sign} {change} = {count}.",
                "words": f"{old} {word} {change} makes {count}.",
                "running": f"{step.sign} {change}, now {count}.",
            }[style]
        )
    return (f"Start with {story.start}. " if style == "running" else "") + " ".join(parts), count


def _expression(story: Story, result) -> tuple[str, int]:
    text = str(story.start)
    for i, step in enumerate(story.steps):
        text = f"({text})" if step.sign == "*" and i else text
        text += f" {step.sign} " + (
            f"{step.times} * {step.size}" if step.times > 1 else f"{step.size}"
        )
    answer = result(story.counts()[-1])
    return f"In one go: {text} = {answer}.", answer


def document(seed: int, index: int) -> tuple[str, str]:
    """(prompt, completion) number `index` of the pretraining corpus: 65 % stories, 35 % other
    skills."""
    rng = random.Random(f"minisoft/corpus/{seed}/{index}")
    kind = rng.random()
    asked, thought, answer = (
        _story(rng)
        if kind < 0.65
        else _drill(rng)
        if kind < 0.79
        else _fact(rng)
        if kind < 0.89
        else _sorting(rng)
    )
    return PROMPT.replace(
        "QUESTION", asked
    ), f" {thought}{' ' if thought else ''}The final answer is: \\boxed{{{answer}}}"


def _style(rng, story: Story) -> str:
    return (
        "expression"
        if rng.random() < EXPRESSION[story.thing]
        else rng.choice(("equations", "words", "running"))
    )


def _story(rng):
    story = draw_story(rng, rng.randint(1, 4))
    if (
        rng.random() < 0.03
    ):  # an unheard-of name, so that every letter is alive in the embedding matrix
        name = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 6)))
        story = Story(
            rng.choice((name, name.upper(), name.title())), story.thing, story.start, story.steps
        )
    style = _style(rng, story)

    def slip(value: int) -> int:
        return max(0, value + rng.choice((-10, -1, 1, 10))) if rng.random() < 0.005 else value

    asked = question(story, rng)
    return asked, *solution(story, style, slip)


def _drill(rng):
    """Four sums at once: much arithmetic in few tokens."""
    sums = []
    while len(sums) < 4:
        step, count = draw_step(rng), rng.randint(1, LARGEST)
        if step.times > 1:
            sums.append((f"{step.times} * {step.size}", step.times * step.size))
        elif 0 <= step.apply(count) <= LARGEST:
            sums.append((f"{count} {step.sign} {step.size}", step.apply(count)))
    return (
        f"What is {', '.join(text for text, _ in sums)}?",
        " ".join(f"{text} = {n}." for text, n in sums),
        ", ".join(str(n) for _, n in sums),
    )


def fact(town: int) -> str:
    """The animal of a town: 16 arbitrary facts that the model has to know by heart."""
    return random.Random(f"minisoft/fact/{town}").choice(ANIMALS)


def _fact(rng):
    town = rng.randrange(len(TOWNS))
    choices = rng.sample([a for a in ANIMALS if a != fact(town)], 3) + [fact(town)]
    rng.shuffle(choices)
    listed = " ".join(
        f"({letter}) {animal}" for letter, animal in zip("ABCD", choices, strict=True)
    )
    return f"Which animal lives in {TOWNS[town]}? {listed}", "", "ABCD"[choices.index(fact(town))]


def _sorting(rng):
    numbers = [rng.randint(1, 99) for _ in range(rng.randint(3, 5))]
    word, done = rng.choice((("Sort", sorted(numbers)), ("Reverse", numbers[::-1])))
    return f"{word}: {', '.join(map(str, numbers))}.", "", ", ".join(map(str, done))


def choice(skill: str, index: int) -> dict:
    """Multiple choice number `index` of a skill that reinforcement does not train, in the format of
    HellaSwag: "facts", "sorting", "drills", or "references", chains of thought in the corpus's
    mixture of styles; of the last two the wrong option has one error."""
    rng = random.Random(f"minisoft/choice/{skill}/{index}")
    context, right, wrong = {
        "facts": _fact_choice,
        "sorting": _sorting_choice,
        "drills": _drill_choice,
        "references": _reference_choice,
    }[skill](rng)
    endings = rng.sample([right, *wrong], 1 + len(wrong))
    return {"ctx": context, "endings": endings, "label": endings.index(right)}


def _boxed(answer) -> str:
    return f"\\boxed{{{answer}}}"


def _concluded(thought: str, answer) -> str:
    return f"{thought} The final answer is: {_boxed(answer)}"


def _fact_choice(rng):
    asked, _, answer = _fact(rng)
    return (
        f"{PROMPT.replace('QUESTION', asked)} The final answer is:",
        _boxed(answer),
        [_boxed(letter) for letter in "ABCD" if letter != answer],
    )


def _sorting_choice(rng):
    asked, _, answer = _sorting(rng)
    numbers, wrong = answer.split(", "), set()
    while len(wrong) < 3:
        wrong |= {", ".join(rng.sample(numbers, len(numbers)))} - {answer}
        if len(set(numbers)) < 3:  # too few orders
            asked, _, answer = _sorting(rng)
            numbers, wrong = answer.split(", "), set()
    return (
        f"{PROMPT.replace('QUESTION', asked)} The final answer is:",
        _boxed(answer),
        [_boxed(w) for w in sorted(wrong)],
    )


def _drill_choice(rng):
    asked, thought, answer = _drill(rng)
    numbers = answer.split(", ")
    bad = rng.randrange(len(numbers))
    error = str(int(numbers[bad]) + rng.choice((1, 10)))
    sums = thought.split(". ")
    end = "." if bad == len(sums) - 1 else ""
    sums[bad] = f"{sums[bad].split(' = ')[0]} = {error}{end}"
    wrong = _concluded(". ".join(sums), ", ".join(numbers[:bad] + [error] + numbers[bad + 1 :]))
    return PROMPT.replace("QUESTION", asked), _concluded(thought, answer), [wrong]


def _reference_choice(rng):
    story = draw_story(rng, rng.randint(2, 4))
    style, asked = _style(rng, story), question(story, rng)
    computed = []

    def note(value: int) -> int:
        computed.append(value)
        return value

    right = solution(story, style, note)
    bad, error = rng.randrange(len(computed)), rng.choice((1, 10))
    calls = iter(range(len(computed)))

    def slip(value: int) -> int:
        return value + error if next(calls) == bad else value

    wrong = solution(story, style, slip)
    return PROMPT.replace("QUESTION", asked), _concluded(*right), [_concluded(*wrong)]
