"""The form of every flag, a row each, from which parsers, ranges and what minisoft.json may hold
are read; rows of how tokens are made, and how much is trained, are in `minisoft.kinds`."""

import argparse
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from minisoft.errors import InputError, expect

ROOT = Path(__file__).resolve().parents[2]  # of the repository
TINY, HUGE = 1e-30, 1e30  # in float32 what is divided by them is finite


@dataclass(frozen=True)
class Number:
    """A type of option: the numbers of a range, `below` not included."""

    type: Callable
    least: float = -HUGE
    most: float = HUGE
    below: float = HUGE

    def __call__(self, text: str) -> int | float:
        return self.type(text)

    def __contains__(self, value) -> bool:
        number = isinstance(value, (int, self.type)) and not isinstance(value, bool)
        return number and self.least <= value <= self.most and value < self.below

    def __str__(self) -> str:
        ends = {"of at least": self.least, "of at most": self.most, "below": self.below}
        bounds = [f"{word} {end:g}" for word, end in ends.items() if abs(end) < HUGE]
        name = f"a {'whole' if self.type is int else 'finite'} number"
        return f"{name} {' and '.join(bounds)}".strip()


COUNT = Number(int, 1)
NATURAL = Number(int, 0)
SIZE = Number(float, TINY)
SHARE = Number(float, TINY, 1)


@dataclass(frozen=True)
class Option:
    """A flag, and a field of minisoft.json of the same name; type: str, Path, bool for a switch, or
    what reads and contains values, as a Number; default: None where the help says it; kept: may
    minisoft.json have another (shown as *)?"""

    name: str  # as an attribute: eval_cot is --eval-cot
    type: Callable
    help: str
    default: object = None
    choices: Collection = ()  # such as names of kinds, which may become more
    kept: bool = False
    nargs: int | str | None = None
    metavar: str | None = None
    positional: bool = False

    @property
    def flag(self) -> str:
        return self.name if self.positional else f"--{self.name.replace('_', '-')}"

    def check(self, value, where: str) -> None:
        """Raises InputError for a value of another type or out of range."""
        if self.choices:
            names = [*self.choices]
            expect(value in names, where, f"one of {', '.join(names)}", value)
        elif isinstance(self.type, type):
            expect(isinstance(value, self.type), where, "a text", value)
        else:
            expect(value in self.type, where, str(self.type), value)

    def read(self, text: str | None, where: str = ""):
        """The value that a text stands for.  Raises InputError."""
        try:
            value = self.type(text)
        except (TypeError, ValueError):
            value = text
        self.check(value, where or self.flag)
        expect(text != "", where or self.flag, "a value", text)  # Path("") would be the folder here
        return value

    def add_to(self, group) -> None:
        """Make it a flag of an argparse group."""
        text = self.help.replace("%", "%%")
        if self.type is bool:
            group.add_argument(self.flag, action="store_true", help=text)
            return
        if self.default is not None:
            values = self.default if isinstance(self.default, list) else [self.default]
            shown = " ".join(str(x).removeprefix(f"{ROOT}{os.sep}") for x in values)  # weights/tiny
            text += f" (default {shown}{' *' if self.kept else ''})"
        metavar = self.metavar or (f"{{{','.join(self.choices)}}}" if self.choices else None)
        group.add_argument(self.flag, nargs=self.nargs, metavar=metavar, help=text)


DEVICE = Option("device", str, "cpu or cuda (default cuda where there is one)")


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line and no usage, as of all else that cannot be used."""
        raise InputError(message.removeprefix("argument "))


def parse(tables: dict[str, Iterable[Option]], argv, **parser) -> tuple[argparse.Namespace, set]:
    """(all flags, names of those given).  Raises InputError."""
    form = argparse.RawDescriptionHelpFormatter
    made = Parser(formatter_class=form, argument_default=argparse.SUPPRESS, **parser)
    for title, rows in tables.items():
        group = made.add_argument_group(title)
        for row in rows:
            row.add_to(group)
    given = vars(made.parse_args(argv))
    rows = {row.name: row for rows in tables.values() for row in rows}
    args = {name: None if row.kept else row.default for name, row in rows.items()}
    for name, value in given.items():
        read = rows[name].read
        args[name] = [read(x) for x in value] if isinstance(value, list) else read(value)
    return argparse.Namespace(**args), {*given}


def read_pair(text: str, names: Iterable[str], row: Option) -> tuple[str, float]:
    """ "fuzzy=0.01" -> ("fuzzy", 0.01), the number by `row`.  Raises InputError."""
    name, equals, value = text.partition("=")
    known = equals and name in names
    expect(known, row.flag, f"NAME=NUMBER, NAME one of {', '.join(names)}", text)
    return name, row.read(value, f"{row.flag} {name}")
