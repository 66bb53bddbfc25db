"""One spelling for what LaTeX spells in many ways, and the parts that an answer is made of."""

import re
from fractions import Fraction
from itertools import accumulate

# Characters and commands that are the same; the first of each group takes the place of all,
# a command with a space behind it.
_SAME = r"""
- − –, \sqrt √, \pi π, \infty ∞, \times ×, \cdot ·, / ÷ div, ± pm, ∪ cup, ∨ vee lor, \mathbb{R} ℝ
∅ emptyset varnothing, < lt, > gt, \le ≤ leq leqslant <=, \ge ≥ geq geqslant >=, \ne ≠ neq, \in ∈
... … dots ldots cdots, ^\circ ° degree, ^2 ², ^3 ³, \frac dfrac tfrac cfrac, \binom dbinom tbinom
\; quad qquad displaystyle, \setminus ∖ smallsetminus backslash, \\ cr, \frac{1}{2} ½, \frac{1}{3} ⅓
\frac{2}{3} ⅔, \frac{1}{4} ¼, \frac{3}{4} ¾, \frac{1}{5} ⅕, \frac{1}{6} ⅙, \frac{1}{8} ⅛, 0 zero
1 one, 2 two, 3 three, 4 four, 5 five, 6 six, 7 seven, 8 eight, 9 nine, 10 ten, 11 eleven, 12 twelve
13 thirteen, 14 fourteen, 15 fifteen, 16 sixteen, 17 seventeen, 18 eighteen, 19 nineteen, 20 twenty
30 thirty, 40 forty, 50 fifty, 60 sixty, 70 seventy, 80 eighty, 90 ninety, \text{euros} €
\text{pounds} £
"""
_GROUPS = [re.sub(r"(\\[a-z]+) ", r"\1_ ", group).split() for group in re.split(", |\n", _SAME)]
_FIRST = {name: group[0].replace("_", " ") for group in _GROUPS for name in group[1:]}
_WORD = "|".join(name for name, first in _FIRST.items() if first.isdigit())


def _as_fraction(match: re.Match) -> str:
    r"""0.1\overline{6} becomes \frac{15}{90}."""
    whole, fixed, period = match.groups()
    top = int(whole + fixed + period) - int(whole + fixed or 0)
    return rf"\frac{{{top}}}{{{'9' * len(period)}{'0' * len(fixed)}}}"


