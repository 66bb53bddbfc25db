r"""The reward of an answer: 100 if it is right, 10 if it is merely boxed, 0 if not even that (eq. 11, section 3).

A policy is trained against this file, so accepting a wrong answer costs more than refusing an odd spelling of a right
one.  Answers are compared as text, then as exact numbers (nothing rounds), and only then by Math-Verify.  Lists,
tuples, intervals, unions and matrices are taken apart here, so that Math-Verify sees one plain formula at a time; it
runs in a child process that is killed when it hangs or grows.
"""

import atexit
import json
import os
import re
import select
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

from minisoft.data import boxed

MAX_CHARS, MAX_DEPTH = 1000, 20  # a longer or deeper answer is not looked into
STARTUP_S = 120.0  # importing sympy from a cold network disk is slow

# ---- One spelling for what LaTeX spells in many ways: these rules, in this order.
_UNICODE = str.maketrans({"−": "-", "×": r"\times ", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "√": r"\sqrt ",
                          "≤": r"\le ", "≥": r"\ge ", "±": r"\pm ", "°": r"^\circ ", "²": "^2", "³": "^3"})
_SPELLINGS = [(re.compile(pattern, re.ASCII), spelling) for pattern, spelling in [
    (r"(?<!\\)\\(?:left|right|displaystyle)(?![A-Za-z])|\\!\s*", ""),
    (r"\{,\}|(?<=\d)\\,(?=\d{3}(?!\d))", ","),  # 1{,}000 and 1\,000
    (r"(?<!\\)\\(?:[,:; ]|q?quad(?![A-Za-z]))|~|\s+", " "),
    (r"\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf) ?\{", r"\\text{"),
    (r",? ?\\text\{,? ?(?:and|or),? ?\} ?|,? (?:and|or) |;", ","),
    (r"\\\$ ?([\d.,]*\d)", r"\1 dollars"), (r"\\?\$", ""),
    (r" ?\\?%| percent\b|\\text\{ ?percent ?\}", " percent "),
    (r"\^ ?(?:\{ ?\\circ ?\}|\\circ)", " degrees "),
    (r"\\[dtc]frac", r"\\frac"), (r"\*\*", "^"),
    (r"(?<![A-Za-z\\])(sqrt|pi|sin|cos|tan|log|ln)(?![A-Za-z])", r"\\\1"),
    (r"(\\sqrt|\^) ?(?:\(([^()]*)\)|(-?\d+(?:\.\d+)?))", r"\1{\2\3}"),  # sqrt(51), \sqrt13, 2^(n+1), x^10
    (r"\\(frac|sqrt) ?([\dA-Za-z]|\\[a-z]+)", r"\\\1{\2}"),
    (r"(\\frac\{(?:[^{}]|\{[^{}]*\})*\}) ?(\d(?!\d)|[A-Za-z]|\\[a-z]+)", r"\1{\2}"),  # \frac12, \frac{3}4
    (r"(?<![\d.,^_/])(\d+)/(\d+)(?![\d.!^/])", r"\\frac{\1}{\2}"),
]]


def _tidy(text: str) -> str:
    text = text.translate(_UNICODE)
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return text.rstrip(" .,")


