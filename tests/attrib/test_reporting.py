"""The influence report: escaped, self-contained, complete, and the same after being stored."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray

from whence.attrib import report
from whence.attrib.reporting import Report, Table
from whence.attrib.show import shown_passages
from whence.cache import DataError, ResourceError
from whence.corpora import Corpus, Vocabulary, digits
from whence.corpora.corpus import query_examples, ragged, stable_ids

NASTY = '<script>alert("x")</script> & <img src=x onerror=y>'


def corpus() -> Corpus:
    texts = [f"passage {n} {'says ' * (n % 5)}{NASTY if n == 3 else 'so'}" for n in range(20)]
    words = Vocabulary.byte_pairs(texts, 300)
    from whence.cache import Examples

    about = {"title": [f"title {n} {NASTY if n == 3 else ''}" for n in range(20)], "text": texts}
    train = Examples(ragged([words.encode(t) for t in texts]), stable_ids(texts), about)
    return Corpus("test", train, query_examples(["what </p> says", "who"], [" so", " it"], words), words)


def scores_of(docs: Corpus, sites: int = 3) -> xarray.DataArray:
    values = np.random.default_rng(0).normal(size=(2, 20, sites)) * 1e-3
    values[0, 3] = 0.1  # the nasty one comes first
    return xarray.DataArray(
        values,
        dims=("query", "train", "site"),
        coords={
            "query": docs.queries.ids,
            "train": docs.train.ids,
            "site": [f"blocks.{m}.mlp" for m in range(sites)],
        },
        attrs={"method": "ekfac", "damping": "0.1 relative"},
    )


def tokens_of(docs: Corpus, scores: xarray.DataArray) -> xarray.DataArray:
    seen = docs.train.select(shown_passages(scores))
    values = np.random.default_rng(1).normal(size=(2, len(seen), int(seen.lengths.max()))) * 1e-4
    coords = {"query": docs.queries.ids, "train": seen.ids}
    return xarray.DataArray(values, dims=("query", "train", "position"), coords=coords)


def built() -> tuple[Corpus, Report]:
    docs = corpus()
    scores = scores_of(docs)
    tables = [Table(title=f"facts {NASTY}", rows=[[NASTY, "1"]], head=["name", "value"], note=NASTY)]
    return docs, report(scores, docs, tokens=tokens_of(docs, scores), title=NASTY, lead=NASTY, tables=tables)


class Strict(HTMLParser):
    """Collects tags and attributes, and checks that tags nest."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_no_text_of_the_data_becomes_markup() -> None:
    _, page = built()
    parser = Strict()
    parser.feed(page.html())
    assert parser.open == []
    tags = [tag for tag, _ in parser.tags]
    assert "script" not in tags
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attrs in parser.tags for name in attrs)


def test_nothing_is_fetched() -> None:
    _, page = built()
    html = page.html()
    assert not re.search(r"https?://|@import|url\(|<link|src=(?!x)", html.replace("src=x", ""))
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_what_helps_comes_first_and_tokens_join_to_the_passage() -> None:
    docs, page = built()
    first = page.queries[0]
    assert first["helping"][0]["id"] == docs.train.ids[3]
    assert first["helping"][0]["nats"] == pytest.approx(0.3)
    assert [p["rank"] for p in first["helping"]] == list(range(1, len(first["helping"]) + 1))
    assert (
        first["helping"][0]["nats"]
        >= first["helping"][-1]["nats"]
        > 0
        > first["hindering"][-1]["nats"]
        >= first["hindering"][0]["nats"]
    )
    assert "".join(first["helping"][0]["tokens"]) == docs.train.about["text"][3]
    assert first["helping"][0]["token_nats"][0] is None  # nothing predicts the first token
    assert len(first["tail"]) == 20
    assert 0 < first["top_share"] <= 1
    assert (first["prompt"], first["completion"]) == ("what </p> says", " so")
    assert sum(nats for _, nats in first["sites"]) == pytest.approx(sum(p["nats"] for p in first["helping"]), rel=1e-6)


def test_a_token_shows_the_influence_of_predicting_it() -> None:
    docs = corpus()
    scores = scores_of(docs)
    tokens = tokens_of(docs, scores)
    tokens.values[:] = 0
    tokens.values[0, :, 2] = 1.0
    shown = report(scores, docs, tokens=tokens).queries[0]["helping"][0]
    assert [k for k, nats in enumerate(shown["token_nats"]) if nats] == [3]
    assert shown["one_token"]


def test_queries_carry_their_log_probability_and_what_is_impossible() -> None:
    docs = corpus()
    scores = scores_of(docs)
    marks = scores.sum("site").values > 0.2
    scores = scores.assign_coords(logprob=("query", [-0.2, -3.5]), impossible=(("query", "train"), marks))
    page = report(scores.assign_attrs(warning="1 change is impossible"), docs)
    assert [q["logprob"] for q in page.queries] == [-0.2, -3.5]
    assert [p["impossible"] for p in page.queries[0]["helping"]] == [True] + [False] * 7
    html = page.html()
    assert "1 change is impossible" in html
    assert ">impossible</span>" in html
    assert f"<code>{docs.train.ids[3]}</code>" in html  # whole, so that it can be copied
    assert '"warning": "1 change is impossible"' in page.to_json()


def test_a_report_of_an_earlier_version_is_drawn() -> None:
    _, page = built()
    stored = json.loads(page.to_json())
    del stored["warning"]
    for query in stored["queries"]:
        del query["logprob"]
        for passage in [*query["helping"], *query["hindering"]]:
            del passage["impossible"]
    assert "log-probability -" not in Report.from_json(json.dumps(stored)).html()


def test_it_survives_being_stored() -> None:
    _, page = built()
    assert Report.from_json(page.to_json()).to_json() == page.to_json()
    assert Report.from_json(page.to_json()).html() == page.html()


def test_without_sites_tokens_or_text() -> None:
    data = digits()
    docs = Corpus("digits", data.train.select(range(30)), data.queries.select(range(2)))
    scores = xarray.DataArray(
        np.random.default_rng(0).normal(size=(2, 30)),
        dims=("query", "train"),
        coords={"query": docs.queries.ids, "train": docs.train.ids},
    )
    page = report(scores, docs)
    assert page.queries[0]["sites"] == []
    assert page.queries[0]["helping"][0]["title"].startswith("a handwritten")
    assert "<svg" in page.html()


def test_other_ids_and_nan_are_refused() -> None:
    docs = corpus()
    scores = scores_of(docs)
    with pytest.raises(DataError, match="not among"):
        report(scores.assign_coords(train=np.arange(20)), docs)
    scores.values[0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        report(scores, docs)


def test_many_sites_are_drawn_by_block() -> None:
    docs = corpus()
    scores = scores_of(docs, 60).assign_coords(site=[f"blocks.{m // 6}.part{m % 6}" for m in range(60)])
    bars = report(scores, docs).queries[0]["sites"]
    assert [name for name, _ in bars] == [f"blocks.{b}" for b in range(10)]


def test_a_place_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        built()[1].save(tmp_path / "file" / "report.html")
