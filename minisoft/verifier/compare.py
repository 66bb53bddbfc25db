"""Is an answer the same as its gold: as text, as exact numbers, or as a formula to Math-Verify?
Nothing rounds; Math-Verify sees one formula or set of numbers at a time, none that could hang it.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from minisoft.verifier import spelling
from minisoft.verifier.spelling import number
from minisoft.verifier.units import is_known, unit


def is_small(text: str) -> bool:
    """A longer or deeper text is not looked into."""
    return len(text) <= 1000 and max(spelling.depths(text)) <= 20


class Comparison:
    """Of an answer with its gold; `ask` decides about formulas, `used_numbers` tells of numbers."""

    def __init__(self, ask: Callable[[str, str], bool]):
        self.ask = ask
        self.used_numbers = False

    def same(self, gold: str, answer: str) -> bool:
        """Whether the content of a box is right."""
        if answer.strip() == gold.strip():
            return True
        return is_small(answer) and self._same(spelling.tidy(gold), spelling.tidy(answer))

    def _same(self, gold: str, answer: str) -> bool:
        gold, answer = spelling.peel(gold), spelling.peel(answer)
        is_set = spelling.SET.fullmatch(spelling.as_set(gold))
        if is_set:
            gold, answer = spelling.as_set(gold), spelling.as_set(answer)
        gold, answer = spelling.unnamed(gold, answer), spelling.unnamed(answer, gold)
        if re.fullmatch("[A-E]", gold) and (option := _OPTION.fullmatch(answer)):
            answer = option[2]
        if spelling.tight(gold) == spelling.tight(answer) or self._same_parts(gold, answer):
            return True
        # one in more pieces than its gold is not simplified
        is_simple = answer.count("∪") <= gold.count("∪") or r"\setminus" in gold
        is_set = is_simple and is_set and spelling.SET.fullmatch(answer)
        return bool(is_set) and may_ask(gold, answer) and self.ask(gold, answer)

    def _same_parts(self, gold: str, answer: str) -> bool:
        (shape, golds), (answer_shape, answers) = spelling.parts(gold), spelling.parts(answer)
        if not shape or number(unit(gold)[0]) is not None:  # 1,450,000 is no list
            return self._same_formula(gold, answer)
        gold_names, names = ([spelling.name(part) for part in some] for some in (golds, answers))
        named = gold_names if shape == "," else names
        is_pair = {shape, answer_shape} == {"()", ","} and "∨" not in gold + answer
        if is_pair and sorted({*named} - {""}) == named:
            shape = answer_shape = "()"  # x=2, y=5 is (2, 5)
        if shape != answer_shape or len(golds) != len(answers):
            return False
        if shape not in (",", "∪") or "..." in gold:
            return all(map(self._same, golds, answers))
        gold_names, names = {*gold_names} - {""}, {*names} - {""}
        if max(len(gold_names), len(names)) > 1 and gold_names != names:
            return False  # x=2, y=5 is not 2, 5
        for member in golds:  # in any order, each once
            match = next((other for other in answers if self._same(member, other)), None)
            if match is None:
                return False
            answers.remove(match)
        return True

    def _same_formula(self, gold: str, answer: str) -> bool:
        (gold, gold_unit), (answer, answer_unit) = unit(gold), unit(answer)
        expected, value = number(gold), number(answer)
        # a whole number wants a literal one: whoever answers 6 x 7 has not said 42
        whole = expected is not None and expected.denominator == 1
        is_percent = answer_unit == "percent" and not gold_unit
        is_other = answer_unit not in ("", gold_unit) and not is_percent
        if is_other and (gold_unit or not is_known(answer_unit)):
            return False
        if expected is None or value is None:
            is_text = not (whole or is_percent)
            return is_text and (gold == answer or may_ask(gold, answer) and self.ask(gold, answer))
        self.used_numbers = True
        if gold_unit == "percent" and not answer_unit:  # 0.1 is 10%
            return value in (expected, expected / 100)
        if not is_percent:
            return value == expected
        # The gold 25 or 12.5 has dropped its sign; 3/2, 1.5 and 0.5 have not: they are 150%, 50%.
        dropped = whole or (abs(expected) > 2 and "frac" not in gold and "/" not in gold)
        return value == (expected if dropped else expected * 100)


# Math-Verify may see formulas and sets, but nothing like 52_8, 3 2, 3\frac{1}{2}, words, AB; and
# infinity only as the open end of an interval.
_FORMULA = re.compile(
    r"(?!.*(?:\d ?_|\d \d|\d ?\\frac\{\d+\}\{\d+\}|(?<!\\)\b[A-Za-z]{3,})|[A-Z]{2,}$"
    r"|.*\\infty ?(?:[^,) ]|$)|.*\[ ?-\\infty)"
    r"(?:[\w +\-*/^=<>().,∪{}\[\]|!]|\\[{}]|\\(?:frac|sqrt|binom|cdot|times|pi|alpha|beta|theta"
    r"|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|exp|[lg]e(?:q|qslant)?|[lr](?:floor|ceil)|infty"
    r"|cap|setminus)(?![A-Za-z]))+",
    re.ASCII,
)
# (B) 12, an option with its text; not with another letter, nor with words: they may deny it.
_OPTION = re.compile(r"(\\text\{)?\(?([A-E])[).:](?!.*(\b[A-E]\b|∨|(?<![\\A-Za-z])[A-Za-z]{3})).+")
_SOLVED = re.compile("[A-Za-z] ?=[^A-Zabcdfghj-z=]*")


def may_ask(gold: str, answer: str) -> bool:
    """Whether two texts are formulas that have the same letters and are fit for Math-Verify."""
    if not (_FORMULA.fullmatch(gold) and _FORMULA.fullmatch(answer)):
        return False
    is_solved = _SOLVED.fullmatch(re.sub(r"\\[A-Za-z]+", "", gold))  # x-5=0 is not x=5
    if is_solved or spelling.letters(gold) != spelling.letters(answer):
        return False
    return gold.count("=") == answer.count("=") <= 1 and not _is_heavy(answer, gold)


# What could make Math-Verify hang.  @ is a digit of a number above 12 not in the gold.
_HEAVY = re.compile(
    r"\^(?:\{[^{}]*[\^!@{]| ?-?@| ?\w ?[\^!])"  # a power or a large number in an exponent
    r"|[)}\]] ?\^.*[)}\]]{2} ?\^"  # the power of a bracket in another
    r"|(?:[!^*@\\][^()]*[)}]|@|!) ?!|! ?\^|(?:\||r(?:floor|ceil)) ?[\^!]"  # of a product: (9*9)!
    r"|@{13}|binom\{(?:[^{}]*\}\{)?[^{}]*[!@({]"
    r"|(?:\\(?:sqrt|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|exp).*){6}"
)


def _is_heavy(text: str, gold: str) -> bool:
    """Whether Math-Verify could hang on a text, as a rule of thumb."""
    text = re.sub(r"\\frac\{(\w+)\}\{(\w+)\}", r"\1/\2", text)
    harmless = {*re.findall(r"\d+", gold), *map(str, range(13))}
    text = re.sub(r"\d+", lambda n: "1" if n[0] in harmless else "@" * len(n[0]), text)
    is_long = len(text) > 2 * len(gold) + 50
    return is_long or max(spelling.depths(text)) > 5 or bool(_HEAVY.search(text))


@lru_cache(10_000)  # many problems have the same gold, a small number
def only_as_text(gold: str) -> bool:
    """Whether only its own text is right: a part is neither a number nor a formula nor words."""
    if not is_small(gold):
        return True
    text = spelling.peel(spelling.tidy(gold))
    if members := spelling.parts(text)[1]:
        return any(map(only_as_text, members))
    value = unit(text)[0]
    is_read = number(value) is not None or _FORMULA.fullmatch(value)
    is_words = re.fullmatch(r"[A-Za-z ,.'-]+|\\text\{[^{}\\]*\}|-? ?\\infty|∅", text)
    return not (is_read or is_words)
