"""The compressed index and the lexical prefilters, against exact scores and the formulas written out."""

import numpy as np
import pytest

import attrib
from attrib import EKFAC, FitOptions
from attrib.index import Hits, Sketch, build_index, plan_sketch, recall_of, rerank
from attrib.prefilter import RULES, candidates, lexical_scores, recall_by_share
from cache import DataError, Examples, Store, UsageError
from tests import cases

QUIET = FitOptions(quiet=True)


@pytest.fixture(scope="module")
def case() -> cases.Case:
    found = cases.build("attention")
    return cases.Case("index", found.model.float(), cases.sequences(40, seed=1), found.task, {"pattern": ["qkv", "up"]})


@pytest.fixture(scope="module")
def factors(case: cases.Case) -> attrib.Factors:
    return EKFAC().fit(case.model, case.task, case.examples, sites=case.sites, options=QUIET)


@pytest.fixture(scope="module")
def queries() -> Examples:
    return cases.sequences(4, seed=9)


@pytest.fixture(scope="module")
def exact(case, factors, queries):
    return attrib.score(factors, case.model, case.task, queries, case.examples, options=QUIET)


@pytest.mark.parametrize("kind", ["largest", "random"])
def test_a_wide_index_is_the_score_and_a_narrow_one_near_it(case, factors, queries, exact, tmp_path, kind) -> None:
    store = Store(tmp_path)
    whole = build_index(factors, case.model, case.task, case.examples, store, Sketch(kind, 2000), QUIET)
    found = whole.scores(case.model, case.task, queries, QUIET)
    np.testing.assert_allclose(found, exact.values, atol=2e-3 * np.abs(exact.values).max())  # 16 bits
    assert whole.entry.arrays["rows"].dtype.name == "float16"
    found = []
    for seed in range(1 if kind == "largest" else 12):
        sketch = Sketch(kind, 120, seed)
        narrow = build_index(factors, case.model, case.task, case.examples, store, sketch, QUIET)
        assert narrow.entry.arrays["rows"].shape[1] <= 120
        found.append(narrow.scores(case.model, case.task, queries, QUIET))
    # random projections are right on average, the largest coordinates by themselves
    assert np.corrcoef(np.mean(found, 0).ravel(), exact.values.ravel())[0, 1] > 0.6
    build_index(factors, case.model, case.task, case.examples, store, Sketch(kind, 120), QUIET)
    assert store.events[-1].what == "hit"


def test_search_then_rerank(case, factors, queries, exact, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("attrib.index.BLOCK_ROWS", 7)
    index = build_index(factors, case.model, case.task, case.examples, Store(tmp_path), Sketch(width=120), QUIET)
    hits = index.search(case.model, case.task, queries, 20, QUIET)
    scores = index.scores(case.model, case.task, queries, QUIET)
    np.testing.assert_array_equal(hits.ids, case.examples.ids[np.argsort(-scores, axis=1, kind="stable")[:, :20]])
    best = rerank(hits, factors, case.model, case.task, queries, case.examples, 5, QUIET)
    for row in range(len(queries)):
        mine = exact.values[row, case.examples.rows_of(hits.ids[row])]
        np.testing.assert_allclose(best.scores[row], np.sort(mine)[::-1][:5], rtol=1e-4)
    assert recall_of(best.ids, exact, 5).mean() > 0.8
    assert recall_of(case.examples.ids[None].repeat(4, 0), exact, 10).min() == 1


def test_recall_counts_what_was_found(exact) -> None:
    ids = exact["train"].values
    order = ids[np.argsort(-exact.values, axis=1)]
    np.testing.assert_array_equal(recall_of(order[:, :5], exact, 10), 0.5)
    own = {int(q): int(order[row, 0]) for row, q in enumerate(exact["query"].values)}
    np.testing.assert_array_equal(recall_of(order[:, 1:11], exact, 10, own), 1.0)
    assert Hits(order, exact.values).ids.shape == exact.shape


def test_sketch_that_cannot_be(factors) -> None:
    with pytest.raises(UsageError, match="A width of 1 for 2 sites"):
        plan_sketch(factors, Sketch(width=1))


def test_prefilters_by_their_formulas() -> None:
    documents, asked = [[1, 2, 2, 3], [4, 5, 1], [2, 2, 2, 6]], [[2, 3, 3], [9, 1]]
    train, queries = (Examples.of({"input_ids": [np.array(t) for t in rows]}) for rows in (documents, asked))
    holding = {t: sum(t in d for d in documents) for t in range(10)}
    idf = {t: np.log((3 - n + 0.5) / (n + 0.5) + 1) for t, n in holding.items()}
    over_query = [[sum(idf[t] for t in q if t in d) for d in documents] for q in asked]
    over_document = [[sum(idf[t] for t in d if t in q) for d in documents] for q in asked]
    np.testing.assert_allclose(lexical_scores(queries, train, "tfidf-query"), over_query, rtol=1e-5)
    np.testing.assert_allclose(lexical_scores(queries, train, "tfidf-document"), over_document, rtol=1e-5)
    bm25 = lexical_scores(queries, train, "bm25")
    assert bm25.shape == (2, 3)
    assert bm25[0].argmax() == 0
    assert bm25[1, 2] == 0
    np.testing.assert_array_equal(candidates(bm25, 2)[0], [0, 2])
    with pytest.raises(UsageError, match="no prefilter"):
        lexical_scores(queries, train, "words")
    with pytest.raises(DataError, match="compares tokens"):
        lexical_scores(cases.vectors(), cases.vectors())


def test_recall_by_the_share_that_is_scanned(case, queries, exact) -> None:
    for rule in RULES:
        ladder = recall_by_share(lexical_scores(queries, case.examples, rule), exact, rule=rule)
        assert ladder.recall[-1] == 1.0
        assert (np.diff(ladder.recall) >= 0).all()
        assert rule in str(ladder)
    perfect = recall_by_share(exact.values, exact, k=10, shares=(0.25, 1.0))
    np.testing.assert_array_equal(perfect.recall, [1.0, 1.0])
    with pytest.raises(DataError, match="Score the same"):
        recall_by_share(exact.values[:1], exact)
