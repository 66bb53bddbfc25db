"""train.py with research switches that are no part of the paper's method.

    python -m minisoft.lab.variants --terms cot -- --tokens soft --out RUN        # train.py's flags
    python -m minisoft.lab.variants --terms cot -- --out RUN --resume
    python -m minisoft.lab.variants --frozen E -- --tokens soft

config.json and minisoft.json say which switches were on, and a run goes on with the same ones only.
To be called where train.py is.
"""

from dataclasses import dataclass

from minisoft.errors import expect
from minisoft.kinds.options import Option
from minisoft.lab import command
from minisoft.rollout import ANSWER, COT
from minisoft.run.policy import Policy
from minisoft.run.world import as_program

TERMS = {"both": (COT, ANSWER), "cot": (COT,), "answer": (ANSWER,)}
FROZEN = {"nothing": None, "E": "model.embed_tokens.weight"}
FLAGS = [
    Option("terms", str, "the log-probabilities that learn: CoT's, answer's", "both", TERMS),
    Option("frozen", str, "E: it (and a tied head) does not learn", "nothing", FROZEN),
]


@dataclass(frozen=True)
class Variant:
    """Which log-probabilities learn, and what does not learn."""

    terms: str = "both"
    frozen: str = "nothing"

    @property
    def facts(self) -> dict[str, str]:
        """The switches that are on."""
        return {row.name: x for row in FLAGS if (x := getattr(self, row.name)) != row.default}

    def adapt(self, run) -> None:
        """Put this variant's functions in the place of a run's, before its first update."""
        if self.terms != "both":
            run.policy = TermsPolicy(**vars(run.policy), terms=TERMS[self.terms])
        if self.frozen != "nothing":
            run.differentiate = _without(run.optimizer, FROZEN[self.frozen], run.differentiate)


@dataclass(frozen=True)
class TermsPolicy(Policy):
    """A policy some of whose log-probabilities learn; its evaluation is unchanged."""

    terms: tuple = ()

    def backward(self, rollouts, advantages, scale, **options):
        return super().backward(rollouts, advantages, scale, terms=self.terms, **options)


def _without(optimizer, parameter: str, differentiate):
    """The same backward passes, which leave a parameter no gradient: with AdamW's weight decay of
    0 it stays as it is, and its gradient is no part of the norm that is clipped."""

    def within(*args, **options):
        mismatch = differentiate(*args, **options)
        if parameter in optimizer.sums:
            optimizer.sums[parameter].zero_()
        return mismatch

    return within


def read(argv) -> tuple[Variant, list[str]]:
    """The switches before --, train.py's flags after it.  Raises InputError."""
    own, flags = command.split(argv)
    variant = Variant(**vars(command.read("variants", __doc__, FLAGS, own)))
    both = variant.terms == "both" or "--plain" not in flags
    expect(both, f"--terms {variant.terms}", "no --plain, which has both terms", "--plain")
    return variant, flags


def main(argv=None) -> None:
    import train  # the program beside the package

    with command.one_line("variants"):
        variant, flags = read(argv)
    train.main(flags, variant)


if __name__ == "__main__":
    as_program(main)
