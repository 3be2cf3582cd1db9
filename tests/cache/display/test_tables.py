"""Tables sort by number, read as text, and escape what they show."""

import re

import numpy as np
import pytest

from tests.pages import HOSTILE, Tags, harmless
from whence.cache.display import Cell, facts, markdown, number, table, written
from whence.cache.display.tables import SORT


@pytest.mark.parametrize(
    "html",
    [
        table([HOSTILE, "n"], [[HOSTILE, 1.5], [HOSTILE, 2]], HOSTILE).html,
        table([HOSTILE], [[Cell(HOSTILE, 1.0)]], sortable=False).html,
        facts(HOSTILE, [(HOSTILE, HOSTILE), ("n", 3)]).html,
        written(f"{HOSTILE}\n\n| {HOSTILE} | n |\n|---|---|\n| {HOSTILE} | 1 |").html,
    ],
)
def test_texts_of_the_data_are_escaped(html: str) -> None:
    harmless(html)


def test_tables_sort_by_number_and_read_as_text() -> None:
    shown = table(["name", "size"], [["a", Cell("1.0 MB", 1e6)], ["b", Cell("9 B", 9)], ["c", float("nan")]], "Sizes")
    assert re.findall(r'data-k="([^"]+)"', shown.html) == ["1000000.0", "9.0"]
    assert "1.0 MB" in shown.html
    assert str(shown).splitlines() == ["Sizes", "name  size", "a     1.0 MB", "b     9 B", "c"]
    assert shown.html.count("onclick") == 2
    assert "http" not in SORT


def test_a_table_without_scripts_or_head() -> None:
    plain = table((), [("a", "1"), ("b", "2")], sortable=False)
    assert not any(name.startswith("on") for name in Tags(plain.html).names)
    assert "thead" not in plain.html
    assert str(plain).splitlines() == ["a  1", "b  2"]
    assert "onclick" not in table(["x"], [[1]], sortable=False).html


def test_the_same_cells_as_markdown() -> None:
    assert markdown(["a", "b"], [["x", Cell("1 %", 1.0)]]) == "| a | b |\n|---|---|\n| x | 1 % |"


def test_numbers_as_text() -> None:
    assert [number(v) for v in (1234567, 0.123456, float("nan"), True, "x", np.float32(2))] == [
        "1,234,567", "0.1235", "", "True", "x", "2",
    ]  # fmt: skip
