"""What the commands of the laboratory have in common: help, refused flags, errors in one line."""

import argparse
import sys
from contextlib import contextmanager

from minisoft.errors import InputError


def parser(module: str, text: str) -> argparse.ArgumentParser:
    """Of `python -m minisoft.lab.MODULE`; text: its docstring."""
    raw = argparse.RawDescriptionHelpFormatter
    name = f"python -m minisoft.lab.{module}"
    return argparse.ArgumentParser(prog=name, description=text, formatter_class=raw)


def expect_least(parser: argparse.ArgumentParser, args: argparse.Namespace, **least: int) -> None:
    """Refuses flags that were given with less than the number beside their names."""
    for name, number in least.items():
        value = getattr(args, name)
        if value is not None and value < number:
            flag = name.replace("_", "-")
            parser.error(f"--{flag}: expected at least {number}, found {value}")


def expect_folder(parser: argparse.ArgumentParser, flag: str, path) -> None:
    """Refuses a file to write, if any, in a folder that is not there."""
    if path and not path.parent.is_dir():
        parser.error(f"{flag}: expected a file in a folder that exists, found {path}")


@contextmanager
def one_line(module: str, after: str = "", resumes: bool = False):
    """What goes wrong in the block ends the process with one line; `after` stands at its end."""
    try:
        yield
    except (InputError, OSError, ImportError) as error:
        sys.exit(f"minisoft.lab.{module}: error: {error}{after}")
    except KeyboardInterrupt:
        goes_on = "; the same command goes on" if resumes else ""
        sys.exit(f"minisoft.lab.{module}: interrupted{goes_on}{after}")
