r"""The reward of an answer: 100 if it is right, 10 if it is merely boxed, 0 if not even that (eq. 11, section 3).

A policy is trained against this file, so accepting a wrong answer costs more than refusing an odd spelling of a right
one.  Answers are compared as text, then as exact numbers (nothing rounds), and only then by Math-Verify, which sees one
plain formula at a time, never a list, tuple, union or matrix, in a child process that is killed when it hangs or grows.
A formula that could make it hang, like a tower of powers, is refused before it is asked.
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue

from minisoft.data import boxed
from minisoft.errors import InputError

MAX_CHARS, MAX_DEPTH = 1000, 20  # a longer or deeper answer is not looked into
WORKERS = max(1, min(4, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))  # that pay, for each rank
STARTUP_S = 120.0  # importing sympy from a cold network disk is slow

# One spelling for what LaTeX spells in many ways: these characters, then these rules, in this order.
_CHARACTERS = str.maketrans({"−": "-", "√": r"\sqrt ", "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ",
                             "≤": r"\le ", "≥": r"\ge ", "°": r"^\circ ", "²": "^2", "³": "^3"})
_SPELLINGS = [(re.compile(pattern, re.ASCII), spelling) for pattern, spelling in [
    (r"(?<!\\)\\(?:left|right|displaystyle)(?![A-Za-z])|\\!\s*", ""),
    (r"\{,\}|(?<=\d)\\,(?=\d{3}(?!\d))", ","),  # 1{,}000 and 1\,000
    (r"(?<!\\)\\(?:[,:; ]|q?quad(?![A-Za-z]))|~|\s+", " "),
    (r"\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf|boldsymbol) ?\{", r"\\text{"),
    (r",? ?\\text\{,? ?(?:and|or),? ?\} ?|,? (?:and|or) |;", ","),
    (r"\\\$ ?([\d.,]*\d)", r"\1 dollars"), (r"\\?\$", ""),
    (r" ?\\?%| percent\b|\\text\{ ?percent ?\}", " percent "), (r"\^ ?(?:\{ ?\\circ ?\}|\\circ)", " degrees "),
    (r"\\cup(?![A-Za-z])", "∪"), (r"\\pm(?![A-Za-z])", "±"), (r"(?<![^,([]) ?\+ ?(?=\\infty)", ""),
    (r"\\[dtc]frac", r"\\frac"), (r"(?<![A-Za-z\\])(sqrt|pi|sin|cos|tan|log|ln)(?![A-Za-z])", r"\\\1"),
    (r"(\\sqrt|\^) ?(?:\(([^()]*)\)|(-?\d+(?:\.\d+)?))", r"\1{\2\3}"),  # sqrt(51), \sqrt13, 2^(n+1), x^10
    (r"\\(frac|sqrt) ?([\dA-Za-z]|\\[a-z]+)", r"\\\1{\2}"),
    (r"(\\frac\{(?:[^{}]|\{[^{}]*\})*\}) ?(\d(?!\d)|[A-Za-z]|\\[a-z]+)", r"\1{\2}"),  # \frac12, \frac{3}4
    (r"(?<![\d.,^_/])(\d+)/(\d+)(?![\d.!^/])", r"\\frac{\1}{\2}"),
]]


def _tidy(text: str) -> str:
    text = text.translate(_CHARACTERS)
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return text.rstrip(" .,")


def _tight(text: str) -> str:
    """Two texts that look the same on paper, up to the case of words, become equal."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<![A-Za-z]) (?!\d)|(?<!\d) (?![A-Za-z])", "", text).strip()  # "1 2" and "a b" keep their space
    return text.casefold() if re.fullmatch(r"[A-Za-z ]{3,}", text) else text


def _split(text: str, separator: str = ",") -> list[str]:
    """The pieces of `text` between separators outside every bracket; none if the brackets do not balance."""
    depths = list(accumulate(((c in "([{") - (c in ")]}") for c in text), initial=0))
    if min(depths) < 0 or depths[-1]:
        return []
    return "".join("\n" if c == separator and depth == 0 else c for c, depth in zip(text, depths)).split("\n")


