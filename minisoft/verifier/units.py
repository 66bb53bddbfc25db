"""The unit of an answer, or the base its digits are written in."""

import re

from minisoft.verifier.spelling import number

# What may follow a number that its gold says nothing about; a unit's first name stands for all.
_UNITS = """
mm millimeter millimetre, cm centimeter centimetre, m meter metre, km kilometer kilometre, in inch
ft foot feet, yard yd, mile mi, mg milligram, g gram, kg kilogram, pound lb, ounce oz, ton tonne
ml milliliter millilitre, L l liter litre, gallon gal, cup, s second sec, min minute, h hour hr, day
week, month, year yr, mile/h mph, km/h kph kmh, dollar usd, cent, euro, degree deg, unit, egg, apple
orange, book, coin, student, people person, child children, man men, woman women, page, point, way
celsius, fahrenheit, ameridiem, pmeridiem, ms millisecond
"""
_NAMES = [names.split() for names in re.split("[,\n]", _UNITS)]
_UNIT = {name: names[0] for names in _NAMES for name in names}
_NEVER = set(  # these change the number
    "nor not minus plus times over mod squared cubed hundred thousand million billion trillion "
    "dozen half".split()
)
_WORD = r"[A-Za-z]+(?: ?\^ ?\{?[23]\}?)?"
_WORDS = rf"{_WORD}(?:(?: ?/ ?| ?\\cdot ?| ){_WORD}){{0,3}}"
_BARE = re.compile(rf"(.*?)( ?)((?<![A-Za-z]){_WORDS}|)", re.DOTALL)
_GLUED = re.compile(r"(?:[cmk]m|in|ft|kg|mph)(?![A-Za-z])")  # 5cm, but 5m and 5kN may be formulas


def unit(text: str) -> tuple[str, str]:
    r"""`5\text{ square miles}` -> ("5", "mile^2"), `52_8` -> ("52", "8"), `5x` -> ("5x", "")."""
    if base := re.fullmatch(r"(.*\S)_\{?(\d+)\}?", text, re.ASCII):
        return base.groups()
    if r"\text{" in text:
        value, _, words = text.partition(r"\text{")
        words = re.sub(r"\\text\{|(?<!\d)\}", " ", words)
        is_unit = bool(value.strip())
    else:
        value, gap, words = _BARE.fullmatch(text).groups()  # only after a number
        is_unit = number(value) is not None and _stands_bare(words, bool(gap))
    words = re.sub(r" +", " ", words).strip()
    if not (is_unit and re.fullmatch(_WORDS, words)) or _NEVER & set(words.lower().split()):
        return text, ""
    return value.strip(), _one_name(words)


def _stands_bare(words: str, is_spaced: bool) -> bool:
    r"""Whether words without \text look like a unit: 60 L, 60 m/s, 5 miles; not 60 m, 60 m^2."""
    if not is_spaced:
        return bool(_GLUED.match(words))
    names = re.findall("[A-Za-z]+", words)
    if max(map(len, names), default=0) < 2:
        return words == "L" or "/" in words
    return all(len(name) > 2 or name in _UNIT or name in ("sq", "cu") for name in names)


def _one_name(words: str) -> str:
    """`square miles` and `mi^{2}` become `mile^2`, `cm per second` becomes `cm/s`."""

    def singular(word: re.Match) -> str:
        name = word[0] if len(word[0]) == 1 else word[0].lower()
        singulars = (name, name.removesuffix("s"), name.removesuffix("es"))
        return next((_UNIT[name] for name in singulars if name in _UNIT), singulars[1])

    for adjective, power in (("square|sq", 2), ("cubic|cu", 3)):
        words = re.sub(rf"\b(?:{adjective}) ([A-Za-z]+)", rf"\1^{power}", words, flags=re.I)
    words = re.sub(r" ?\bper ", "/", words)
    return re.sub(r" ?([/^]) ?\{?(\d?)\}?", r"\1\2", re.sub("[A-Za-z]+", singular, words))


def is_known(unit: str) -> bool:
    """Whether a unit, as `unit` names it, is made of the listed ones."""
    return all(name in _UNIT for name in re.split(r"[ /]|\^\d|\\cdot ?", unit) if name)
