"""A reward of one's own: what it is called with, and that whatever it does is a number or one line
with its own line number."""

import time

import pytest
from conftest import refuses

from minisoft.verifier.own import OwnReward, verifier_of

ODD = """import math, os, time
def reward(answer, gold):
    if answer == "raises":
        return 1 / 0
    if answer == "exits":
        raise SystemExit("a\\nb")
    if answer == "sleeps":
        time.sleep(60)
    if answer == "dies":
        os._exit(3)
    if answer == "grows":
        return bytes(9 << 30)
    print("not a reply")
    odd = {"nan": math.nan, "inf": -math.inf, "text": "1", "none": None, "2": True}
    return odd.get(answer, 0.1)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """own(source) -> the OwnReward of such a file, r.py."""
    monkeypatch.chdir(tmp_path)

    def make(source, **options):
        (tmp_path / "r.py").write_text(source)
        made.append(OwnReward("r.py", **options))
        return made[-1]

    made = []
    yield make
    for each in made:
        each.close()


def test_it_gets_the_text_in_the_box_or_none_and_the_gold(own):
    paid = own("calls = 0\ndef reward(a, g):\n    return {None: -1, '2': 0.1}.get(a, len(a or g))")
    texts = ("2} or", "{12}}", "2", "", "}")
    made = [{"answer": text, "gold": "7", "reward": 10} for text in texts]
    paid.pay(made)
    assert [g["reward"] for g in made] == [0.1, 4, -1, -1, 1]
    assert all(g["verified"] == 10 for g in made)


def test_it_can_ask_the_verifier_and_read_files_beside_the_program(own, tmp_path):
    (tmp_path / "bonus").write_text("5")
    ask = "def reward(a, g):\n    return score(a + '}', g) + int(open('bonus').read())"
    found = own(f"from minisoft.reward import score\n{ask}").score_all
    assert found([("x+1}", "1+x"), ("3}", "4")]) == [105, 15]


SCALARS = """import numpy as np, torch
from decimal import Decimal
def reward(answer, gold):
    return (np.True_, np.float32(0.5), torch.tensor(2), Decimal("1.5"))[int(answer)]
"""


def test_scalars_of_numpy_torch_and_decimal_are_numbers(own):
    assert own(SCALARS).score_all([(f"{i}}}", "7") for i in range(4)]) == [1, 0.5, 2, 1.5]


NO_NUMBERS = """nan :2: / finite / found nan
inf :2: / finite / found -inf
text :2: / found '1'
none :2: / found None
raises :4: / 'raises', '7' / ZeroDivisionError
exits :6: / SystemExit
grows :12: / MemoryError
dies : / 'dies', '7' / died"""


def test_what_is_no_number_is_one_line_of_the_file(own):
    paid = own(ODD)
    assert paid.score_all([("2}", "7"), ("3}", "7")]) == [1, 0.1]
    for line in NO_NUMBERS.splitlines():
        answer, parts = line.split(" ", 1)
        refuses([(answer + "}", "7")], *f"r.py{parts}".split(" / "), by=paid.score_all)
        assert paid.score_all([("3}", "7")]) == [0.1]


def test_a_call_that_hangs_ends_at_the_deadline(own):
    paid = own(ODD, deadline_s=1)
    began = time.monotonic()
    refuses([("sleeps}", "7")], "r.py:", "'sleeps', '7'", "1 s", by=paid.score_all)
    assert time.monotonic() - began < 20


NO_REWARD = {"x = 1\ndef reward(a, g)\n": "2: SyntaxError", "exit()": "1: SystemExit"}
NO_REWARD |= {"\nimport nothing_of_this_name\n": "2: nothing_of_this_name"}
NO_REWARD |= dict.fromkeys(("x = 1\n", "reward = 5", ""), " reward(answer, gold)")


def test_a_file_without_a_reward_is_one_line_at_once(own):
    for source, parts in NO_REWARD.items():
        line, part = parts.split(" ", 1)
        refuses(source, f"r.py:{line}", part, by=own)
    refuses("none.py", "none.py: expected", by=verifier_of)


def test_classes_of_the_file_know_their_module(own):
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    paid = own(f"{head}@dataclass\nclass P:\n    x: int\ndef reward(a, g):\n    return P(3).x")
    assert paid.score_all([("2}", "7")]) == [3]
