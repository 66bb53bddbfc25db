"""A model with its settings: one place that loads it, rolls it out, scores and differentiates."""

import pytest

from minisoft.errors import InputError
from minisoft.io import WEIGHTS
from minisoft.run import policy
from minisoft.run.policy import Policy
from minisoft.run.settings import TRAIN_COT, Flags

TINY = WEIGHTS / "tiny"


def load(tokens, **flags):
    settings = policy.settings(TINY, [tokens], Flags(**flags), TRAIN_COT)
    return Policy.load(TINY, tokens, settings)


def test_the_flags_decide_before_the_folder_and_sigma_is_that_of_the_weights():
    settings = policy.settings(TINY, ["soft"], Flags(tau={"soft": 0.7}, gamma=0.66), TRAIN_COT)
    assert settings.sigma is None
    of = load("soft", tau={"soft": 0.7}, gamma=0.66)
    assert of.kind.tau == 0.7 and of.kind.sigma == pytest.approx(2 * load("soft").kind.sigma)
    other = of.of_kind("hard", cot=9)
    assert other.model is of.model and type(other.kind).__name__ == "Hard"
    assert other.settings.cot == 9 and other.settings.sigma == of.settings.sigma


def test_a_flag_that_the_kind_does_not_use_is_refused():
    with pytest.raises(InputError, match="--top-p"):
        load("soft", top_p=0.9)
