r"""Which answers the verifier accepts and refuses (eq. 11, section 3)."""

import json
import re
from pathlib import Path

from minisoft.verifier.compare import only_as_text
from minisoft.verifier.process import Verifier

HERE = Path(__file__).parent
# Of answers.txt: a gold, "::", and after it answers separated by ";;".
TABLES = re.split("\n# .*\n", (HERE / "answers.txt").read_text("utf-8"))[1:]
# What follows the prefilled "\boxed{", the gold, the reward.
SPECIAL = [
    ("18\x00}", "18", 0),
    ("__import__('os').system('touch PWNED')}", "42", 10),
    (" \n }", "18", 0),
    ("18\n}", "18", 100),
    ("(" * 50 + "42" + ")" * 50 + "}", "x^2+1", 10),
    ("+".join("x" * 50_000) + "}", "x^2+1", 10),
]


def pairs(table):
    lines = [line.split(" :: ") for line in table.strip().splitlines()]
    return [(gold, answer) for gold, answers in lines for answer in answers.split(" ;; ")]


RIGHT, WRONG, KNOWN_MISSES, *TEXTS = map(pairs, TABLES)


def test_texts(verifier):
    rows = [(text, gold, r) for r, rows in zip((100, 0, 10), TEXTS) for gold, text in rows]
    found = [(text, gold, verifier.score(text, gold)) for text, gold, _ in rows + SPECIAL]
    assert found == rows + SPECIAL


def scored(verifier, table):
    """reward -> the pairs of a table that have it."""
    rewards = verifier.score_all([(answer + "}", gold) for gold, answer in table])
    return {r: [pair for pair, x in zip(table, rewards) if x == r] for r in (0, 10, 100)}


def test_right_answers_are_accepted_and_wrong_ones_refused(verifier):
    right, wrong = scored(verifier, RIGHT), scored(verifier, WRONG)
    assert right[10] == right[0] == wrong[100] == wrong[0] == []
    misses = scored(verifier, KNOWN_MISSES)
    assert len(misses[10]) / len(RIGHT + KNOWN_MISSES) <= 0.05


def test_a_gold_is_its_own_answer(verifier):
    golds = [gold for gold, _ in RIGHT + WRONG]
    assert [gold for gold in golds if verifier.score(gold + "}", gold) != 100] == []


def test_pairs_that_were_written_before_they_were_scored(verifier):
    lines = (HERE / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    right = [(row["gold"], row["answer"]) for row in rows if row["right"]]
    wrong = [(row["gold"], row["answer"]) for row in rows if not row["right"]]
    assert len(right) > 280 and len(wrong) > 350
    assert scored(verifier, wrong)[100] == []
    assert len(scored(verifier, right)[100]) / len(right) >= 0.95


def test_score_all_is_score_one_by_one(verifier):
    some = RIGHT[::6] + WRONG[::6]
    questions = [(answer + "}", gold) for gold, answer in some] * 2 + [("}", "1")] * 3
    with Verifier(workers=2) as team:
        assert team.score_all([]) == []
        assert team.score_all(questions) == [verifier.score(*question) for question in questions]
        assert team.counts.total() == len(questions)
        children = [judge.child.pid for judge in team.judges]
        assert len(set(children)) == 2
    assert not any(Path(f"/proc/{child}").exists() for child in children)


ONLY_AS_TEXT = [r"\angle A B C", r"(1, \mho(a))", "5 @ 6", "7" * 5000, "{" * 1500 + "}" * 1500]
NOT_ONLY = r"""18 ;; 1,450 ;; \frac{3}{4} ;; (1, -\infty) ;; (1,2),(3,4) ;; Tuesday ;; a $ b
x^2 + 1 ;; 5\text{ cm} ;; \begin{pmatrix} 1 \\ 2 \end{pmatrix} ;; \begin{array}{c} 1 \end{array}
\text{(A)}"""


def test_golds_that_only_their_text_matches():
    assert [gold for gold in ONLY_AS_TEXT if not only_as_text(gold)] == []
    assert [gold for gold in re.split("\n| ;; ", NOT_ONLY) if only_as_text(gold)] == []
