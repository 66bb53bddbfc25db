"""What the READMEs print, name and link to is so."""

import contextlib
import importlib
import io
import re
import types
from unittest.mock import patch

import pytest
from runs import ROOT

from minisoft import kinds

WALK = ROOT / "minisoft" / "README.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def pages():
    """Every Markdown page of the repository."""
    folders = (ROOT / name for name in ("minisoft", "tests", "weights"))
    below = (page for folder in folders for page in folder.rglob("*.md"))
    return sorted({*ROOT.glob("*.md"), *below})


def walk():
    """[(Python block, what the page says that it prints)] of the walk-through."""
    blocks = BLOCK.findall(WALK.read_text("utf-8"))
    kinds = [kind for kind, _ in blocks]
    assert kinds == ["python", "text"] * (len(blocks) // 2), kinds
    return [(blocks[i][1], blocks[i + 1][1]) for i in range(0, len(blocks), 2)]


def same_but_for_rounding(printed, shown):
    """Equal texts, where a number with decimals may differ by one and a half in its last place."""
    if NUMBER.sub("#", printed) != NUMBER.sub("#", shown):
        return False
    for a, b in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        decimals = len(b.partition(".")[2])
        off = 1.5 * 10**-decimals if decimals else 0
        if abs(float(a) - float(b)) > off:
            return False
    return True


@pytest.fixture
def kinds_as_they_were():
    with patch.dict(kinds.KINDS), patch.dict(kinds.TAU):
        yield


def test_the_walk_through_prints_what_the_page_shows(monkeypatch, kinds_as_they_were):
    monkeypatch.chdir(ROOT)
    space = types.ModuleType("walk").__dict__
    for number, (block, shown) in enumerate(walk()):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, f"{WALK.name}, block {number}", "exec"), space)
        printed = out.getvalue()
        assert same_but_for_rounding(printed, shown), f"block {number} prints:\n{printed}"


def test_rounding():
    assert same_but_for_rounding("a 1.25, 3", "a 1.26, 3")
    assert not same_but_for_rounding("a 1.25, 3", "a 1.28, 3")
    assert not same_but_for_rounding("a 1.25, 3", "a 1.25, 4")
    assert not same_but_for_rounding("a 1.25", "b 1.25")


def test_every_function_of_the_equations_table_exists():
    text = WALK.read_text("utf-8")
    table = text.partition("## Equations and functions")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 10
    for row in rows:
        names = re.findall(r"`([A-Za-z_.]+)`", row)
        assert names, row
        for name in names:
            assert find(name) is not None, name


def find(name):
    """The object called `module.[module.]Class.[attribute]` below minisoft."""
    parts = name.split(".")
    thing = importlib.import_module("minisoft")
    path = "minisoft"
    while parts and isinstance(thing, types.ModuleType):
        part = parts.pop(0)
        path = f"{path}.{part}"
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(path)
        thing = getattr(thing, part)
    for part in parts:
        thing = getattr(thing, part)
    return thing


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_is_longer_than_100_columns(page):
    lines = page.read_text("utf-8").splitlines()
    assert [(i, line) for i, line in enumerate(lines, 1) if len(line) > 100] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(page.read_text("utf-8")):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            goal = (page.parent / path).resolve() if path else page
            assert goal.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(goal), f"{page}: {target}"


def anchors(page):
    """The names by which the headings of a page can be linked to, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_test_file_that_is_named_exists():
    text = (ROOT / "tests" / "README.md").read_text("utf-8")
    names = re.findall(r"`((?:\w+/)*test_\w+\.py)`", text)
    assert names and all((ROOT / "tests" / name).is_file() for name in names), names
