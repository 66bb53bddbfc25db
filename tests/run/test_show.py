"""A look inside a chain of thought: what is read off, and what the picture shows."""

import pytest

from minisoft.data import Problem
from minisoft.evaluation import Setting
from minisoft.io import WEIGHTS
from minisoft.kinds import KINDS
from minisoft.rollout import COT
from minisoft.run import show
from minisoft.run.policy import Policy, settings
from minisoft.run.settings import Flags
from minisoft.soft import Hard

QUESTION = "Max has 24 cards. Then 39 more come. Max finds 18 more. How many cards are there now?"


@pytest.fixture(scope="module")
def chains():
    """{setting: (Chain, its shadow tokens)} of the embedded model."""
    flags, names = Flags(cot=60, sigma=0.04), ("soft-sample", "hard-sample", "fuzzy-greedy")
    kinds = [name.split("-")[0] for name in names]
    of_all = settings(WEIGHTS / "tiny", kinds, flags, 60)
    policy = Policy.load(WEIGHTS / "tiny", "soft", of_all, plain=True)
    generation, looks = {"question": QUESTION, "answer": "81}", "gold": "81", "reward": 100}, {}
    for name in names:
        setting = Setting.parse(name, KINDS)
        policy = policy.of_kind(setting.kind)
        request = policy.request(Problem(QUESTION, "81"), (name,), range(1))
        (record,) = policy.rollout([request], setting.greedy, greedy_answer=True)
        chain = show.look(policy, record, setting, generation, name)
        looks[name] = chain, policy.form.tokenizer.decode(record.tokens(0, COT))
    return looks


def test_steps_are_those_of_the_rollout(chains):
    for chain, text in chains.values():
        assert "".join(chain.columns["fed as"]) == text
        assert {len(column) for column in chain.columns.values()} == {len(chain.columns["H"])}
        for mixture in chain.columns["weights"]:
            weights = [weight for _, weight in mixture]
            assert len(weights) == show.TOP and weights == sorted(weights, reverse=True)
            assert 0 <= sum(weights) <= 1 + 1e-5


def test_what_is_fed_lies_where_the_kind_says(chains):
    soft, hard, fuzzy = (chains[name][0].columns for name in chains)
    assert hard["dist"] == pytest.approx([0] * len(hard["dist"]), abs=5e-3)
    assert all(of["nearest"] == of["fed as"] for of in (hard, fuzzy))
    assert max(fuzzy["H(mix)"]) < 1e-3 and min(soft["dist"]) > 0.1  # noise
    assert set(hard["tokens"]) == {1.0} and max(soft["tokens"]) > 1.5


def test_the_picture_has_a_column_a_step(chains, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(show, "PER_ROW", 10)
    soft, hard = chains["soft-sample"][0], chains["hard-sample"][0]
    figure = show.draw([soft, hard])
    assert figure.get_suptitle().replace("\n", " ") == QUESTION
    axes = figure.axes
    rows = [(chain, i) for chain in (soft, hard) for i in range(0, len(chain.columns["H"]), 10)]
    for (chain, start), bars in zip(rows, axes, strict=True):
        shadows, mixtures = (chain.columns[x][start : start + 10] for x in ("fed as", "weights"))
        texts = [text.get_text() for text in bars.texts]
        assert all((shadow.strip() or "␣") in texts for shadow in shadows)
        assert len(bars.patches) == len(shadows) * (show.TOP + 1)  # all others are one piece
        heights = [patch.get_height() for patch in bars.patches[: show.TOP + 1]]
        assert sum(heights) == pytest.approx(1) and heights[0] == mixtures[0][0][1]
        assert ("→ 81" in texts) == (start + 10 >= len(chain.columns["H"]))
    reds = [patch.get_facecolor()[0] for patch in axes[-1].patches]
    assert sum(red < 1 for red in reds) == len(shadows)  # of a hard bar the drawn token only


def test_any_token_can_be_drawn(tmp_path):
    """Mathematics, white space, signs that no font has; a token that is none of the likely ones."""
    pytest.importorskip("matplotlib")
    mixture = [("$x_", 0.5), ("\n", 0.2), (" ", 0.1), ("", 0.1), ("<unk>", 0.05)]
    columns = {"fed as": ["$$"], "weights": [mixture]}
    generation = {"question": "Is $x a price? " * 20, "answer": "$}", "gold": "1", "reward": 10}
    chain = show.Chain("one", Setting("hard", True), Hard(1.0), generation, 1.3, columns)
    figure = show.draw([chain])
    figure.savefig(tmp_path / "chain.png")
    assert "wrong" in [text.get_text() for text in figure.axes[0].texts]
    assert figure.axes[0].patches[-1].get_facecolor()[0] < 1  # drawn from all others
