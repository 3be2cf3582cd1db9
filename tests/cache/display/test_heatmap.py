"""Tokens are shaded by sign and strength, in both themes, and escaped."""

import re

import pytest

from tests.pages import HOSTILE, harmless
from whence.cache import DataError
from whence.cache.display import heat, shaded


def test_texts_of_the_data_are_escaped() -> None:
    harmless(heat([HOSTILE, " b"], [0.5, -1.0], HOSTILE, HOSTILE).html)


def test_heat_washes_by_sign_and_strength() -> None:
    shown = heat(["a", "b", "c", "d"], [4.0, -1.0, float("nan"), 0.0], "nats", "Tokens")
    assert re.findall(r"rgb\((\d+) \d+ \d+ / ([\d.]+)\)", shown.html) == [("20", "0.620"), ("226", "0.310")]
    assert 'title="-1 nats"' in shown.html
    # nothing sets a colour of writing or an opaque ground: the reader's theme stays
    assert "color:" not in shown.html.replace("background", "")
    assert str(shown) == "Tokens\nabcd\n  +4 nats  'a'\n  -1 nats  'b'"
    assert "a" in heat(["a"], [0.0], "nats").html
    with pytest.raises(DataError, match="1 tokens"):
        heat(["a"], [1.0, 2.0], "nats")


def test_shades_share_one_scale() -> None:
    assert re.findall(r"/ ([\d.]+)\)", shaded(["a", "b"], [1.0, None], most=4.0)) == ["0.310"]
    assert shaded(["<", "b"], [None, 0.0]) == "&lt;b"
