"""The one exception for bad input, and how other libraries' errors become it."""

from contextlib import contextmanager


class InputError(ValueError):
    """What the user gave cannot be used.  One line: where, what, expected and found."""


def expect(ok, where, expected: str, value) -> None:
    """Raises InputError("where: expected ..., found value") unless `ok`."""
    if not ok:
        raise InputError(f"{where}: expected {expected}, found {value!r:.80}")


@contextmanager
def expecting(expected: str, where, hint: str = ""):
    """Any error in the block becomes InputError("where: expected ..., found: ...hint")."""
    try:
        yield
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise InputError(f"{where}: expected {expected}, found: {message}{hint}") from None
