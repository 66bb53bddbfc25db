"""One spelling for what LaTeX spells in many ways, and the parts that an answer is made of."""

import re
from fractions import Fraction
from itertools import accumulate

_CHARACTERS = {
    "−": "-",
    "√": r"\sqrt ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "×": r"\times ",
    "·": r"\cdot ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "°": r"^\circ ",
    "²": "^2",
    "³": "^3",
}
_SPELLINGS = [  # pattern, what takes its place; applied in this order
    (r"(?<!\\)\\(?:left|right|displaystyle)(?![A-Za-z])|\\!\s*", ""),
    (r"\{,\}|(?<=\d)\\,(?=\d{3}(?!\d))", ","),  # 1{,}000 and 1\,000
    (r"(?<!\\)\\(?:[,:; ]|q?quad(?![A-Za-z]))|~|\s+", " "),
    (r"\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf|boldsymbol) ?\{", r"\\text{"),
    (r",? ?\\text\{,? ?(?:and|or),? ?\} ?|,? (?:and|or) |;", ","),
    (r"\\\$ ?([\d.,]*\d)", r"\1 dollars"),
    (r"\\?\$", ""),
    (r" ?\\?%| percent\b|\\text\{ ?percent ?\}", " percent "),
    (r"\^ ?(?:\{ ?\\circ ?\}|\\circ)", " degrees "),
    (r"\\cup(?![A-Za-z])", "∪"),
    (r"\\pm(?![A-Za-z])", "±"),
    (r"(?<![^,([]) ?\+ ?(?=\\infty)", ""),
    (r"\\[dtc]frac", r"\\frac"),
    (r"(?<![A-Za-z\\])(sqrt|pi|sin|cos|tan|log|ln)(?![A-Za-z])", r"\\\1"),
    (r"(\\sqrt|\^) ?(?:\(([^()]*)\)|(-?\d+(?:\.\d+)?))", r"\1{\2\3}"),  # sqrt(51), \sqrt13, x^10
    (r"\\(frac|sqrt) ?([\dA-Za-z]|\\[a-z]+)", r"\\\1{\2}"),  # \frac12: the 1
    (r"(\\frac\{(?:[^{}]|\{[^{}]*\})*\}) ?(\d(?!\d)|[A-Za-z]|\\[a-z]+)", r"\1{\2}"),  # and the 2
    (r"(?<![\d.,^_/])(\d+)/(\d+)(?![\d.!^/])", r"\\frac{\1}{\2}"),
]


def tidy(text: str) -> str:
    """The same text in one spelling."""
    text = text.translate(str.maketrans(_CHARACTERS))
    for pattern, spelling in _SPELLINGS:
        text = re.sub(pattern, spelling, text, flags=re.ASCII)
    return text.rstrip(" .,")


