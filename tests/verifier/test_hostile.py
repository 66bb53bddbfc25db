"""Answers that mean harm are refused in time, and nothing of them is executed."""

import random
import re
import time
from functools import partial

from runs import ROOT

from minisoft.verifier.process import Verifier


def test_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Verifier() as verifier:
        assert verifier.score("1+x}", "x+1") == 100  # its child works in ROOT
        for text in (
            "__import__('os').system('touch PWNED')",
            "x+1; __import__('os').system('touch PWNED')",
            r"\input{|touch PWNED}",
            "open('PWNED','w')",
        ):
            assert verifier.score(text + "}", "x+1") == 10
        past_the_guards = b"[\"x+1\", \"__import__('os').system('touch PWNED')\"]\n"
        assert verifier.judges[0].ask_child(past_the_guards, 5) == b"false\n"
    assert not list(tmp_path.iterdir()) and not (ROOT / "PWNED").exists()


def words(text):
    return re.split("[¦\n]", text)


REPEATED = words(r"""x+¦9¦(¦{¦1,¦\frac¦^¦ ¦a ¦\¦-¦$¦\$1¦\text{¦\frac{a}¦1/¦,000¦and ¦\,¦\\¦&¦±¦\cup
\begin{pmatrix}¦%¦é¦٣¦\pm¦x!¦|¦[¦_¦1.¦\sin ¦=¦\{\}¦cm/¦km per ¦18 a ¦**¦1<¦1e9¦x\in ¦aaa ¦log_2
{1\over ¦USD 1¦.¦...""")
REPEATED += ["\u202e", "\ud800"]
ODD = words(r"""__import__('os').system('touch PWNED')¦\input{/etc/passwd}¦\write18{touch PWNED}
$(touch PWNED)¦`touch PWNED`¦exec("open('PWNED','w')")¦x.__class__.__mro__¦NaN¦inf¦-inf
\infty^{\infty}¦0/0¦\frac{0}{0}¦1e400¦𝟒𝟐¦٤٢¦oo¦zoo¦S(42)¦true¦null¦lambda: x¦%s%n""")
ODD += ['"]\n["x+1","x+1"]\n', "\0", "\ud800", "\u200b"]
GOLDS = words(r"""57¦1,450,000¦\frac{3}{7}¦0.57¦57\%¦(5,7)¦5,7¦[5,7)¦x^3-57¦\sqrt{57}¦\pm x^3
\frac{1}{2x+57}¦\text{east}¦(-\infty,x^3)\cup(57,\infty)¦\begin{pmatrix} x^3 & 57 \end{pmatrix}""")
BRACKETS = words(r"""\frac{1}{…}¦\sqrt{1+…}¦(…)¦{…}¦\boxed{…}¦(x,…)¦\left(…\right)¦\sin(…)¦|…|
\{…\}¦\text{…}""")


def hostile(rng):
    """A random answer that means harm."""

    def number():
        many = "9" * rng.randint(1, 300)
        return rng.choice(["9", "99", "12345", "x", "0.9", many, "1e999", "x+1", r"\sqrt{2}+x"])

    def pile(forms, deepest):
        text = number()
        for _ in range(rng.randint(1, deepest)):
            form = rng.choice(forms)
            text = form % ((number(), text) if form.count("%s") == 2 else text)
        return text

    def nest():
        left, right = rng.choice(BRACKETS).split("…")
        depth = rng.choice([3, 6, 9, 15, 40, 2000])
        return left * depth + number() + right * rng.choice([depth, depth, depth - 1, 0])

    def repetition():
        times = rng.choice([20, 150, 330, 10_000])
        return rng.choice(REPEATED) * times + rng.choice(["", "x", "}", "!"])

    def odd():
        return rng.choice(["", "x+", "1,", r"\text{"]) + rng.choice(ODD)

    powers = ["%s^{%s}", "(%s)^{%s}", "{%s}^%s", "%s**%s", "(%s)^x"]
    factorials = ["%s!", "(%s)!", r"\binom{%s}{7}", r"\binom{9999}{%s}", r"\lfloor %s \rfloor!"]
    expansions = ["(%s)^{%s}", "(%s+x)^{19}", r"\frac{1}{(%s)^{12}}", r"(%s)(%s)"]
    expansions += [r"\sqrt{%s+%s}", r"\log %s"]
    piles = [(powers, 6), (factorials, 4), (expansions, 5)]
    makers = [*(partial(pile, *forms) for forms in piles), nest, repetition, odd]
    return rng.choice(makers)()


def test_hostile_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, seconds, accepted = random.Random(0), [], []
    with Verifier() as verifier:
        assert verifier.score("1+x}", "x+1") == 100
        for _ in range(2000):
            text, gold = hostile(rng) + "}", rng.choice(GOLDS)
            began = time.monotonic()
            if verifier.score(text, gold) == 100:
                accepted.append((text, gold))
            seconds.append(time.monotonic() - began)
        child = verifier.judges[0].child
    assert accepted == []
    assert sum(seconds) / len(seconds) < 0.02 and max(seconds) < 2.0 + 1
    assert verifier.counts["symbolic"] > 20  # not everything is refused at once
    assert child.poll() is not None
    assert not list(tmp_path.iterdir()) and not (ROOT / "PWNED").exists()
