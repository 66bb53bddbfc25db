r"""The reward of an answer (eq. 11): 100 if right, 10 if merely boxed, 0 if not even that."""

from functools import cache

RIGHT, BOXED, UNBOXED = 100, 10, 0


def reward(boxed: bool, right: bool) -> int:
    """Eq. 11; a right answer is a boxed one."""
    if right:
        return RIGHT
    return BOXED if boxed else UNBOXED


@cache
def _verifier():
    from minisoft.verifier.process import Verifier  # imported when first needed

    return Verifier()


def score(answer_text: str, gold: str) -> int:
    r"""100, 10 or 0 (eq. 11) for the text after the prefilled `\boxed{`.

    One verifier serves the whole program; its child process ends with it.  Raises InputError if
    Math-Verify is missing.
    """
    return _verifier().score(answer_text, gold)
