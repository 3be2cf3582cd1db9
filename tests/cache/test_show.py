"""What people see: every text escaped, both themes readable, tables that sort, pages that need nothing else."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from whence.cache import ArraySpec, DataError, Examples, ResourceError, Store, find_sites
from whence.cache.display.html import (
    SORT,
    Cell,
    axes_or_new,
    facts,
    heat,
    number,
    page,
    picture,
    table,
    write_page,
    written,
)
from whence.cache.retrain.retrained import Retrained

HOSTILE = "<script>alert(1)</script>\"'&</td><img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """Every tag and attribute that a browser would see."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.names: set[str] = set()
        self.loaded: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}
        self.loaded |= {value for name, value in attrs if name in ("src", "href")}

    def handle_data(self, data):
        self.text += data


def harmless(html: str) -> None:
    """No script, no image from elsewhere, and the hostile text is there to be read."""
    seen = Tags(html)
    assert not {"script", "iframe", "link"} & set(seen.tags)
    assert "onerror" not in seen.names
    assert not seen.loaded
    assert HOSTILE[:30] in seen.text


@pytest.mark.parametrize(
    "html",
    [
        table([HOSTILE, "n"], [[HOSTILE, 1.5], [HOSTILE, 2]], HOSTILE).html,
        facts(HOSTILE, [(HOSTILE, HOSTILE), ("n", 3)]).html,
        heat([HOSTILE, " b"], [0.5, -1.0], HOSTILE, HOSTILE).html,
        written(f"{HOSTILE}\n\n| {HOSTILE} | n |\n|---|---|\n| {HOSTILE} | 1 |").html,
        page(HOSTILE, "<p>ours</p>"),
    ],
)
def test_texts_of_the_data_are_escaped(html: str) -> None:
    harmless(html)


def test_objects_of_the_cache_escape_what_they_hold(store: Store, tmp_path) -> None:
    examples = Examples.of({"x": np.ones((2, 3))})
    harmless(Examples(examples.columns, examples.ids, {"title": [HOSTILE, "b"]})._repr_html_())
    entry = store.put("scores", {"what": HOSTILE}, {"values": np.ones(3)}, about={"note": HOSTILE})
    store.name("seen", entry)
    assert "<script" not in entry._repr_html_() + store._repr_html_() + store.work().html
    assert "&lt;script" in entry._repr_html_()
    assert "seen" in str(store.contents_table())
    assert "1 computed, 0 from the cache" in str(store.work())
    again = Store(store.root)
    again.open("scores", {"what": HOSTILE})
    assert "0 computed, 1 from the cache" in str(again.work())
    with store.writer("scores", {"what": "half"}, {"v": ArraySpec((4,), "float32")}, shard_rows=2) as writer:
        writer.write(next(iter(writer.todo())), {"v": np.ones(2, np.float32)})
    assert "2 of 4 rows are there" in store.open("scores", {"what": "half"}, partial=True)._repr_html_()
    assert "partial" in store._repr_html_()


def test_a_bank_says_what_it_holds() -> None:
    masks = np.array([[True, False, True], [True, True, False]])
    bank = Retrained(masks, np.arange(2), np.arange(3), np.arange(4), {"margins": np.ones((2, 4))}, {"recipe": "<b>"})
    assert repr(bank) == "Retrained(2 models of 3 training examples at 4 points: margins)"
    assert "&lt;b&gt;" in bank._repr_html_()
    assert "2 × 4" in bank._repr_html_()


def test_sites_are_a_table() -> None:
    sites = find_sites(torch.nn.Sequential(torch.nn.Linear(3, 2)), "*", quiet=True)
    assert "2 × 4" in sites._repr_html_() or "2 × 3" in sites._repr_html_()
    assert str(sites).splitlines()[0].split() == ["site", "kind", "out", "x", "in", "parameters"]


def test_tables_sort_by_number_and_read_as_text() -> None:
    shown = table(["name", "size"], [["a", Cell("1.0 MB", 1e6)], ["b", Cell("9 B", 9)], ["c", float("nan")]], "Sizes")
    assert re.findall(r'data-k="([^"]+)"', shown.html) == ["1000000.0", "9.0"]
    assert "1.0 MB" in shown.html
    assert str(shown).splitlines() == ["Sizes", "name  size", "a     1.0 MB", "b     9 B", "c"]
    assert shown.html.count("onclick") == 2
    assert "http" not in SORT


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


def test_numbers_for_people() -> None:
    assert [number(v) for v in (1234567, 0.123456, float("nan"), True, "x", np.float32(2))] == [
        "1,234,567", "0.1235", "", "True", "x", "2",
    ]  # fmt: skip


def test_pages_and_pictures(tmp_path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    axes = figure.subplots()
    assert axes_or_new(axes) is axes
    where = write_page(page("T", picture(figure, '"quoted"')), tmp_path / "a" / "b.html")
    assert "color-scheme:light dark" in where.read_text()
    assert (heat(["a"], [1.0], "nats") + table(["x"], [[1]])).save(tmp_path / "c.html").exists()
    with pytest.raises(ResourceError, match="cannot be written"):
        write_page("", tmp_path)