def _peel(text: str) -> str:
    r"""Without wrappers around the whole: \boxed{5}, \text{5}, {5}, \{5, 6\}, (5); but (5, 6) is an ordered pair."""
    text = text.strip()
    wrapped = re.fullmatch(r"(?:\\boxed ?|\\text)?\{(.*)\}|\\\{(.*)\\\}|\((.*)\)", text)
    pieces = _split(wrapped[wrapped.lastindex]) if wrapped else []
    return text if not pieces or (wrapped[3] and len(pieces) > 1) else _peel(wrapped[wrapped.lastindex])


def _parts(text: str) -> tuple[str, list[str]]:
    r"""The kind and the members of a matrix, tuple, interval, list or union, where a \pm b is two; "" for a formula."""
    if matrix := re.fullmatch(r"\\begin\{[pb]?matrix\}((?:(?!\\begin).)*)\\end\{[pb]?matrix\}", text):
        return "".join(["matrix", *re.findall(r"&|\\\\", matrix[1])]), re.split(r"&|\\\\", matrix[1])
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and len(members := _split(text[1:-1])) > 1:
        return text[0] + text[-1], members
    for separator in ",∪":
        members = [member.replace("±", sign) for member in _split(text, separator)
                   for sign in ("+-" if member.count("±") == 1 else "±")]
        if len(members) > 1:
            return separator, members
    return "", []


_NAMED = re.compile(r"(([A-Za-z])(?:\([a-z]\))?|\(([a-z](?:, ?[a-z])+)\)) ?(?:=|\\in(?![a-z])) ?([^=<>]+)")


def _unnamed(text: str, other: str) -> str:
    r"""`x = 5`, `f(x) = 5`, `x \in [0, 5]` or `(x, y) = (0, 5)` without the name, if the other text has the same name, or
    none and is no equation."""
    if match := _NAMED.fullmatch(text):
        name, letter, letters, value = match.groups()
        if (re.match(re.escape(name) + r" ?(?:=|\\in(?![a-z]))", other)
                or not set(other) & ({"=", *(letter or letters)} - {",", " "})):
            return _peel(value)
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


_SHORT = r"(?:[cmk]m|in|ft|kg)\b"
_WORDS = (rf"(?:(?:{_SHORT}|(?!(?:nor|not|minus|plus|times|point|over|mod|squared|cubed|hundred|thousand|million"
          r"|billion|trillion|dozen|half)\b)[a-z]{3,}\b) ?){1,3}")
_UNIT = re.compile(rf"(.*?\S)(?:(?: ({_WORDS})|(?<=\d)({_SHORT})| ?\\text\{{ ?({_WORDS}|[mghs])\}})(\^\{{[23]\}})?"
                   r"|_\{?(\d+)\}?)", re.ASCII | re.I)


def _unit(text: str) -> tuple[str, str]:
    r"""`5\text{ miles}^2` -> ("5", "mil^{2}"), `52_8` -> ("52", "8").  Bare words are a unit only after a number."""
    match = _UNIT.fullmatch(text)
    if not match or ((match[2] or match[3]) and _number(match[1]) is None):
        return text, ""
    value, spaced, short, marked, power, base = match.groups()
    words = (spaced or short or marked or "").strip().lower()
    return value, base or re.sub(r"(?<=..)(es|s|e)\b", "", words) + (power or "")


# What Math-Verify may see: plain formulas, and of them nothing like 52_8, 3 2, 3\frac{1}{2}, words, AB.
_FORMULA = re.compile(r"(?!.*(?:\d ?_|\d \d|\d ?\\frac\{\d+\}\{\d+\}|(?<!\\)\b[A-Za-z]{3,})|[A-Z]{2,}$)"
                      r"(?:[\w +\-*/^=<>().{}\[\]|!]|\\(?:frac|sqrt|binom|cdot|times|pi|alpha|beta|theta|sin|cos|tan"
                      r"|cot|sec|csc|log|ln|[lg]e(?:q|qslant)?|[lr](?:floor|ceil))(?![A-Za-z]))+", re.ASCII)

_GROUP = re.compile(r"[({\[]([^(){}\[\]]*)[)}\]]")


def _mark(group: re.Match) -> str:
    """What becomes of a bracket: # if it holds a factorial or a bracket's power, % if another power, @ if a large number
    or a product, ~ if nothing of these."""
    if re.search(r"[~%@#] ?\^|[!#]|binom", group[1]):
        return "#"
    return "%" if re.search(r"[\^%]", group[1]) else "@" if re.search(r"[@*]|cdot|times|[\d~] ?~", group[1]) else "~"


