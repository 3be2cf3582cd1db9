"""What stores, entries, examples, banks and sites show of themselves; every text of the data is escaped."""

import numpy as np
import torch

from tests.pages import HOSTILE, harmless
from whence.cache import ArraySpec, Examples, Store, find_sites
from whence.cache.retrain.retrained import Retrained


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
    assert str(sites).splitlines()[0].split() == ["site", "kind", "out", "×", "in", "parameters"]
