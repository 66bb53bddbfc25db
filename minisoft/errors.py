"""The one exception for bad input."""


class InputError(ValueError):
    """Something the user gave cannot be used.  The message is one line: where, what, expected and found."""