def _heavy(text: str, gold: str) -> bool:
    """Whether Math-Verify could hang on `text`, as a rule of thumb: it is much longer than its gold, nests brackets more
    than five deep, has many functions, or has a power or factorial of another or of a number above 12 not in the gold."""
    if len(text) > 2 * len(gold) + 50 or len(re.findall(r"\\(?:sqrt|sin|cos|tan|cot|sec|csc|log|ln)", text)) > 5:
        return True
    known = set(re.findall(r"\d+", gold))
    text = re.sub(r"\d+", lambda m: "1" if m[0] in known or int(m[0]) < 13 else "@", text)
    for _ in range(6):
        if re.search(r"\^ ?-?[%@#]|\^ ?[~\w] ?[\^!]|#[~%@#]* ?\^|[%@#][~%@#]* ?!|! ?[\^!]|(?:\||r(?:floor|ceil)) ?[\^!]"
                     r"|binom ?~? ?[%@#]", text):
            return True
        text = _GROUP.sub(_mark, text).replace(r"\frac~~", "~")
    return bool(_GROUP.search(text))


def only_as_text(gold: str) -> bool:
    """Whether a gold answer has a part that is neither a number nor a formula nor words, so that only its text is right."""
    if len(gold) > MAX_CHARS or max(accumulate((c in "([{") - (c in ")]}") for c in gold)) > MAX_DEPTH:
        return True
    text = _peel(_tidy(gold))
    if members := _parts(text)[1]:
        return any(map(only_as_text, members))
    return _number(_unit(text)[0]) is None and not _FORMULA.fullmatch(_unit(text)[0]) and not re.fullmatch(
        r"[A-Za-z ,.'-]+|\\text\{[^{}\\]*\}|-? ?\\infty", text)


