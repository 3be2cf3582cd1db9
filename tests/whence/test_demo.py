"""The demo in small: one run computes, the next reads, and a change of the plan computes again."""

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr

from whence.attrib import report
from whence.cache import Examples, Store
from whence.corpora import language_reference
from whence.demo import Plan, demo
from whence.demo_atoms import AtomsPlan
from whence.demo_digits import CondensingPlan, ForgettingPlan
from whence.language_model import Shape, Training

pytestmark = pytest.mark.filterwarnings("ignore:p95")  # eight models show nothing, and the evaluation says so


@pytest.fixture(scope="module")
def plan():
    corpus = language_reference()
    few = replace(corpus, train=corpus.train.select(range(24)))
    shape = Shape(layers=2, width=16, heads=2, context=128, vocabulary=len(corpus.vocabulary))
    return Plan(
        few,
        shape,
        Training(epochs=1, batch=8),
        prompts=("The assert statement", "If <b>x</b>"),
        shown=3,
        tokens=4,
        atoms=AtomsPlan("blocks.1.mlp.fc_in", size=48, steps=4, unexplained=0.05, shown=5, built=2),
        forgetting=ForgettingPlan(models=8, epochs=1, steps=4),
        condensing=CondensingPlan(outer=2, epochs=2, networks=2, sets=2),
    )


@pytest.fixture(scope="module")
def first(plan, tmp_path_factory):
    """One cold run: where it is kept, what it did, and its page."""
    root = tmp_path_factory.mktemp("demo")
    store = Store(root / "store")
    page = demo(store, root / "a" / "report.html", plan, quiet=True)
    return root / "store", store.events, page


def test_second_run_reads_what_the_first_computed(plan, first, tmp_path) -> None:
    root, events, page = first
    second = Store(root)
    again = demo(second, tmp_path / "b.html", plan, quiet=True).read_text()
    assert {event.what for event in events} >= {"built"}
    assert {event.what for event in second.events} == {"hit"}
    assert {event.key for event in events} <= {event.key for event in second.events}
    assert page.read_text().split('<section class="facts">')[0] == again.split('<section class="facts">')[0]
    assert ">computed now</td>" in page.read_text()
    assert ">computed now</td>" not in again


def test_page_names_what_it_shows(first) -> None:
    page = first[2].read_text()
    assert "assert: The assert statement" in page
    assert "If &lt;b&gt;x&lt;/b&gt;" in page
    assert "sites cover" in page
    assert "Checks of the model" in page
    assert "batching changes nothing" in page
    for name in ("oracles (null)", "no-op", "DMM", "condensed", "chosen by influence", "How long each part took"):
        assert name in page


class Page(HTMLParser):
    """Anchors, links, and what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.viewport = ""

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.fetched += [found[name] for name in ("src", "srcset", "data") if name in found]
        self.fetched += [tag] if tag in ("script", "link", "iframe", "object", "embed") else []
        self.viewport = found.get("content", "") if found.get("name") == "viewport" else self.viewport


def test_links_resolve_and_nothing_is_fetched(first) -> None:
    html = first[2].read_text()
    page = Page()
    page.feed(html)
    assert len(set(page.ids)) == len(page.ids)
    assert {link for link in page.links if link.removeprefix("#") not in page.ids} == set()
    assert {"#atoms", "#forgetting", "#condensing", "#cache"} <= set(page.links)
    atoms = {link for link in page.links if re.fullmatch(r"#a\d+", link)}
    passages = {link for link in page.links if re.fullmatch(r"#q-?\d+-p-?\d+", link)}
    assert atoms
    assert passages
    assert page.viewport.startswith("width=device-width")
    assert all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert not re.search(r"@import|url\(|https?://", html)
    assert "prefers-color-scheme: dark" in html


def test_every_part_has_its_heading(first) -> None:
    page = first[2].read_text()
    heads = re.findall(r'<h1 class="part" id="(\w+)"', page)
    assert heads == ["atoms", "forgetting", "condensing", "cache"]


def test_a_changed_plan_is_another_report(plan, first, tmp_path) -> None:
    store = Store(first[0])
    demo(store, tmp_path / "a.html", replace(plan, shown=2), quiet=True)
    built = [e for e in store.events if e.what == "built"]
    # scores of the passages that are shown now; the model, factors, activations and dictionary are the same
    assert {e.kind for e in built} <= {"checks", "report", "scores"}
    parts = {store.header(e.kind, e.key).inputs.get("what") for e in built}
    assert {part for part in parts if part and part.startswith("demo")} == {"demo: influence", "demo: atoms"}


def test_the_report_does_not_grow_with_the_data(plan) -> None:
    """It has the passages that it shows, and a curve of a fixed number of points."""
    corpus, sizes = plan.corpus, []
    for count in (1_000, 10_000):
        rows = np.arange(count) % len(corpus.train)
        about = {name: [values[n] for n in rows] for name, values in corpus.train.about.items()}
        texts = Examples({"input_ids": [corpus.train.columns["input_ids"][n] for n in rows]}, np.arange(count), about)
        queries = corpus.queries.select([0])
        values = np.random.default_rng(0).normal(size=(1, count))
        coords = {"query": queries.ids, "train": texts.ids}
        scores = xr.DataArray(values, coords, ("query", "train"), attrs={"units": "nats", "method": "ekfac"})
        sizes.append(len(report(scores, replace(corpus, train=texts, queries=queries)).html()))
    assert sizes[1] < 1.1 * sizes[0]


def test_a_warm_run_does_not_import_transformer_lens() -> None:
    code = "import sys, whence.demo; sys.exit('transformer_lens' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
