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
        chain = show.look(policy, record, setting, generation)
        looks[name] = chain, policy.form.tokenizer.decode(record.tokens(0, COT))
    return looks


def test_steps_are_those_of_the_rollout(chains):
    for chain, text in chains.values():
        assert "".join(step.shadow for step in chain.steps) == text
        for step in chain.steps:
            weights = [weight for _, weight in step.mixture]
            assert len(weights) == show.TOP and weights == sorted(weights, reverse=True)
            assert 0 <= sum(weights) <= 1 + 1e-5


def test_what_is_fed_lies_where_the_kind_says(chains):
    soft, hard, fuzzy = (chains[name][0] for name in chains)
    assert all(step.distance == pytest.approx(0, abs=5e-3) for step in hard.steps)
    assert all(step.nearest == step.shadow for step in (*hard.steps, *fuzzy.steps))
    assert all(step.mixture_entropy < 1e-3 for step in fuzzy.steps)
    assert all(step.distance > 0.1 for step in soft.steps)  # noise
    assert (soft.mixes, hard.mixes, fuzzy.mixes) == (True, False, True)


def test_the_picture_has_a_column_a_step(chains, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(show, "PER_ROW", 10)
    soft, hard = chains["soft-sample"][0], chains["hard-sample"][0]
    figure = show.draw([soft, hard])
    assert figure.get_suptitle().replace("\n", " ") == QUESTION
    axes = figure.axes
    rows = [(chain, i) for chain in (soft, hard) for i in range(0, len(chain.steps), 10)]
    assert len(axes) == 2 * len(rows)
    for (chain, start), line, bars in zip(rows, axes[::2], axes[1::2], strict=True):
        steps = chain.steps[start : start + 10]
        assert list(line.lines[0].get_ydata()) == [step.mixture_entropy for step in steps]
        texts = [text.get_text() for text in bars.texts]
        assert all((step.shadow.strip() or "␣") in texts for step in steps)
        assert len(bars.patches) == len(steps) * (show.TOP + 1)  # all other tokens are one piece
        heights = [patch.get_height() for patch in bars.patches[: show.TOP + 1]]
        assert sum(heights) == pytest.approx(1) and heights[0] == steps[0].mixture[0][1]
        assert ("→ 81" in texts) == (start + 10 >= len(chain.steps))
    greys = [patch.get_facecolor()[0] for patch in axes[-1].patches]
    assert sum(grey < 1 for grey in greys) == len(steps)  # of a hard bar the drawn token only


def test_any_token_can_be_drawn(tmp_path):
    """Mathematics, white space, signs that no font has; a token that is none of the likely ones."""
    pytest.importorskip("matplotlib")
    mixture = [("$x_", 0.5), ("\n", 0.2), (" ", 0.1), ("", 0.1), ("<unk>", 0.05)]
    steps = [show.Step("$$", mixture, 1.2, "$$", 0.0, 1.2, 1.0, 1.0)]
    generation = {"question": "Is $x a price? " * 20, "answer": "$}", "gold": "1", "reward": 10}
    chain = show.Chain(Setting("hard", True), generation, False, 1.0, 1.3, steps)
    figure = show.draw([chain])
    figure.savefig(tmp_path / "chain.png")
    assert "wrong" in [text.get_text() for text in figure.axes[1].texts]
    assert figure.axes[1].patches[-1].get_facecolor()[0] < 1  # drawn from all others