class Verifier(AbstractContextManager):
    """Scores answers, for one thread.  Close it with `close()` or by leaving its `with` block.

    A child starts at the first formula, another at need; `score_all` uses `workers` of them.  An answer is wrong if its
    formulas together need more than `deadline_s` (start-up not counted) or `memory_bytes`.

    `counts` says for how many answers, each counted once, the costliest thing done was what: "unboxed" (reward 0),
    "exact" (right as text), "numeric" (numbers compared), "symbolic" (Math-Verify asked, and it answered), "timed_out",
    "killed" (it died, as of memory), "refused" (wrong by its form, with nothing to compare).
    """

    def __init__(self, deadline_s: float = 2.0, memory_bytes: int = 1 << 30, workers: int = 1):
        self.deadline_s, self.memory_bytes = deadline_s, memory_bytes
        self.counts = Counter()
        self._child = None
        self._helpers = [Verifier(deadline_s, memory_bytes) for _ in range(workers - 1)]

    def close(self, *_):
        """End the children, if there are any."""
        for verifier in (self, *self._helpers):
            verifier._end_child()
    __exit__ = close

    def _end_child(self):
        if self._child:
            with self._child as child:
                child.kill()
        self._child = None

    def score(self, answer_text: str, gold: str) -> int:
        r"""100, 10 or 0 (eq. 11) for the text after the prefilled `\boxed{`; InputError if Math-Verify is missing."""
        reward, how = self._judge(answer_text, gold)
        self.counts[how] += 1
        return reward

    def score_all(self, pairs: list[tuple[str, str]]) -> list[int]:
        """`score` of each (answer_text, gold), in that order.  Equal pairs are judged once, and counted each."""
        unique, idle = list(dict.fromkeys(pairs)), SimpleQueue()
        for verifier in (self, *self._helpers):
            idle.put(verifier)

        def judge(pair):
            verifier = idle.get()
            try:
                return verifier._judge(*pair)
            finally:
                idle.put(verifier)
        with ThreadPoolExecutor(1 + len(self._helpers)) as pool:
            verdicts = dict(zip(unique, pool.map(judge, unique)))
        self.counts.update(verdicts[pair][1] for pair in pairs)
        return [verdicts[pair][0] for pair in pairs]

    def _judge(self, answer_text: str, gold: str) -> tuple[int, str]:
        """The reward, and for what it is to be counted."""
        answer, self._left, self._how = boxed(answer_text), self.deadline_s, None
        if answer is None or not answer.strip() or re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", answer):
            return 0, "unboxed"
        small = len(answer) <= MAX_CHARS and max(accumulate((c in "([{") - (c in ")]}") for c in answer)) <= MAX_DEPTH
        right = answer.strip() == gold.strip() or (small and self._same(_tidy(gold), _tidy(answer)))
        return (100, self._how or "exact") if right else (10, self._how or "refused")

    def _same(self, gold: str, answer: str) -> bool:
        gold, answer = _peel(gold), _peel(answer)
        gold, answer = _unnamed(gold, answer), _unnamed(answer, gold)
        if _tight(gold) == _tight(answer):
            return True
        (kind, golds), (answer_kind, answers) = _parts(gold), _parts(answer)
        if not kind or _number(_unit(gold)[0]) is not None:  # 1,450,000 is no list
            return self._same_formula(gold, answer)
        if kind != answer_kind or len(golds) != len(answers):
            return False
        if kind not in (",", "∪"):
            return all(map(self._same, golds, answers))
        for member in golds:  # in any order, each once
            match = next((a for a in answers if self._same(member, a)), None)
            if match is None:
                return False
            answers.remove(match)
        return True

    def _same_formula(self, gold: str, answer: str) -> bool:
        """A whole-number gold wants a literal number: whoever answers 6 x 7 has not said 42."""
        (gold, gold_unit), (answer, unit) = _unit(gold), _unit(answer)
        if unit != gold_unit and unit and (gold_unit or unit.isdigit()):
            return False
        expected, found = _number(gold), _number(answer)
        whole = expected is not None and expected.denominator == 1 and "frac" not in gold
        if not whole and None in (expected, found):
            return self._ask(gold, answer)
        if found is None:
            return False
        self._how = self._how or "numeric"
        if gold_unit == "percent" and not unit and found * 100 == expected:  # 0.1 is 10%
            return True
        if whole:
            return found == expected and "frac" not in answer
        return found == (expected * 100 if unit == "percent" != gold_unit else expected)  # 50% is 0.5

    def _ask(self, gold: str, answer: str) -> bool:
        """Math-Verify's opinion on two formulas, if they are fit for it and time is left."""
        known, used = (set(re.sub(r"\\[A-Za-z]+|[^A-Za-z]", "", text)) for text in (gold, answer))
        if not (_FORMULA.fullmatch(gold) and _FORMULA.fullmatch(answer) and used == known and self._left > 0
                and gold.count("=") == answer.count("=") <= 1 and not _heavy(answer, gold)):
            return False
        if self._child is None or self._child.poll() is not None:
            self._end_child()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "minisoft.verifier.compare", str(self.deadline_s), str(self.memory_bytes)], bufsize=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
                cwd=Path(__file__).resolve().parents[2])
            if (reply := self._reply(STARTUP_S)) != b'"ready"\n':
                self._end_child()
                raise InputError(f"Math-Verify (pip install math-verify): expected it to start, found: {reply or 'no reply'}")
        began = time.monotonic()
        exact = [re.sub(r"\d*\.\d+", lambda m: r"\frac{%d}{%d}" % Fraction(m[0]).as_integer_ratio(), text)
                 for text in (gold, answer)]  # decimals as fractions
        reply = self._reply(self._left, json.dumps(exact).encode() + b"\n")
        self._left -= time.monotonic() - began
        self._how = "symbolic" if reply else "timed_out" if reply is None else "killed"
        if not reply:
            self._left = 0
            self._end_child()
        return reply == b"true\n"

    def _reply(self, seconds: float, question: bytes = b"") -> bytes | None:
        """A line from the child, b"" if it died, None if it did not answer in time."""
        try:
            self._child.stdin.write(question)
            return self._child.stdout.readline() if select.select([self._child.stdout], [], [], seconds)[0] else None
        except BaseException:  # Ctrl-C in a notebook: a reply left in the pipe would answer the next question
            self._end_child()
            raise




def _serve(deadline_s: float, memory_bytes: int):
    """The child: a line [gold, answer] in, true or false out, until stdin closes or, if it hangs, until its alarm."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing else may print between the replies
    try:
        from math_verify import (
            LatexExtractionConfig,
            LatexNormalizationConfig,
            parse,
            verify,
        )
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
