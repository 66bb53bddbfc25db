"""What the commands of the laboratory share: flags, errors in one line, results."""

import sys
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path

from minisoft.errors import InputError
from minisoft.io import WEIGHTS, atomic
from minisoft.kinds import COT, TEMPLATE
from minisoft.kinds.options import Option, parse


class NewFile:
    """A type of option: the name of a file to write."""

    def __call__(self, text: str) -> str:
        return text

    def __contains__(self, text: str) -> bool:
        return Path(text).parent.is_dir()

    def __str__(self) -> str:
        return "a file in a folder that exists"


MODEL = [  # a default marked * is the model's own
    Option("model", str, "folder or hub id", str(WEIGHTS / "tiny")),
    Option("data", str, "problems (default tiny *)"),
    TEMPLATE,
    COT,
]
OUT = Option("out", NewFile(), "file.json for the numbers, beside it .md (default: only printed)")


def read(module: str, text: str, rows: list[Option], argv) -> Namespace:
    """The flags of `python -m minisoft.lab.MODULE`; text: its docstring.  Raises InputError."""
    return parse({"flags": rows}, argv, prog=f"python -m minisoft.lab.{module}", description=text)[
        0
    ]


@contextmanager
def one_line(module: str, after: str = ""):
    """What goes wrong in the block ends the process with one line; `after` stands at its end."""
    try:
        yield
    except (InputError, OSError, ImportError) as error:
        sys.exit(f"minisoft.lab.{module}: error: {error}{after}")
    except KeyboardInterrupt:
        sys.exit(f"minisoft.lab.{module}: interrupted{after}")


def show(found: dict, text: str, out: str | None) -> None:
    """Print a result as a table; write it as OUT.json, and the table as OUT.md."""
    print(text)
    if out:
        atomic.write_json(Path(out), found)
        atomic.write_text(Path(out).with_suffix(".md"), text + "\n")
