"""What is taken for the unit of an answer."""

import re

from minisoft.verifier.units import is_known, unit

UNITS = r"""5\text{ square miles} = 5 mile^2;5\text{ mi}^{2} = 5 mile^2;5 L = 5 L
5 \text{km}/\text{h} = 5 km/h;5 kilometers per hour = 5 km/h;2\pi\text{ inches} = 2\pi in;5cm = 5 cm
52_8 = 52 8;5 gadgets = 5 gadget"""
NONE = r"5x;6 m;60 m^2;2x miles;5\text{ million};5 hundred miles"  # the text itself


def test_unit():
    for text, expected in (line.split(" = ") for line in re.split("[;\n]", UNITS)):
        assert unit(text) == tuple(expected.split()), text
    for text in NONE.split(";"):
        assert unit(text) == (text, "")


def test_known_units():
    assert all(is_known(name) is True for name in ("mile^2", "km/h", "m/s^2"))
    assert all(is_known(name) is False for name in ("gadget", "8"))