def tight(text: str) -> str:
    """Two texts that look the same on paper, up to the case of words, become equal."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    # "1 2" and "a b" keep their space
    text = re.sub(r"(?<![A-Za-z]) (?!\d)|(?<!\d) (?![A-Za-z])", "", text).strip()
    return text.casefold() if re.fullmatch(r"[A-Za-z ]{3,}", text) else text


_NESTING = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


def depths(text: str) -> list[int]:
    """How many brackets are open before each character of `text`, and at its end."""
    return list(accumulate((_NESTING.get(character, 0) for character in text), initial=0))


def split(text: str, separator: str = ",") -> list[str]:
    """What stands between separators outside every bracket; [] if the brackets do not balance."""
    depth = depths(text)
    if min(depth) < 0 or depth[-1]:
        return []
    cuts = [i for i, character in enumerate(text) if character == separator and depth[i] == 0]
    return [text[i + 1 : j] for i, j in zip([-1, *cuts], [*cuts, len(text)], strict=True)]


def peel(text: str) -> str:
    r"""Without wrappers around the whole: \boxed{5}, \text{5}, {5}, \{5, 6\}, (5); (5, 6) stays."""
    text = text.strip()
    wrapped = re.fullmatch(r"(?:\\boxed ?|\\text)?\{(.*)\}|\\\{(.*)\\\}|\((.*)\)", text)
    if not wrapped:
        return text
    inside, is_round = wrapped[wrapped.lastindex], wrapped.lastindex == 3
    members = split(inside)
    return text if not members or (is_round and len(members) > 1) else peel(inside)


def parts(text: str) -> tuple[str, list[str]]:
    r"""(shape, members) of a matrix, tuple, interval, list or union; ("", []) of a formula.

    A member a \pm b is two.
    """
    if matrix := re.fullmatch(
        r"\\begin\{[pb]?matrix\}((?:(?!\\begin).)*)\\end\{[pb]?matrix\}", text
    ):
        separators = re.findall(r"&|\\\\", matrix[1])
        return "".join(["matrix", *separators]), re.split(r"&|\\\\", matrix[1])
    if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        if len(members := split(text[1:-1])) > 1:
            return text[0] + text[-1], members
    for separator in ",∪":
        members = []
        for member in split(text, separator):
            signs = "+-" if member.count("±") == 1 else "±"
            members += [member.replace("±", sign) for sign in signs]
        if len(members) > 1:
            return separator, members
    return "", []


_EQUALS = r" ?(?:=|\\in(?![a-z]))"
_NAMED = re.compile(rf"(([A-Za-z])(?:\([a-z]\))?|\(([a-z](?:, ?[a-z])+)\)){_EQUALS} ?([^=<>]+)")


def unnamed(text: str, other: str) -> str:
    r"""`x = 5`, `f(x) = 5`, `x \in [0, 5]` or `(x, y) = (0, 5)` without the name.

    Only if the other text has the same name, or none and is no equation.
    """
    if not (match := _NAMED.fullmatch(text)):
        return text
    name, letter, letters, value = match.groups()
    has_the_name = re.match(re.escape(name) + _EQUALS, other)
    symbols = {"=", *(letter or letters)} - {",", " "}
    return peel(value) if has_the_name or not set(other) & symbols else text


_NUMBER = re.compile(
    r"([+-]?) ?(?:((?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"  # 1,450.00
    r"|(\d*) ?\\frac\{(\d+)\}\{([1-9]\d*)\})",  # 2/3, 4 2/3
    re.ASCII,
)


def number(text: str) -> Fraction | None:
    """The exact value of a literal number, a fraction or a mixed number."""
    if not (match := _NUMBER.fullmatch(text)):
        return None
    sign, literal, whole, top, bottom = match.groups()
    if literal:
        value = Fraction(literal.replace(",", ""))
    else:
        value = int(whole or 0) + Fraction(int(top), int(bottom))
    return -value if sign == "-" else value


def as_fractions(text: str) -> str:
    """Decimals become fractions, so that nothing rounds."""
    template = r"\frac{{{0.numerator}}}{{{0.denominator}}}"
    return re.sub(r"\d*\.\d+", lambda decimal: template.format(Fraction(decimal[0])), text)


_SHORT = r"(?:[cmk]m|in|ft|kg)\b"
_NO_UNIT = (
    "nor|not|minus|plus|times|point|over|mod|squared|cubed"
    "|hundred|thousand|million|billion|trillion|dozen|half"
)
_WORDS = rf"(?:(?:{_SHORT}|(?!(?:{_NO_UNIT})\b)[a-z]{{3,}}\b) ?){{1,3}}"
_UNIT = re.compile(
    rf"(.*?\S)(?:(?: ({_WORDS})|(?<=\d)({_SHORT})| ?\\text\{{ ?({_WORDS}|[mghs])\}})(\^\{{[23]\}})?"
    r"|_\{?(\d+)\}?)",
    re.ASCII | re.I,
)


def unit(text: str) -> tuple[str, str]:
    r"""`5\text{ miles}^2` -> ("5", "mil^{2}"), `52_8` -> ("52", "8").

    Bare words are a unit only after a number.
    """
    match = _UNIT.fullmatch(text)
    if not match or ((match[2] or match[3]) and number(match[1]) is None):
        return text, ""
    value, spaced, short, marked, power, base = match.groups()
    words = (spaced or short or marked or "").strip().lower()
    return value, base or re.sub(r"(?<=..)(es|s|e)\b", "", words) + (power or "")
