"""One dialect of flags: what a command line says, what its ranges refuse, what --help shows."""

import re
from pathlib import Path

import pytest
from conftest import refuses
from runs import python

import eval
import train
from minisoft.errors import InputError
from minisoft.kinds import KINDS
from minisoft.kinds.options import COUNT, SIZE, Number, Option, parse, read_pair
from minisoft.lab import bench, gradient, study, tables, thought, why

ROWS = [
    Option("out", Path, "a folder"),
    Option("some_rows", COUNT, "10 % of them", [2], nargs="+"),
    Option("lr", SIZE, "peak", 0.5, kept=True),
    Option("betas", Number(float, 0, below=1), "AdamW", [0.9, 0.95], nargs=2),
    Option("top_p", Number(float, 0, most=1), "probability"),
    Option("tokens", str, "kind", "soft", choices=KINDS),
    Option("list", bool, "no more", False),
]


def read(line, rows=ROWS):
    return parse({"flags": rows}, line.split(), prog="it")


def test_flags_that_are_not_given_have_their_defaults_and_a_models_none():
    args, given = read("")
    assert not given and args.out is None and args.list is False
    assert (args.some_rows, args.lr, args.betas, args.tokens) == ([2], None, [0.9, 0.95], "soft")


def test_flags_that_are_given_are_read_by_their_types():
    args, given = read("--some-rows 1 3 --betas 0 0.5 --lr 1 --out x --list --tokens hard")
    assert given == {"some_rows", "betas", "lr", "out", "list", "tokens"}
    assert (args.some_rows, args.betas, args.lr) == ([1, 3], [0.0, 0.5], 1.0)
    assert (args.out, args.list, args.tokens) == (Path("x"), True, "hard")
    args, given = read("a b", [Option("paths", Path, "", nargs="+", positional=True)])
    assert args.paths == [Path("a"), Path("b")]


# what is read, and found; the end of betas is no part of their range
OUT_OF_RANGE = """--some-rows 1 0 = 0; --lr 0 = 0.0; --lr inf = inf; --betas 0.9 1 = 1.0
--some-rows 1.5 = '1.5'; --lr nan = nan; --top-p 1.01 = 1.01; --betas -0.1 0 = -0.1
--tokens warm = 'warm'; --out= = ''"""


def test_what_is_out_of_its_range_is_refused_by_name(capsys):
    for row in re.split("[;\n]", OUT_OF_RANGE):
        line, found = row.split(" = ")
        flag = line.split()[0].removesuffix("=")
        with pytest.raises(InputError, match=f"^{flag}: expected .*, found {found}$"):
            read(line)
    for line in ("--some", "--betas 1", "--what 3", "x", "--lr"):  # which argparse refuses
        refuses(line, line.split()[0], by=read)
    assert capsys.readouterr() == ("", "")
    assert read("--top-p 1")[0].top_p == 1 and read("--top-p 0")[0].top_p == 0


@pytest.mark.parametrize("text", ["soft", "warm=1", "soft=x", "soft=0", "soft="])
def test_bad_pairs_are_refused(text):
    row = Option("tau", SIZE, "")
    assert read_pair("soft=0.5", KINDS, row) == ("soft", 0.5)
    refuses(text, "--tau", by=lambda text: read_pair(text, KINDS, row))


def test_a_flag_that_is_none_ends_a_program_with_status_1_and_one_line():
    """As every other error does; argparse itself would show the usage, and end with 2."""
    done = python("eval.py", "--sampels", "3")
    message = "eval.py: error: unrecognized arguments: --sampels 3\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


def test_what_may_differ_when_a_run_goes_on():
    """And not one flag that decides a number of the run."""
    fixed = {row.name for rows in train.FLAGS.values() for row in rows} - train.RESUMED
    assert {"steps", "device", "micro_batch", "shard", "validate_every", "out"} <= train.RESUMED
    assert {"lr", "seed", "dtype", "cot", "data", "tokens", "group", "betas"} <= fixed


LAB = [bench, gradient, study, tables, thought, why]


@pytest.mark.parametrize("module", [train, eval, *LAB])
def test_help_is_the_manual_and_has_the_defaults_that_hold(module, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    text = capsys.readouterr().out
    assert not stop.value.code
    if module in LAB:
        assert f"usage: python -m {module.__name__}" in text and module.__doc__[:40] in text
        assert all(row.flag in text or row.positional for row in module.FLAGS)
    else:
        assert "(default" in text and "section" in text
    for default in ("weights/tiny", "32", "512 *") if module is eval else ():
        assert f"(default {default})" in " ".join(text.split())
