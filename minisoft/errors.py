"""The one exception for bad input, and how other libraries' errors become it."""

from contextlib import contextmanager


class InputError(ValueError):
    """Something the user gave cannot be used.  The message is one line: where, what, expected and found."""


@contextmanager
def expecting(what: str, where, hint: str = ""):
    """Any error in the block becomes InputError("where: expected what, found: ..."), on one line, hint at its end."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{where}: expected {what}, found: {' '.join(str(error).split())[:300]}{hint}") from None
