"""Charts are SVG, bear odd values, and escape names."""

import numpy as np

from tests.pages import HOSTILE, harmless
from whence.cache.display import against_compute, bars, tails


def test_tails_bear_odd_values() -> None:
    assert tails(np.zeros(4)) == ""
    assert "polyline" in tails([1e-12])
    assert tails([-3.0, -1.0]).count('class="hinder"') == 1
    assert 'class="help"' not in tails([-3.0, -1.0])


def test_bars_go_to_either_side_of_zero() -> None:
    assert bars([]) == ""
    drawn = bars([("<b>", -1.0), ("c", 0.0)])
    assert "&lt;b&gt;" in drawn
    assert drawn.count('class="hinder"') == drawn.count('class="help"') == 1


def test_methods_against_compute() -> None:
    lines = [("null", 0.5), ("no-op", 6.0)]
    drawn = against_compute([(HOSTILE, 3.0, 1.0), ("b", 3.0, 1.0), ("c", 0.0, 9.0)], lines, HOSTILE, "compute")
    assert drawn.count("<circle") == 3
    assert drawn.count('class="help"') == drawn.count('class="hinder"') == 1
    harmless(drawn)
    assert "<circle" in against_compute([("a", 1.0, 0.0)], [], "", "")  # nothing to compare with, and no size
