r"""The reward of an answer: 100 if it is right, 10 if it is merely boxed, 0 if not even that (eq. 11, section 3).

A policy is trained against this file, so accepting a wrong answer costs more than refusing an odd spelling of a right
one.  Answers are compared as text, then as exact numbers (nothing rounds), and only then by Math-Verify, which sees one
plain formula at a time, never a list, tuple or interval, in a child process that is killed when it hangs or grows.
"""

import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager
from fractions import Fraction
from itertools import accumulate

from minisoft.data import boxed

MAX_CHARS, MAX_DEPTH = 1000, 20  # a longer or deeper answer is not looked into
STARTUP_S = 120.0  # importing sympy from a cold network disk is slow

# One spelling for what LaTeX spells in many ways: these rules, in this order.
_SPELLINGS = [(re.compile(pattern, re.ASCII), spelling) for pattern, spelling in [
    ("−", "-"), ("√", r"\\sqrt "), (r"(?<!\\)\\(?:left|right|displaystyle)(?![A-Za-z])|\\!\s*", ""),
    (r"\{,\}|(?<=\d)\\,(?=\d{3}(?!\d))", ","),  # 1{,}000 and 1\,000
    (r"(?<!\\)\\(?:[,:; ]|q?quad(?![A-Za-z]))|~|\s+", " "),
    (r"\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf) ?\{", r"\\text{"),
    (r",? ?\\text\{,? ?(?:and|or),? ?\} ?|,? (?:and|or) |;", ","),
    (r"\\\$ ?([\d.,]*\d)", r"\1 dollars"), (r"\\?\$", ""),
    (r" ?\\?%| percent\b|\\text\{ ?percent ?\}", " percent "), (r"\^ ?(?:\{ ?\\circ ?\}|\\circ)|°", " degrees "),
    (r"\\[dtc]frac", r"\\frac"), (r"(?<![A-Za-z\\])(sqrt|pi|sin|cos|tan|log|ln)(?![A-Za-z])", r"\\\1"),
    (r"(\\sqrt|\^) ?(?:\(([^()]*)\)|(-?\d+(?:\.\d+)?))", r"\1{\2\3}"),  # sqrt(51), \sqrt13, 2^(n+1), x^10
    (r"\\(frac|sqrt) ?([\dA-Za-z]|\\[a-z]+)", r"\\\1{\2}"),
    (r"(\\frac\{(?:[^{}]|\{[^{}]*\})*\}) ?(\d(?!\d)|[A-Za-z]|\\[a-z]+)", r"\1{\2}"),  # \frac12, \frac{3}4
    (r"(?<![\d.,^_/])(\d+)/(\d+)(?![\d.!^/])", r"\\frac{\1}{\2}"),
]]


def _tidy(text: str) -> str:
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return text.rstrip(" .,")


