"""The compressed index and the lexical prefilters, against exact scores and the formulas written out."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from whence.attrib.prefilter import RULES, candidates, lexical_scores, recall_by_share
from whence.attrib.sketches import Coordinates, Ranked, Sketch, plan_sketch

from tests import cases
from whence import attrib
from whence.attrib import EKFAC, FitOptions
from whence.attrib.index import Hits, build_index, index_inputs, recall_of, rerank
from whence.cache import DataError, Examples, Store, UsageError, key_of

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


@pytest.mark.parametrize("kind", ["rank", "largest", "random"])
def test_a_wide_index_is_the_score_and_a_narrow_one_near_it(case, factors, queries, exact, tmp_path, kind) -> None:
    store = Store(tmp_path)
    whole = build_index(factors, case.model, case.task, case.examples, store, Sketch(kind, 2000), QUIET)
    found = whole.scores(case.model, case.task, queries, QUIET)
    np.testing.assert_allclose(found, exact.values, atol=2e-3 * np.abs(exact.values).max())  # 16 bits
    assert whole.entry.arrays["rows"].dtype.name == "float16"
    found = []
    for seed in range(12 if kind == "random" else 1):
        sketch = Sketch(kind, 120, seed)
        narrow = build_index(factors, case.model, case.task, case.examples, store, sketch, QUIET)
        assert narrow.entry.arrays["rows"].shape[1] <= 120
        found.append(narrow.scores(case.model, case.task, queries, QUIET))
    # random projections are right on average, the others by themselves
    assert np.corrcoef(np.mean(found, 0).ravel(), exact.values.ravel())[0, 1] > 0.6
    build_index(factors, case.model, case.task, case.examples, store, Sketch(kind, 120), QUIET)
    assert store.events[-1].what == "hit"


def test_search_then_rerank(case, factors, queries, exact, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("whence.attrib.index.BLOCK_ROWS", 7)
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


def test_pairs_of_a_gradient(factors) -> None:
    """All pairs of a site are its gradient; fewer are the best approximation of that rank; a row of zeros stays so."""
    site = max(factors.sites, key=lambda s: min(s.shape))
    o, i = site.shape
    state, rng = factors.per_site[site.name], np.random.default_rng(0)
    a, g = (jnp.asarray(rng.normal(size=(3, 9, w)), jnp.float32) for w in (i, o))
    g = g.at[2].set(0)
    whitened = np.einsum("op,bso,bsi,ij->bpj", state.qs, g, a, state.qa) * np.sqrt(factors.inverse(site.name))
    cut = plan_sketch(factors, Sketch(width=10**6))[site.name].cut
    asked = np.asarray(Ranked(cut, 1).asked()(a, g))
    np.testing.assert_allclose(asked, whitened.reshape(3, -1), atol=1e-4 * np.abs(whitened).max())
    for count in (1, 2, min(o, i)):
        ranked = Ranked(cut, count)
        rows = np.asarray(ranked.rows()(a, g))
        assert rows.shape == (3, ranked.width) == (3, count * (o + i))
        assert not rows[2].any()
        u, s, v = np.linalg.svd(whitened)
        best = np.einsum("bok,bk,bki->boi", u[..., :count], s[:, :count], v[:, :count])
        wanted = np.einsum("qoi,boi->qb", whitened, best)
        np.testing.assert_allclose(ranked.scores(asked, rows), wanted, atol=1e-4 * np.abs(wanted).max())


def test_ranks_follow_the_width(factors, monkeypatch) -> None:
    """No width is too small for a site: fewer rows and columns; where it is no smaller than the site, all of it."""
    sizes = {site.name: site.shape for site in factors.sites}
    for width in (4, 60, 120, 300):
        plan = plan_sketch(factors, Sketch(width=width))
        assert sum(part.width for part in plan.values()) <= width
        for name, part in plan.items():
            if isinstance(part, Ranked):
                assert all(1 <= kept <= whole for kept, whole in zip(part.cut.shape, sizes[name]))
                assert part.count < min(sizes[name])
    assert all(isinstance(part, Coordinates) for part in plan_sketch(factors, Sketch(width=10**6)).values())
    monkeypatch.setattr("whence.attrib.sketches.SIDES_A_PAIR", 1)
    assert max(part.count for part in plan_sketch(factors, Sketch(width=120)).values()) > 1


def test_sketch_that_cannot_be(case, factors, tmp_path) -> None:
    with pytest.raises(UsageError, match="A width of 1 for 2 sites"):
        plan_sketch(factors, Sketch("largest", width=1))
    with pytest.raises(UsageError, match="Keep at least 4: a row and a column a site"):
        plan_sketch(factors, Sketch(width=3))
    flat = {n: f._replace(eigenvalues=np.zeros_like(f.eigenvalues)) for n, f in factors.per_site.items()}
    with pytest.raises(DataError, match="no curvature in any direction"):
        plan_sketch(replace(factors, per_site=flat), Sketch())
    index = build_index(factors, case.model, case.task, case.examples, Store(tmp_path), Sketch(width=60), QUIET)
    tokens = case.examples.columns["input_ids"][:2]
    masked = Examples.of({"input_ids": tokens, "labels": [np.full(len(t), -100) for t in tokens]})
    with pytest.raises(DataError, match="have a zero gradient"):
        index.search(case.model, case.task, masked, 3, QUIET)


def test_rows_of_another_layout_are_not_misread(case, factors, monkeypatch) -> None:
    now = index_inputs(factors, case.task, case.examples, Sketch())
    monkeypatch.setattr("whence.attrib.index.LAYOUT", 1)
    before = index_inputs(factors, case.task, case.examples, Sketch())
    assert key_of("gradients", now) != key_of("gradients", before)


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