_AMOUNT = r"((?<![\d.,])[\d.,]*\d)"
_RULES = [  # what is respelled, its pattern, what takes its place; in this order
    (r"\leq, ≤", r"\\([A-Za-z]+)|[^\x00-\x7f]|[<>]=", lambda it: _FIRST.get(it[1] or it[0], it[0])),
    # What only marks up leaves a space, so that it joins no digits: $1$8 is not 18.
    ("**18**", r'(?<![^\s$])(\*\*|__|[*`"])(?=\S)([^*`"]*\S)\1(?![\w*])', r" \2 "),
    ("1,000", r"\{,\}|(?<=\d)\\,(?=\d{3}(?!\d))", ","),
    (r"\left(", r"(?<!\\)\\(?:left|right) ?(?=[()\[\]{}|.\\])|\\!\s*", ""),
    (r"\(18\)\,", r"~|\s+|(?<!\\)\\(?:[()\[\],:;> ]|hspace\*?\{[^{}]*\})", " "),
    ("{ 18 }", r"(?<=[{^_]) +| +(?=[{}^_])", ""),
    (r"\mathrm", r"\\(?:text\w*|[mf]box|underline|math(?:rm|bf|it|sf)|boldsymbol)\{", r"\\text{"),
    ("km over h", r"\\frac\{(\\text\{[^{}]*\})\}\{(\\text\{[^{}]*\})\}", r"\1/\2"),
    (r"5\text{ cm.}", r"(?<!\.)\.\}$", "}"),
    ("sq. ft", r"\b(sq|cu)\. ?", r"\1 "),
    ("two", rf"(?i)(?:^|(?<=text\{{))(?:{_WORD})(?= |\}}|$)", lambda it: _FIRST[it[0].lower()]),
    ("9:05 a.m.", r"(?i)(?<=:\d\d) ?(\\text\{ ?)?([ap])\.?m\b\.?(?(1) ?\})", r"\\text{\2meridiem}"),
    (r"11_{\text{2}}", r"_\{\\text\{(\d+)\}\}", r"_{\1}"),
    ("2 or 3", r",? ?\\text\{,? ?or,?\} ?|,? or ", "∨"),
    ("2 and 3; not (2; 3)", r",? ?\\text\{,? ?and,?\} ?|,? and |;(?![^(\[]*[)\]])", ","),
    ("$5", rf"(?:\bUSD|\\text\{{USD\}}|(?:US)?\\\$|US\$) ?{_AMOUNT}", r"\1 dollars"),
    (r"5\$", rf"{_AMOUNT} ?\\\$", r"\1 dollars"),
    ("€5", rf"(\\text\{{(?:euro|pound)s\}}) ?{_AMOUNT}", r"\2\1"),
    ("$x$", r"\\?\$", " "),
    ("5%", r" ?\\?%| ?(\\text\{)?\bp(?:er ?)?c(?:en)?t(?:age)?(?(1)\}|\b)", " percent "),
    ("30°", r"\^(?:\{\\circ ?\}|\\circ)", " degrees "),
    ("30°C", r"(?<=degrees) (\\text\{ ?)?C(elsius)?(?(1) ?\})(?![A-Za-z])", " celsius"),
    ("30°F", r"(?<=degrees) (\\text\{ ?)?F(ahrenheit)?(?(1) ?\})(?![A-Za-z])", " fahrenheit"),
    ("angle", r"(\\(?:sin|cos|tan|cot|sec|csc)[^,]*?)([\d.]+) degrees", r"\1\\frac{\2\\pi}{180}"),
    ("no answer", r"(?i)^(?:\\text\{)?(?:no (?:real )?solutions?|empty set)\}?$|\\\{ ?\\\}", "∅"),
    ("ℝ - {2}", r"(\\mathbb ?\{?R\}?) ?- ?(?=\\\{)", r"\1\\setminus"),
    ("ℝ", r"\\mathbb ?\{?R\}?|(?:\\text\{)?[Aa]ll real(?: number)?s\}?", r"(-\\infty,\\infty)"),
    ("not =", r"\\not ?=", r"\\ne "),
    (r"+\infty", r"(?<![^,([]) ?\+ ?(?=\\infty)", ""),
    (r"2 \over 3", r"(?:\{|^)([^{}]*\S) ?\\over(?![A-Za-z]) ?([^{}]*)(?:\}|$)", r"\\frac{\1}{\2}"),
    ("sqrt(3)", r"(?<![A-Za-z\\])(sqrt|pi|sin|cos|tan|log|ln)(?![A-Za-z])", r"\\\1"),
    (r"\sqrt13, x^10", r"(\\sqrt|\^) ?(?:\(([^()]*)\)|(-?\d+(?:\.\d+)?))", r"\1{\2\3}"),
    (r"\log_2", r"\\log_(\w)", r"\\log_{\1}"),
    (r"\frac12", r"\\(frac|sqrt) ?([\dA-Za-z]|\\[a-z]+)", r"\\\1{\2}"),
    (r"\frac{1}2", r"(\\frac\{(?:[^{}]|\{[^{}]*\})*\}) ?(\d(?!\d)|[A-Za-z]|\\[a-z]+)", r"\1{\2}"),
    (r"x^\frac12", r"\^(\\frac\{[^{}]*\}\{[^{}]*\})", r"^{\1}"),
    ("0.666...", r"(?<![\d,.])(\d*)\.(\d*)\\(?:overline|bar|dot)\{?(\d+)\}?(?!\d)", _as_fraction),
    ("2/3", r"(?<![\d.,^_/])(\d+) ?/ ?(\d+)(?![\d.!^/])", r"\\frac{\1}{\2}"),
    (r"\\[2mm]", r"\\\\ ?\[[^\[\]]*\]", r"\\\\"),
]


def tidy(text: str) -> str:
    """The same text in one spelling."""
    for _, pattern, spelling in _RULES:
        text = re.sub(" {2,}", " ", re.sub(pattern, spelling, text, flags=re.ASCII))
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
    wrapped = re.fullmatch(r"(?:\\boxed ?|\\text)?\{(.*)\}|\\\{([^∅]*)\\\}|\((.*)\)", text)
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
    r"""(shape, members) of a matrix, tuple, list, union; ("", []) of a formula; a \pm b is two."""
    text = text.replace("∨", ",")
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
_NAMED = re.compile(
    rf"(([A-Za-z])(?:_\{{?[\w,]+\}}?)?(?:\([a-z]\))?|\(([a-z](?:, ?[a-z])+)\)){_EQUALS} ?([^=<>]+)"
)


