"""The demo in small: one run computes, the next reads, and a change of the plan computes again."""

import subprocess
import sys
from dataclasses import replace

import pytest

from cache import Store
from whence.corpora import language_reference
from whence.demo import Plan, demo
from whence.language_model import Shape, Training


@pytest.fixture(scope="module")
def plan():
    corpus = language_reference()
    few = replace(corpus, train=corpus.train.select(range(24)))
    shape = Shape(layers=1, width=16, heads=2, context=128, vocabulary=len(corpus.vocabulary))
    return Plan(
        few, shape, Training(epochs=1, batch=8), prompts=("The assert statement", "If <b>x</b>"), shown=3, tokens=4
    )


def test_second_run_reads_what_the_first_computed(plan, tmp_path) -> None:
    first, second = Store(tmp_path / "store"), Store(tmp_path / "store")
    page = demo(first, tmp_path / "a" / "report.html", plan, quiet=True).read_text()
    assert {event.what for event in first.events} >= {"built"}
    again = demo(second, tmp_path / "b.html", plan, quiet=True).read_text()
    assert {event.what for event in second.events} == {"hit"}
    assert {event.key for event in first.events} <= {event.key for event in second.events}
    assert page.split('<section class="facts">')[0] == again.split('<section class="facts">')[0]
    assert "computed now" in page
    assert "computed now" not in again


def test_page_names_what_it_shows(plan, tmp_path) -> None:
    page = demo(Store(tmp_path / "store"), tmp_path / "report.html", plan, quiet=True).read_text()
    assert "assert: The assert statement" in page
    assert "If &lt;b&gt;x&lt;/b&gt;" in page
    assert "sites cover" in page


def test_a_changed_plan_is_another_report(plan, tmp_path) -> None:
    store = Store(tmp_path / "store")
    demo(store, tmp_path / "a.html", plan, quiet=True)
    built = [e for e in store.events if e.what == "built"]
    demo(store, tmp_path / "a.html", replace(plan, shown=2), quiet=True)
    more = [e for e in store.events if e.what == "built"][len(built) :]
    assert [e.kind for e in more] == ["scores"]  # the model, factors and scores are the same


def test_a_warm_run_does_not_import_transformer_lens() -> None:
    code = "import sys, whence.demo; sys.exit('transformer_lens' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
