r"""The reward of an answer (eq. 11): 100 if it is right, 10 if it is merely boxed, 0 if not even that."""

from functools import cache

RIGHT, BOXED, UNBOXED = 100, 10, 0  # eq. 11


@cache
def _verifier():
    from minisoft.verifier.compare import Verifier  # imported when first needed

    return Verifier()


def score(answer_text: str, gold: str) -> int:
    r"""100, 10 or 0 (eq. 11) for the text after the prefilled `\boxed{`, by one verifier for the whole program, whose child
    ends with it.  Raises InputError if Math-Verify is missing."""
    return _verifier().score(answer_text, gold)