def _tight(text: str) -> str:
    """Two texts that look the same on paper, up to the case of words, become equal."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<![A-Za-z]) (?!\d)|(?<!\d) (?![A-Za-z])", "", text).strip()  # "1 2" and "a b" keep their space
    return text.casefold() if re.fullmatch(r"[A-Za-z ]{3,}", text) else text


# ---- The parts of an answer.
def _split(text: str, separator: str) -> list[str] | None:
    """The pieces of `text` between separators outside every bracket; None if the brackets do not balance."""
    pieces, depth, start = [], 0, 0
    for token in re.finditer(rf"(\\?\{{|[(\[])|(\\?\}}|[)\]])|{separator}", text):
        depth += bool(token[1]) - bool(token[2])
        if depth < 0:
            return None
        if depth == 0 and not token[2]:
            pieces.append(text[start: token.start()])
            start = token.end()
    return [*pieces, text[start:]] if depth == 0 else None


def _peel(text: str) -> str:
    r"""Without wrappers around the whole: \boxed{5}, \text{5}, {5}, \{5, 6\}, (5); but (5, 6) is an ordered pair."""
    text = text.strip()
    wrapped = re.fullmatch(r"(?:\\boxed ?|\\text)?\{(.*)\}|\\\{(.*)\\\}|\((.*)\)", text)
    inner = wrapped and wrapped[wrapped.lastindex]
    pieces = inner and _split(inner, ",")
    return text if not pieces or (wrapped[3] and len(pieces) > 1) else _peel(inner)


def _structure(text: str) -> tuple[str, list[str]]:
    """The kind of a compound ("" for a single formula) and its members."""
    if matrix := re.fullmatch(r"\\begin\{[pb]?matrix\}((?:(?!\\begin).)*)\\end\{[pb]?matrix\}", text):
        return "matrix" + "".join(re.findall(r"&|\\\\", matrix[1])), re.split(r"&|\\\\", matrix[1])
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and len(members := _split(text[1:-1], ",") or []) > 1:
        return text[0] + text[-1], members
    if len(members := _split(text, r"\\cup") or []) > 1:
        return "union", members
    members = [member.replace(r"\pm", sign) for member in _split(text, ",") or [text]
               for sign in ("+-" if member.count(r"\pm") == 1 else "+")]
    return ("list" if len(members) > 1 else ""), members


def _letters(text: str) -> set[str]:
    return set(re.findall("[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", text)))


_NAMED = re.compile(r"([A-Za-z]|[A-Z]{2}|[a-z]\([a-z]\)|\([a-z](?:, ?[a-z])+\))(?:_(?:\w|\{[^{}]*\}))? ?"
                    r"(?:=|\\in(?![a-z])) ?([^=]+)")  # x = 5, f(x) = 2x, (x, y) = (1, 2), x \in [0, 1]


def _unnamed(gold: str, answer: str) -> tuple[str, str] | None:
    """Both without the name, for `x = 5` against `5` or `x = 5`; None if there is no name or the names differ."""
    g, a = _NAMED.fullmatch(gold), _NAMED.fullmatch(answer)
    if g and a:
        return (g[2], a[2]) if _tight(g[1]) == _tight(a[1]) else None
    if g and "=" not in answer:
        return g[2], answer
    return (gold, a[2]) if a and not re.search("[=<>]", gold) and not _letters(a[1]) & _letters(gold) else None


_DIGITS = r"(?:(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(rf"""([+-]?)\ ?(?:
    ({_DIGITS})(?:(?:\ ?\\(?:times|cdot)\ ?10\^\{{|e)([+-]?\d{{1,3}})\}}?)? |  # 1,450.00, 6.6 \times 10^{{-34}}
    (?:(\d+)\ ?(?=\\frac\{{\d))?\\frac\{{(-?{_DIGITS})\}}\{{(-?{_DIGITS})\}})  # 2/3, 4 2/3
    """, re.ASCII | re.VERBOSE)


def _number(text: str, literal: bool = False) -> Fraction | None:
    """The exact value of a literal number or, unless `literal`, of a fraction or a mixed number."""
    match = _NUMBER.fullmatch(text)
    if not match or (literal and match[5]):
        return None
    sign, plain, power, whole, *fraction = (group and group.replace(",", "") for group in match.groups())
    if plain:
        return Fraction(sign + plain) * Fraction(10) ** int(power or 0)
    top, bottom = map(Fraction, fraction)
    return Fraction(sign + "1") * (int(whole or 0) + top / bottom) if bottom else None


_SHORT_UNITS = set("mm cm m km in ft yd mi g kg lb s min h hr l ml mph sq".split())
_NO_UNITS = set("nor not is minus plus times point over mod squared cubed hundred thousand million billion trillion "
                "dozen half".split())
_UNIT = re.compile(r"(.*?\S)(?:( ?)([A-Za-z. ]+)| ?\\text\{([A-Za-z. ]+)\}(\^\{[23]\})?|_\{?(\d+)\}?)", re.ASCII)


def _unit(text: str) -> tuple[str, str]:
    r"""`5\text{ miles}^2` -> ("5", "mil^{2}"), `52_8` -> ("52", "8").  Bare words are a unit only after a number."""
    if not (match := _UNIT.fullmatch(text)):
        return text, ""
    value, space, bare, marked, power, base = match.groups()
    words = (bare or marked or "").lower().replace(".", " ").split()
    known = [w in _SHORT_UNITS or (len(w) > 2 and w not in _NO_UNITS and space != "") for w in words]
    if not (all(known) and len(words) <= 3 and (marked or _number(value) is not None) and len(bare or "  ") > 1):
        return text, ""
    return value, base or " ".join(re.sub(r"(?<=..)(es|s|e)$", "", word) for word in words) + (power or "")


_COMMANDS = set("""frac sqrt cdot times div pi alpha beta gamma delta theta lambda mu phi omega sin cos tan cot sec csc
    arcsin arccos arctan log ln exp binom le leq leqslant ge geq geqslant lt gt lfloor rfloor lceil rceil""".split())
_UNCLEAR = re.compile(r"\d ?_|\d \d|\d ?\\frac\{\d+\}\{\d+\}|(?<!\\)\b[A-Za-z]{3,}|^[A-Z]{2,}$", re.ASCII)  # 3 2, words, AB


def _formula(text: str) -> str | None:
    """What the parser may see, with decimals as exact fractions; None for anything but a plain formula."""
    plain = re.fullmatch(r"(?:[\w +\-*/^=<>().{}\[\]|!]|\\[A-Za-z])+", text, re.ASCII)
    if not plain or not set(re.findall(r"\\([A-Za-z]+)", text)) <= _COMMANDS or _UNCLEAR.search(text):
        return None
    return re.sub(r"(\d*)\.(\d+)", lambda m: rf"\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}}", text)


class Verifier:
    """Scores answers, for one thread.  Close it with `close()` or by leaving its `with` block.

    The child starts at the first formula.  An answer is wrong if its formulas together take it longer than `deadline_s`
    (start-up not counted) or if it dies of `memory_bytes`; another child is started at need.  `counts` says what the
    verdicts took: "unboxed", "exact" (text and shape), "numeric", "symbolic", "timed_out", "killed".
    """

    def __init__(self, deadline_s: float = 2.0, memory_bytes: int = 1 << 30):
        self.deadline_s, self.memory_bytes = deadline_s, memory_bytes
        self.counts = Counter()
        self._child = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """End the child, if there is one."""
        if self._child:
            with self._child as child:
                child.kill()
        self._child = None

    def score(self, answer_text: str, gold: str) -> int:
        r"""100, 10 or 0 (eq. 11) for the text after the prefilled `\boxed{`; RuntimeError if Math-Verify is missing."""
        answer = boxed(answer_text)
        self._how, self._left = "exact", self.deadline_s
        if answer is None or not answer.strip() or re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", answer):
            self._how, reward = "unboxed", 0
        elif len(answer) > MAX_CHARS or max(accumulate((c in "([{") - (c in ")]}") for c in answer)) > MAX_DEPTH:
            reward = 100 if answer.strip() == gold.strip() else 10
        else:
            reward = 100 if self._same(_tidy(gold), _tidy(answer)) else 10
        self.counts[self._how] += 1
        return reward

    def _same(self, gold: str, answer: str) -> bool:
        gold, answer = _peel(gold), _peel(answer)
        if _tight(gold) == _tight(answer):
            return True
        if values := _unnamed(gold, answer):
            return self._same(*values)
        (kind, golds), (answer_kind, answers) = _structure(gold), _structure(answer)
        if not kind or _number(_unit(gold)[0]) is not None:  # 1,450,000 is no list
            return self._same_formula(gold, answer)
        if kind != answer_kind or len(golds) != len(answers):
            return False
        if kind not in ("list", "union"):
            return all(map(self._same, golds, answers))
        for member in golds:  # in any order, each once
            match = next((i for i, a in enumerate(answers) if self._same(member, a)), None)
            if match is None:
                return False
            del answers[match]
        return True

    def _same_formula(self, gold: str, answer: str) -> bool:
        """A whole-number gold wants a literal number: whoever answers 6 x 7 has not said 42."""
        (gold, gold_unit), (answer, unit) = _unit(gold), _unit(answer)
        if unit != gold_unit and unit and (gold_unit or unit.isdigit()):
            return False
        literal = _number(gold, literal=True)
        whole = literal is not None and literal.denominator == 1
        expected, found = _number(gold), _number(answer, literal=whole)
        if not whole and None in (expected, found):
            return self._ask(gold, answer)
        self._how = "numeric" if self._how == "exact" else self._how
        if unit == "percent" != gold_unit and not whole:  # 50% is 0.5, and also 50
            found /= 100
        return found == expected or (gold_unit == "percent" != unit and found == expected / 100)

    def _ask(self, gold: str, answer: str) -> bool:
        """Math-Verify's opinion on two formulas, if they are fit for it and time is left."""
        formulas = [_formula(gold), _formula(answer)]
        same_form = gold.count("=") == answer.count("=") <= 1 and _letters(answer) <= _letters(gold)
        if None in formulas or not same_form or self._left <= 0:
            return False
        if self._child is None or self._child.poll() is not None:
            self._start()
        self._how, began = "symbolic", time.monotonic()
        self._child.stdin.write(json.dumps(formulas).encode() + b"\n")
        reply = self._reply(self._left)
        self._left -= time.monotonic() - began
        if not reply:
            self._how, self._left = ("timed_out" if reply is None else "killed"), 0
            self.close()
        return reply == b"true\n"

    def _reply(self, seconds: float) -> bytes | None:
        """A line from the child, b"" if it died, None if it did not answer in time."""
        try:
            ready, _, _ = select.select([self._child.stdout], [], [], seconds)
        except BaseException:  # Ctrl-C in a notebook: a reply left in the pipe would answer the next question
            self.close()
            raise
        return self._child.stdout.readline() if ready else None

    def _start(self):
        self.close()
        folders = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "minisoft.reward", str(self.deadline_s), str(self.memory_bytes)], bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))})
        if (reply := self._reply(STARTUP_S)) != b'"ready"\n':
            self.close()
            raise RuntimeError(f"Math-Verify (pip install math-verify) does not start: {reply or 'no reply'}")


