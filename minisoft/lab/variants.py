"""train.py with research switches that are no part of the paper's method.

    python -m minisoft.lab.variants --terms cot -- --tokens soft --out RUN        # train.py's flags
    python -m minisoft.lab.variants --terms cot -- --out RUN --resume
    python -m minisoft.lab.variants --logits bfloat16 -- --tokens fuzzy
    python -m minisoft.lab.variants --frozen E -- --tokens soft

config.json and minisoft.json say which switches were on, and a run goes on with the same ones only.
To be called where train.py is.
"""

import sys
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps

from minisoft.lab import command
from minisoft.rollout import ANSWER, COT
from minisoft.run.policy import Policy
from minisoft.run.world import as_program

TERMS = {"both": (COT, ANSWER), "cot": (COT,), "answer": (ANSWER,)}
FROZEN = {"nothing": None, "E": "model.embed_tokens.weight"}
LOGITS = ("float32", "bfloat16")
LOGITS_HELP = "bfloat16: logits are rounded to it in rollout and replay"


@dataclass(frozen=True)
class Variant:
    """Which log-probabilities learn, what logits are rounded to in updates, and what does not
    learn."""

    terms: str = "both"
    logits: str = "float32"
    frozen: str = "nothing"

    @property
    def facts(self) -> dict[str, str]:
        """The switches that are on."""
        return {
            x.name: value for x in fields(self) if (value := getattr(self, x.name)) != x.default
        }

    def adapt(self, run) -> None:
        """Put this variant's functions in the place of a run's, before its first update."""
        run.policy = VariedPolicy(**vars(run.policy), variant=self)
        if self.frozen != "nothing":
            run.differentiate = _without(run.optimizer, FROZEN[self.frozen], run.differentiate)


@contextmanager
def rounded(model, logits: str = "bfloat16"):
    """Inside, logits are rounded to bfloat16, as where the head is computed in it; gradients pass
    through the rounding unchanged."""
    if logits != "float32":
        exact = model.logits

        def round_logits(hidden):
            z = exact(hidden)
            return z + (z.bfloat16().float() - z).detach()

        model.logits = round_logits
    try:
        yield
    finally:
        model.__dict__.pop("logits", None)


@dataclass(frozen=True)
class VariedPolicy(Policy):
    """A policy whose updates are those of a variant; its evaluation is unchanged."""

    variant: Variant = Variant()

    def rollout(self, requests, *settings, **options):
        with rounded(self.model, self.variant.logits):
            return super().rollout(requests, *settings, **options)

    def backward(self, rollouts, advantages, scale, **options):
        if self.variant.terms != "both":
            options["terms"] = TERMS[self.variant.terms]
        with rounded(self.model, self.variant.logits):
            return super().backward(rollouts, advantages, scale, **options)


def _without(optimizer, parameter: str, differentiate):
    """The same backward passes, which leave a parameter no gradient: with AdamW's weight decay of
    0 it stays as it is, and its gradient is no part of the norm that is clipped."""

    @wraps(differentiate)
    def within(*args, **options):
        mismatch = differentiate(*args, **options)
        if parameter in optimizer.sums:
            optimizer.sums[parameter].zero_()
        return mismatch

    return within


def split(words: list[str]) -> tuple[Variant, list[str]]:
    """The command line -> (the switches before --, train.py's flags after it)."""
    own = words.index("--") if "--" in words else len(words)
    parser = command.parser("variants", __doc__)
    terms = "ablation: the log-probabilities that learn, CoT's, answer's or both"
    switches = {
        "--terms": ("both", terms, {"choices": TERMS}),
        "--logits": ("float32", LOGITS_HELP, {"choices": LOGITS}),
        "--frozen": ("nothing", "E: it (and a tied head) does not learn", {"choices": FROZEN}),
    }
    command.add_flags(parser, switches)
    variant, flags = Variant(**vars(parser.parse_args(words[:own]))), words[own + 1 :]
    if variant.terms != "both" and "--plain" in flags:
        parser.error(f"--terms {variant.terms}: expected no --plain, which has both terms")
    return variant, flags


def main(argv=None) -> None:
    import train  # the program beside the package

    variant, flags = split(list(sys.argv[1:] if argv is None else argv))
    train.main(flags, variant)


if __name__ == "__main__":
    as_program(main)
