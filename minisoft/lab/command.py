"""What the commands of the laboratory share: flags, refusals, errors in one line, results."""

import argparse
import sys
from contextlib import contextmanager
from pathlib import Path

from minisoft.errors import InputError
from minisoft.io import WEIGHTS, atomic


def new_file(text: str) -> Path:
    """A file to write.  Refuses one in a folder that is not there."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, found {path}")
    return path


NUMBER, WHOLE, PATH, FILE = {"type": float}, {"type": int}, {"type": Path}, {"type": new_file}
MODEL = {  # a default marked * is the model's own
    "--model": (str(WEIGHTS / "tiny"), "folder or hub id"),
    "--data": (None, "problems (default tiny *)"),
    "--template": (None, "file with the prompt, QUESTION in it, or chat (default the paper's *)"),
    "--cot": (None, "CoT budget in tokens (default 128 *)", WHOLE),
}
OUT = {"--out": (None, "file.json for the numbers, beside it .md (default: only printed)", FILE)}


def parser(module: str, text: str) -> argparse.ArgumentParser:
    """Of `python -m minisoft.lab.MODULE`; text: its docstring."""
    raw = argparse.RawDescriptionHelpFormatter
    name = f"python -m minisoft.lab.{module}"
    return argparse.ArgumentParser(prog=name, description=text, formatter_class=raw)


def add_flags(parser: argparse.ArgumentParser, flags: dict[str, tuple]) -> None:
    """flags: {flag: (default, help) or (default, help, how argparse reads it)}"""
    for name, (default, text, *how) in flags.items():
        if default is not None:
            text += f" (default {default})"
        options = how[0] if how else {}
        parser.add_argument(name, default=default, help=text.replace("%", "%%"), **options)


def read(
    parser: argparse.ArgumentParser, flags: dict[str, tuple], argv, **least: int
) -> argparse.Namespace:
    """The command line.  Refuses flags with less than the number beside their names."""
    add_flags(parser, flags)
    args = parser.parse_args(argv)
    for name, number in least.items():
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < number:
                flag = name.replace("_", "-")
                parser.error(f"--{flag}: expected at least {number}, found {value}")
    return args


@contextmanager
def one_line(module: str, after: str = ""):
    """What goes wrong in the block ends the process with one line; `after` stands at its end."""
    try:
        yield
    except (InputError, OSError, ImportError) as error:
        sys.exit(f"minisoft.lab.{module}: error: {error}{after}")
    except KeyboardInterrupt:
        sys.exit(f"minisoft.lab.{module}: interrupted{after}")


def show(found: dict, text: str, out: Path | None) -> None:
    """Print a result as a table; write it as OUT.json, and the table as OUT.md."""
    print(text)
    if out:
        atomic.write_json(out, found)
        atomic.write_text(out.with_suffix(".md"), text + "\n")