_default = Verifier()
atexit.register(_default.close)


def score(answer_text: str, gold: str) -> int:
    """`Verifier.score`, by one verifier for the whole program."""
    return _default.score(answer_text, gold)


def _serve(deadline_s: float, memory_bytes: int):
    """The child: a line [gold, answer] in, true or false out, until stdin closes.  An alarm ends it if the parent dies
    during a hang."""
    import logging
    import resource
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing else may print between the replies
    try:
        from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse, verify
    except ImportError as error:
        return print(json.dumps(str(error)), file=replies)
    logging.disable()
    as_written = LatexNormalizationConfig(units=False, malformed_operators=False, nits=False, boxed="none")
    config = [LatexExtractionConfig(normalization_config=as_written)]

    def equal(*formulas: str) -> bool:  # the gold first; no timeouts of its own; so many digits that nothing rounds
        gold, answer = (parse(f"${text}$", config, "no_fallback", parsing_timeout=None) for text in formulas)
        return verify(gold, answer, float_rounding=100, numeric_precision=100, timeout_seconds=None)

    equal("x + 1", "1 + x")  # compiles its patterns before the clock runs
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    print('"ready"', file=replies)
    for line in sys.stdin:
        signal.alarm(int(deadline_s) + 2)
        print(json.dumps(equal(*json.loads(line))), file=replies)
        signal.alarm(0)


if __name__ == "__main__":
    _serve(float(sys.argv[1]), int(sys.argv[2]))
