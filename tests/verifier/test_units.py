"""What is taken for the unit of an answer."""

import pytest

from minisoft.verifier.units import is_known, unit


@pytest.mark.parametrize(
    "text, expected",
    [
        (r"5\text{ square miles}", ("5", "mile^2")),
        (r"5\text{ mi}^{2}", ("5", "mile^2")),
        (r"5 \text{km}/\text{h}", ("5", "km/h")),
        ("5 kilometers per hour", ("5", "km/h")),
        (r"2\pi\text{ inches}", (r"2\pi", "in")),
        ("5 L", ("5", "L")),
        ("5cm", ("5", "cm")),
        ("52_8", ("52", "8")),
        ("5 gadgets", ("5", "gadget")),
        ("5x", ("5x", "")),
        ("6 m", ("6 m", "")),
        ("60 m^2", ("60 m^2", "")),
        ("2x miles", ("2x miles", "")),
        (r"5\text{ million}", (r"5\text{ million}", "")),
        ("5 hundred miles", ("5 hundred miles", "")),
    ],
)
def test_unit(text, expected):
    assert unit(text) == expected


def test_known_units():
    assert all(is_known(name) is True for name in ("mile^2", "km/h", "m/s^2"))
    assert all(is_known(name) is False for name in ("gadget", "8"))