def _tight(text: str) -> str:
    """Two texts that look the same on paper, up to the case of words, become equal."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<![A-Za-z]) (?!\d)|(?<!\d) (?![A-Za-z])", "", text).strip()  # "1 2" and "a b" keep their space
    return text.casefold() if re.fullmatch(r"[A-Za-z ]{3,}", text) else text


def _split(text: str) -> list[str]:
    """The pieces of `text` between commas outside every bracket; none if the brackets do not balance."""
    depths = list(accumulate(((c in "([{") - (c in ")]}") for c in text), initial=0))
    if min(depths) < 0 or depths[-1]:
        return []
    return "".join("\n" if c == "," and depth == 0 else c for c, depth in zip(text, depths)).split("\n")


def _peel(text: str) -> str:
    r"""Without wrappers around the whole: \boxed{5}, \text{5}, {5}, \{5, 6\}, (5); but (5, 6) is an ordered pair."""
    text = text.strip()
    wrapped = re.fullmatch(r"(?:\\boxed ?|\\text)?\{(.*)\}|\\\{(.*)\\\}|\((.*)\)", text)
    pieces = _split(wrapped[wrapped.lastindex]) if wrapped else []
    return text if not pieces or (wrapped[3] and len(pieces) > 1) else _peel(wrapped[wrapped.lastindex])


def _unnamed(text: str, other: str) -> str:
    """`x = 5` or `f(x) = 5` without the name, if the other text has the same name, or none and is no equation."""
    named = re.fullmatch(r"([A-Za-z](?:\([a-z]\))?) ?= ?([^=<>]+)", text)
    if named and (other.replace(" ", "").startswith(named[1] + "=") or not set(other) & {"=", named[1][0]}):
        return _peel(named[2])
    return text


_NUMBER = re.compile(r"([+-]?) ?(?:((?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)|"  # 1,450.00
                     r"(\d*) ?\\frac\{(\d+)\}\{([1-9]\d*)\})", re.ASCII)  # 2/3, 4 2/3


def _number(text: str) -> Fraction | None:
    """The exact value of a literal number, a fraction or a mixed number."""
    if match := _NUMBER.fullmatch(text):
        sign, literal, whole, top, bottom = match.groups()
        value = Fraction(literal.replace(",", "")) if literal else int(whole or 0) + Fraction(int(top), int(bottom))
        return -value if sign == "-" else value
    return None


_WORDS = (r"((?:(?:[cmk]m|in|ft|kg|(?!(?:nor|not|minus|plus|times|point|over|mod|squared|cubed|hundred|thousand|million"
          r"|billion|trillion|dozen|half)\b)[a-z]{3,})\b ?){1,3})")
_UNIT = re.compile(rf"(.*?\S)(?: {_WORDS}| ?\\text\{{ ?{_WORDS}\}}(\^\{{[23]\}})?|_\{{?(\d+)\}}?)", re.ASCII | re.I)


def _unit(text: str) -> tuple[str, str]:
    r"""`5\text{ miles}^2` -> ("5", "mil^{2}"), `52_8` -> ("52", "8").  Bare words are a unit only after a number."""
    match = _UNIT.fullmatch(text)
    if not match or (match[2] and _number(match[1]) is None):
        return text, ""
    value, bare, marked, power, base = match.groups()
    return value, base or re.sub(r"(?<=..)(es|s|e)\b", "", (bare or marked).strip().lower()) + (power or "")


# What Math-Verify may see: plain formulas, and of them nothing like 52_8, 3 2, 3\frac{1}{2}, words, AB.
_FORMULA = re.compile(r"(?!.*(?:\d ?_|\d \d|\d ?\\frac\{\d+\}\{\d+\}|(?<!\\)\b[A-Za-z]{3,})|[A-Z]{2,}$)"
                      r"(?:[\w +\-*/^=<>().{}\[\]|!]|\\(?:frac|sqrt|binom|cdot|times|pi|alpha|beta|theta|sin|cos|tan"
                      r"|cot|sec|csc|log|ln|[lg]e(?:q|qslant)?|[lr](?:floor|ceil))(?![A-Za-z]))+", re.ASCII)


class Verifier(AbstractContextManager):
    """Scores answers, for one thread.  Close it with `close()` or by leaving its `with` block.

    The child starts at the first formula, another at need.  An answer is wrong if its formulas together need more than
    `deadline_s` (start-up not counted) or `memory_bytes`.  `counts` says how many were "asked", "timed_out", "killed".
    """

    def __init__(self, deadline_s: float = 2.0, memory_bytes: int = 1 << 30):
        self.deadline_s, self.memory_bytes = deadline_s, memory_bytes
        self.counts = Counter()
        self._child = None

    def close(self, *_):
        """End the child, if there is one."""
        if self._child:
            with self._child as child:
                child.kill()
        self._child = None
    __exit__ = close

    def score(self, answer_text: str, gold: str) -> int:
        r"""100, 10 or 0 (eq. 11) for the text after the prefilled `\boxed{`; RuntimeError if Math-Verify is missing."""
        answer, self._left = boxed(answer_text), self.deadline_s
        if answer is None or not answer.strip() or re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", answer):
            return 0
        small = len(answer) <= MAX_CHARS and max(accumulate((c in "([{") - (c in ")]}") for c in answer)) <= MAX_DEPTH
        return 100 if answer.strip() == gold.strip() or (small and self._same(_tidy(gold), _tidy(answer))) else 10

    def _same(self, gold: str, answer: str) -> bool:
        gold, answer = _peel(gold), _peel(answer)
        gold, answer = _unnamed(gold, answer), _unnamed(answer, gold)
        if _tight(gold) == _tight(answer):
            return True
        if gold[:1] in ("(", "[") and len(golds := _split(gold[1:-1])) > 1:  # a tuple or an interval
            answers = _split(answer[1:-1]) if answer[:1] + answer[-1:] == gold[0] + gold[-1] else []
            return len(golds) == len(answers) and all(map(self._same, golds, answers))
        golds, answers = _split(gold), _split(answer)
        if len(golds) < 2 or _number(_unit(gold)[0]) is not None:  # 1,450,000 is no list
            return self._same_formula(gold, answer)
        for member in golds:  # in any order, each once
            match = next((a for a in answers if self._same(member, a)), None)
            if match is None:
                return False
            answers.remove(match)
        return not answers

    def _same_formula(self, gold: str, answer: str) -> bool:
        """A whole-number gold wants a literal number: whoever answers 6 x 7 has not said 42."""
        (gold, gold_unit), (answer, unit) = _unit(gold), _unit(answer)
        if unit != gold_unit and unit and (gold_unit or unit.isdigit()):
            return False
        expected, found = _number(gold), _number(answer)
        if expected is not None and expected.denominator == 1 and "frac" not in gold:
            return found == expected and "frac" not in answer
        if expected is None or found is None:
            return self._ask(gold, answer)
        return found == (expected * 100 if unit == "percent" != gold_unit else expected)  # 50% is 0.5

    def _ask(self, gold: str, answer: str) -> bool:
        """Math-Verify's opinion on two formulas, if they are fit for it and time is left."""
        known, used = (set(re.sub(r"\\[A-Za-z]+|[^A-Za-z]", "", text)) for text in (gold, answer))
        if not (_FORMULA.fullmatch(gold) and _FORMULA.fullmatch(answer) and used <= known and self._left > 0
                and gold.count("=") == answer.count("=") <= 1):
            return False
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "minisoft.reward", str(self.deadline_s), str(self.memory_bytes)], bufsize=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
                cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
            if (reply := self._reply(STARTUP_S)) != b'"ready"\n':
                self.close()
                raise RuntimeError(f"Math-Verify (pip install math-verify) does not start: {reply or 'no reply'}")
        began = time.monotonic()
        exact = [re.sub(r"\d*\.\d+", lambda m: r"\frac{%d}{%d}" % Fraction(m[0]).as_integer_ratio(), text)
                 for text in (gold, answer)]  # decimals as fractions
        reply = self._reply(self._left, json.dumps(exact).encode() + b"\n")
        self._left -= time.monotonic() - began
        self.counts["asked"] += 1
        if not reply:
            self.counts["timed_out" if reply is None else "killed"] += 1
            self._left = 0
            self.close()
        return reply == b"true\n"

    def _reply(self, seconds: float, question: bytes = b"") -> bytes | None:
        """A line from the child, b"" if it died, None if it did not answer in time."""
        try:
            self._child.stdin.write(question)
            return self._child.stdout.readline() if select.select([self._child.stdout], [], [], seconds)[0] else None
        except BaseException:  # Ctrl-C in a notebook: a reply left in the pipe would answer the next question
            self.close()
            raise


score = Verifier().score  # of one verifier for the whole program; its child ends when its stdin closes


def _serve(deadline_s: float, memory_bytes: int):
    """The child: a line [gold, answer] in, true or false out, until stdin closes or, if it hangs, until its alarm."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing else may print between the replies
    try:
        from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse, verify
    except ImportError as error:
        return print(json.dumps(str(error)), file=replies)
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
