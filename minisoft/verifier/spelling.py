"""One spelling for what LaTeX spells in many ways, and the parts that an answer is made of."""

import re
from fractions import Fraction
from itertools import accumulate

_CHARACTERS = {
    "−": "-",
    "–": "-",
    "√": r"\sqrt ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "×": r"\times ",
    "·": r"\cdot ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "°": r"^\circ ",
    "²": "^2",
    "³": "^3",
    "∈": r"\in ",
    "…": "...",
}
_CHARACTERS |= {one: rf"\frac{{1}}{{{n}}}" for one, n in zip("½⅓¼⅕⅙⅛", "234568", strict=True)}
_CHARACTERS |= {"⅔": r"\frac{2}{3}", "¾": r"\frac{3}{4}"}
_AMOUNT = r"((?<![\d.,])[\d.,]*\d)"
_SPELLINGS = [  # pattern, what takes its place; applied in this order
    # What only marks up leaves a space, so that it joins no digits: $1$8 is not 18.
    (r"(?<![^\s$])(\*\*|__|[*`])(?=\S)([^*`]*\S)\1(?![\w*])", r" \2 "),  # Markdown's **18**
    (r"(?<!\\)\\[()\[\]]", " "),
    (r"(?<!\\)\\(?:left|right) ?(?=[()\[\]{}|.\\])|\\!\s*", ""),
    (r"\{,\}|(?<=\d)\\,(?=\d{3}(?!\d))", ","),  # 1{,}000 and 1\,000
    (r"(?<!\\)\\(?:[,:;> ]|(?:q?quad|displaystyle)(?![A-Za-z])|hspace\*?\{[^{}]*\})", " "),
    (r"~|\s+", " "),
    (r"\\(?:text(?:bf|it|rm|normal)?|mbox|math(?:rm|bf|it|sf)|boldsymbol) ?\{", r"\\text{"),
    (r"\\frac ?\{(\\text\{[^{}]*\})\} ?\{(\\text\{[^{}]*\})\}", r"\1/\2"),  # km over h
    (r"(?<!\.)\.\}$", "}"),  # 5\text{ cm.}
    (r"_ ?\{ ?\\text\{ ?(\d+) ?\} ?\}", r"_{\1}"),
    (r",? ?\\text\{,? ?(?:and|or),? ?\} ?|,? (?:and|or) |;(?![^(\[]*[)\]])", ","),  # not in (1;2)
    (rf"(?:\bUSD|\\text\{{ ?USD ?\}}|(?:US)?\\\$|US\$) ?{_AMOUNT}", r"\1 dollars"),
    (rf"{_AMOUNT} ?(?:\\\$|USD\b|\\text\{{ ?USD ?\}})", r"\1 dollars"),
    (rf"€ ?{_AMOUNT}|{_AMOUNT} ?€", r"\1\2 euros"),
    (rf"£ ?{_AMOUNT}", r"\1 pounds"),
    (r"\\?\$", " "),
    (r" ?\\?%| per ?cent\b|\\text\{ ?per ?cent ?\}", " percent "),
    (r"\^ ?(?:\{ ?\\circ ?\}|\\circ)", " degrees "),
    (r"\\cup(?![A-Za-z])", "∪"),
    (r"\\pm(?![A-Za-z])", "±"),
    (r"\\[lc]?dots(?![A-Za-z])", "..."),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"<=|\\leq(?:slant)?(?![A-Za-z])", r"\\le "),
    (r">=|\\geq(?:slant)?(?![A-Za-z])", r"\\ge "),
    (r"\\neq(?![A-Za-z])|\\not ?=", r"\\ne "),
    (r"(?<![^,([]) ?\+ ?(?=\\infty)", ""),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\{ ?([^{}]*\S) ?\\over(?![A-Za-z]) ?([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"(?<![A-Za-z\\])(sqrt|pi|sin|cos|tan|log|ln)(?![A-Za-z])", r"\\\1"),
    (r"(\\sqrt|\^) ?(?:\(([^()]*)\)|(-?\d+(?:\.\d+)?))", r"\1{\2\3}"),  # sqrt(51), \sqrt13, x^10
    (r"\\log ?_ ?(\w)", r"\\log_{\1}"),
    (r"(\\log ?_ ?\{\w+\}) ?(?:\{(\w+)\}|(\d+|[A-Za-z]))(?! ?[\w^(!{\\]|[.,]\d)", r"\1(\2\3)"),
    (r"\\(frac|sqrt) ?([\dA-Za-z]|\\[a-z]+)", r"\\\1{\2}"),  # \frac12: the 1
    (r"(\\frac\{(?:[^{}]|\{[^{}]*\})*\}) ?(\d(?!\d)|[A-Za-z]|\\[a-z]+)", r"\1{\2}"),  # and the 2
    (r"(?<![\d.,^_/])(\d+)/(\d+)(?![\d.!^/])", r"\\frac{\1}{\2}"),
    (r"\\cr(?![A-Za-z])|\\\\ ?\[[^\[\]]*\]", r"\\\\"),  # the end of a matrix' row
    (r" {2,}", " "),
]


def tidy(text: str) -> str:
    """The same text in one spelling."""
    text = text.translate(str.maketrans(_CHARACTERS))
    for pattern, spelling in _SPELLINGS:
        text = re.sub(pattern, spelling, text, flags=re.ASCII)
    text = text.strip()
    return text if text.endswith("..") else text.rstrip(" .,")  # "6, ..." goes on


# Words whose case means nothing; but ABC is not abc, nor Ab ab.
_WORDS = re.compile(r"(?=.{3})[A-Za-z][a-z]+(?: [A-Za-z][a-z]+)*|[Nn]o|YES|NO|TRUE|FALSE")


def tight(text: str) -> str:
    """Two texts that look the same on paper, up to the case of words, become equal."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    # "1 2" and "a b" keep their space
    text = re.sub(r"(?<![A-Za-z]) +(?! *\d)|(?<!\d) +(?! *[A-Za-z])", "", text).strip()
    return text.casefold() if _WORDS.fullmatch(text) else text


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


_MATRIX = re.compile(  # with or without an empty last row
    r"\[? ?\\begin\{(?:[pb]?matrix|array\} ?\{[clr| ]*)\}((?:(?!\\begin).)*?)(?:\\\\)? ?"
    r"\\end\{(?:[pb]?matrix|array)\} ?\]?"
)


def parts(text: str) -> tuple[str, list[str]]:
    r"""(shape, members) of a matrix, tuple, interval, list or union; ("", []) of a formula.

    A member a \pm b is two.
    """
    if matrix := _MATRIX.fullmatch(text):
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


def name(text: str) -> str:
    r"""The name in `x = 5`, `f(x) = 5` or `x \in [0, 5]`, else ""."""
    match = _NAMED.fullmatch(text.strip())
    return match[1] if match else ""


def unnamed(text: str, other: str) -> str:
    r"""`x = 5`, `f(x) = 5`, `x \in [0, 5]` or `(x, y) = (0, 5)` without the name.

    Only if the other text has the same name, or none and is no equation.
    """
    if not (match := _NAMED.fullmatch(text)):
        return text
    name, letter, letters, value = match.groups()
    if re.match(re.escape(name) + _EQUALS, other):
        return peel(value)
    symbols = set(letter or letters) - {",", " "}
    return text if re.search(_EQUALS, other) or set(other) & symbols else peel(value)


_MIRRORED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def as_interval(text: str) -> str:
    r"""`2 < x \le 3` becomes `x \in (2,3]`, `x \ge 2` becomes `x \in [2,\infty)`."""
    chain = re.split(r" ?(<|>|\\[lg]e(?![a-z])) ?", text)
    if len(chain) > 1 and chain[1] in (">", r"\ge"):
        chain = [_MIRRORED.get(link, link) for link in reversed(chain)]
    if re.fullmatch("[A-Za-z]", chain[0]):
        chain = [r"-\infty", "<", *chain]
    if re.fullmatch("[A-Za-z]", chain[-1]):
        chain = [*chain, "<", r"\infty"]
    if len(chain) != 5 or not re.fullmatch("[A-Za-z]", chain[2]) or {">", r"\ge"} & set(chain):
        return text
    low, over, letter, under, high = chain
    left, right = "(" if over == "<" else "[", ")" if under == "<" else "]"
    return rf"{letter} \in {left}{low},{high}{right}"


_LITERAL = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"  # 1,450.00
_EXPONENT = r"[+-]?\d{1,3}"
_NUMBER = re.compile(
    rf"([+-]?) ?(?:({_LITERAL})(?:[eE]({_EXPONENT}))?"  # 1450, 1.45e3
    rf"|(?:({_LITERAL}) ?(?:\\times|\\cdot|\*) ?)?10 ?\^\{{({_EXPONENT})\}}"  # 1.45 \times 10^3
    r"|(\d*) ?\\frac\{([+-]?\d+)\}\{([+-]?0*[1-9]\d*)\})",  # 2/3, 4 2/3
    re.ASCII,
)


def number(text: str) -> Fraction | None:
    """The exact value of a literal number, a power of ten, a fraction or a mixed number."""
    if not (match := _NUMBER.fullmatch(text)):
        return None
    sign, literal, exponent, factor, power, whole, top, bottom = match.groups()
    if top is None:
        value = Fraction((literal or factor or "1").replace(",", ""))
        value *= Fraction(10) ** int(exponent or power or 0)
    elif whole and not (top + bottom).isdigit():
        return None
    else:
        value = int(whole or 0) + Fraction(int(top), int(bottom))
    return -value if sign == "-" else value


def as_fractions(text: str) -> str:
    """Decimals become fractions, so that nothing rounds."""
    template = r"\frac{{{0.numerator}}}{{{0.denominator}}}"
    return re.sub(r"\d*\.\d+", lambda decimal: template.format(Fraction(decimal[0])), text)
