"""What the commands of the laboratory share: flags, errors in one line, results."""

import sys
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path

from minisoft.errors import InputError, expect, expecting
from minisoft.io import WEIGHTS, atomic
from minisoft.kinds import COT, TEMPLATE
from minisoft.kinds.options import Option, parse
from minisoft.run.world import keep_memory

MODEL = [  # a default marked * is the model's own
    Option("model", str, "folder or hub id", str(WEIGHTS / "tiny")),
    Option("data", str, "problems (default tiny *)"),
    TEMPLATE,
    COT,
]
EARLIER = "no such file, or one of an earlier call"
OUT = Option("out", Path, "file.json for the numbers, beside it .md (default: only printed)")


def read(module: str, text: str, rows: list[Option], argv) -> Namespace:
    """The flags of `python -m minisoft.lab.MODULE`; text: its docstring.  Raises InputError."""
    named = {"prog": f"python -m minisoft.lab.{module}", "description": text}
    return parse({"flags": rows}, argv, **named)[0]


def split(argv) -> tuple[list[str], list[str]]:
    """The words of a command line (None: of this process) before -- and after it."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


@contextmanager
def one_line(module: str, after: str = ""):
    """What goes wrong in the block ends the process with one line; `after` stands at its end."""
    try:
        yield
    except (InputError, OSError, ImportError) as error:
        sys.exit(f"minisoft.lab.{module}: error: {error}{after}")
    except KeyboardInterrupt:
        sys.exit(f"minisoft.lab.{module}: interrupted{after}")


def check_written(out: Path, table) -> None:
    """Raises InputError unless OUT.json and .md are not there, or of an earlier call (`table`)."""
    expect(out.suffix == ".json" and out.parent.is_dir(), "--out", "a .json in a folder", str(out))
    with expecting(EARLIER, out):
        is_ours = out.exists() and table(atomic.read_json(out))
    beside = out.with_suffix(".md")
    expect(is_ours or not beside.exists(), beside, EARLIER, beside.name)


def measure(module: str, text: str, rows: list[Option], argv, work, table) -> None:
    """The tool MODULE: prints table(work(flags)), and writes the numbers as OUT.json, the table as
    OUT.md."""
    with one_line(module):
        args = read(module, text, rows, argv)
        if args.out:
            check_written(args.out, table)
        keep_memory()
        found = work(args)
        print(table(found))
        if args.out:
            atomic.write_json(args.out, found)
            atomic.write_text(args.out.with_suffix(".md"), table(found) + "\n")
