"""The form of every flag: its name, type, range and help stand once, in a row.

train.py, eval.py and the laboratory have tables of rows, {title: [Option, ...]}; those that decide
how tokens are made, and how much is trained, are in `minisoft.kinds`.  Parsers, ranges, what may
change when a run goes on and what minisoft.json may hold are read from the rows.
"""

import argparse
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from minisoft.errors import InputError, expect

ROOT = Path(__file__).resolve().parents[2]  # of the repository
TINY, HUGE = 1e-30, 1e30  # in float32 what is divided by them is finite


@dataclass(frozen=True)
class Option:
    """A flag, and a field of minisoft.json of the same name.

    type: of a value, bool for a switch; default: None where the help says what holds; kept: may the
    model folder's minisoft.json have another default, shown as *?  resumed: may it differ when a
    run goes on?  nargs, metavar: argparse's.
    """

    name: str  # as an attribute: eval_cot is --eval-cot
    type: Callable
    help: str
    default: object = None
    least: float = -HUGE  # the range of a number, ends included
    most: float = HUGE
    choices: Collection = ()  # such as names of kinds, which may become more
    kept: bool = False
    resumed: bool = False
    nargs: int | str | None = None
    metavar: str | None = None

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    def check(self, value, where: str) -> None:
        """Raises InputError for a value of another type or out of range."""
        if self.choices:
            names = [*self.choices]
            return expect(value in names, where, f"one of {', '.join(names)}", value)
        if self.type not in (int, float):
            return expect(isinstance(value, str), where, "a text", value)
        number = isinstance(value, (int, self.type)) and not isinstance(value, bool)
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (("of at least", self.least), ("of at most", self.most))
            if abs(bound) < HUGE
        ]
        words = f"a {'whole' if self.type is int else 'finite'} number"
        expected = " ".join([words, " and ".join(bounds)]).strip()
        expect(number and self.least <= value <= self.most, where, expected, value)

    def add_to(self, group) -> None:
        """Make it a flag of an argparse group, with None for a default that may be kept."""
        text = self.help.replace("%", "%%")
        if self.type is bool:
            group.add_argument(self.flag, action="store_true", help=text)
            return
        if self.default is not None:
            values = self.default if isinstance(self.default, list) else [self.default]
            shown = " ".join(str(x).removeprefix(f"{ROOT}{os.sep}") for x in values)  # weights/tiny
            text += f" (default {shown}{' *' if self.kept else ''})"
        group.add_argument(
            self.flag,
            type=self.type,
            default=None if self.kept else self.default,
            choices=self.choices or None,
            nargs=self.nargs,
            metavar=self.metavar,
            help=text,
        )


def parse(tables: dict[str, Iterable[Option]], argv, **parser) -> tuple[argparse.Namespace, set]:
    """(all flags, names of those given).  Raises InputError for a number out of its range."""
    made = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, **parser)
    for title, rows in tables.items():
        group = made.add_argument_group(title)
        for row in rows:
            row.add_to(group)
    args = made.parse_args(argv)
    for action in made._actions:  # a second look, without defaults: which flags were given?
        action.default = argparse.SUPPRESS
    given = set(vars(made.parse_args(argv)))
    for row in [row for rows in tables.values() for row in rows if row.type in (int, float)]:
        found = getattr(args, row.name)
        for value in found if isinstance(found, list) else [found]:
            if value is not None:
                row.check(value, row.flag)
    return args, given


def read_pair(text: str, names: Iterable[str], row: Option) -> tuple[str, float]:
    """ "fuzzy=0.01" -> ("fuzzy", 0.01): a value of `row` for one of the names.  Raises
    InputError."""
    name, _, value = text.partition("=")
    expect(name in names, row.flag, f"NAME=NUMBER, NAME one of {', '.join(names)}", text)
    try:
        number = row.type(value)
    except ValueError:
        raise InputError(f"{row.flag}: expected a number, found {text!r}") from None
    row.check(number, f"{row.flag} {name}")
    return name, number