def name(text: str) -> str:
    r"""The name in `x_1 = 5`, `f(x) = 5` or `x \in [0, 5]` without its index, else ""."""
    match = _NAMED.fullmatch(text.strip())
    return re.sub(r"_(?:\w|\{[^{}]*\})", "", match[1]) if match else ""


def unnamed(text: str, other: str) -> str:
    """`x = 5`, `(x, y) = (0, 5)` without a name that the other has too, or if it is no equation."""
    if not (match := _NAMED.fullmatch(text)):
        return text
    name, letter, several, value = match.groups()
    if re.match(re.escape(name) + _EQUALS, other):
        return peel(value)
    symbols = set(letter or several) - {",", " "}
    return text if re.search(_EQUALS, other) or letters(other) & symbols else peel(value)


_SIDE = r"[^()\[\]]+"  # of an interval
SET = re.compile(  # for sure; (1,2) may be a pair
    rf"\[{_SIDE},{_SIDE}[\])]|\({_SIDE},{_SIDE}\]|\( ?-\\infty ?,{_SIDE}\)|\({_SIDE}, ?\\infty ?\)"
    r"|[A-Za-z] ?\\in(?![a-z]).*|.*(?:∪|\\cap|\\setminus).*"
)


def as_set(text: str) -> str:
    r"""`x < 2 ∨ x \ge 3` becomes `x \in (-\infty,2)∪[3,\infty)`; what is no set stays as it is."""
    builder = r"^([A-Za-z])(?: ?\\in ?\(-\\infty,\\infty\))? ?(?:\\mid|[|:])(?=.*\1)"  # {x | x > 2}
    sign, joint = ("∨", "∪") if "∨" in text else (",", r" \cap ")
    pieces = [_letter_and_set(piece.strip()) for piece in split(re.sub(builder, "", text), sign)]
    names = {letter for letter, _ in pieces} - ({""} if sign == "∨" else set())
    if len(names) > 1 or not all(piece for _, piece in pieces) or "" in names:
        return text
    whole = joint.join(piece for _, piece in pieces)
    return rf"{names.pop()} \in {whole}" if names else whole or text


_MIRRORED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def _letter_and_set(text: str) -> tuple[str, str]:
    r"""`2 < x \le 3` is (x, (2,3]), `x \ne 2` is (x, ℝ without 2), [2,3) has no letter."""
    if match := re.fullmatch(r"([A-Za-z]) ?\\(in|ne)(?![a-z]) ?([^=<>]+)", text):
        letter, link, value = match.groups()
        return letter, value if link == "in" else rf"(-\infty,\infty)\setminus\{{{value}\}}"
    chain = re.split(r" ?(<|>|\\[lg]e(?![a-z])) ?", text)
    if len(chain) > 1 and chain[1] in (">", r"\ge"):
        chain = [_MIRRORED.get(link, link) for link in reversed(chain)]
    if len(chain) == 3:
        is_above = re.fullmatch("[A-Za-z]", chain[-1])
        chain = [*chain, "<", r"\infty"] if is_above else [r"-\infty", "<", *chain]
    if len(chain) != 5 or not re.fullmatch("[A-Za-z]", chain[2]) or {">", r"\ge"} & set(chain):
        return "", text if SET.fullmatch(text) else ""
    low, over, letter, under, high = chain
    left, right = "(" if over == "<" else "[", ")" if under == "<" else "]"
    return letter, f"{left}{low},{high}{right}"


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


def letters(text: str) -> set[str]:
    """Those that are not part of a command."""
    return set(re.sub(r"\\[A-Za-z]+|[^A-Za-z]", "", text))


def exact(text: str) -> str:
    """Decimals become fractions, so that nothing rounds; i is the root of -1 if it stands alone."""
    if letters(text) == {"i"}:
        text = re.sub(r"(?<![\\A-Za-z])i", r"\\sqrt{-1}", text)
    text = re.sub(r"\d*\.\d+", lambda decimal: f"({Fraction(decimal[0])})", text)
    return text.replace("∪", r"\cup ")
