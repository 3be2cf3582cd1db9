"""The compressed index against exact scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray

from tests import cases
from whence.attrib import EKFAC, Factors
from whence.attrib.index import Lists, Sketch, build_index
from whence.attrib.index.recall import recall_of
from whence.attrib.index.search import index_inputs
from whence.attrib.index.woodbury import subspace
from whence.cache import DataError, Examples, Store, TrainedModel, UsageError
from whence.cache.errors import ResourceError
from whence.cache.store.keys import key_of


@pytest.fixture(scope="module")
def factors() -> Factors:
    case = cases.build("attention")
    train = cases.sequences(40, seed=1)
    return EKFAC().fit(TrainedModel(case.model.float(), train, case.task, sites=["qkv", "up"], quiet=True))


@pytest.fixture(scope="module")
def queries() -> Examples:
    return cases.sequences(4, seed=9)


@pytest.fixture(scope="module")
def exact(factors, queries) -> xarray.DataArray:
    return factors.score(queries)


def stored(factors: Factors, folder) -> Factors:
    return factors.on(factors.trained.replace(store=Store(folder)))


@pytest.mark.parametrize("kind", ["rank", "largest", "random"])
def test_a_wide_index_is_the_score_and_a_narrow_one_near_it(factors, queries, exact, tmp_path, kind) -> None:
    factors = stored(factors, tmp_path)
    whole = build_index(factors, sketch=Sketch(kind, 2000))
    np.testing.assert_allclose(whole.scores(queries), exact.values, atol=2e-3 * np.abs(exact.values).max())  # 16 bits
    assert whole.entry.arrays["rows"].dtype.name == "float16"
    found = []
    for seed in range(12 if kind == "random" else 1):
        narrow = build_index(factors, sketch=Sketch(kind, 120, seed))
        assert narrow.entry.arrays["rows"].shape[1] <= 120
        found.append(narrow.scores(queries))
    # random projections are right on average, the others by themselves
    assert np.corrcoef(np.mean(found, 0).ravel(), exact.values.ravel())[0, 1] > 0.6
    build_index(factors, sketch=Sketch(kind, 120))
    assert factors.trained.store.events[-1].what == "hit"


def test_search_then_rerank(factors, queries, exact, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("whence.attrib.index.search.BLOCK_ROWS", 7)
    index, train = build_index(stored(factors, tmp_path), sketch=Sketch(width=120)), factors.trained.train
    hits = index.search(queries, 20)
    scores = index.scores(queries)
    np.testing.assert_array_equal(hits.ids, train.ids[np.argsort(-scores, axis=1, kind="stable")[:, :20]])
    best = index.rerank(hits, queries, 5)
    for row in range(len(queries)):
        own = exact.values[row, train.rows_of(hits.ids[row])]
        np.testing.assert_allclose(best.scores[row], np.sort(own)[::-1][:5], rtol=1e-4)
    assert recall_of(best.ids, exact, 5).mean() > 0.8


def test_what_cannot_be_indexed_is_refused(factors, tmp_path) -> None:
    with pytest.raises(UsageError, match="kept in a store"):
        build_index(factors)
    index = build_index(stored(factors, tmp_path), sketch=Sketch(width=60))
    tokens = factors.trained.train.columns["input_ids"][:2]
    masked = Examples.of({"input_ids": tokens, "labels": [np.full(len(t), -100) for t in tokens]})
    with pytest.raises(DataError, match="have a zero gradient"):
        index.search(masked, 3)


def test_rows_of_another_layout_are_not_misread(factors, monkeypatch) -> None:
    now = index_inputs(factors, factors.trained.train, Sketch())
    monkeypatch.setattr("whence.attrib.index.search.LAYOUT", 1)
    before = index_inputs(factors, factors.trained.train, Sketch())
    assert key_of("gradients", now) != key_of("gradients", before)


def test_lists_that_are_all_read_give_the_scan(factors, queries, tmp_path) -> None:
    pytest.importorskip("faiss")
    factors = stored(factors, tmp_path)
    scan = build_index(factors, sketch=Sketch("largest", 200))
    lists = build_index(factors, sketch=Sketch("largest", 200), lists=Lists(lists=6, probes=6))
    one, other = scan.search(queries, 10), lists.search(queries, 10)
    np.testing.assert_array_equal(one.ids[:, :4], other.ids[:, :4])
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-2, atol=1e-3 * np.abs(one.scores).max())
    few = replace(lists, lists=Lists(lists=6, probes=1)).search(queries, 40)
    assert few.ids.shape[1] < 40
    assert np.isin(few.ids, scan.ids).all()
    best = lists.rerank(other, queries, 3)
    np.testing.assert_allclose(best.scores, scan.rerank(other, queries, 3).scores)


def test_lists_need_faiss_and_rows_that_are_vectors(factors, tmp_path, monkeypatch) -> None:
    factors = stored(factors, tmp_path)
    with pytest.raises(UsageError, match="are factors"):
        build_index(factors, sketch=Sketch("rank", 120), lists=Lists())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="faiss") as caught:
        build_index(factors, sketch=Sketch("largest", 120), lists=Lists())
    assert "pip install" in caught.value.cure


def _gradients(factors: Factors, examples: Examples, what: str) -> dict[str, np.ndarray]:
    """[n o i] by site, an example at a time."""
    trained, found = factors.trained, {site.name: [] for site in factors.sites}
    for row in range(len(examples)):
        batch = trained.batch(examples, [row])
        value = getattr(trained.task, what)(trained.model, batch).sum()
        for name in found:
            layer = trained.model.get_submodule(name)
            own = [p for p in (layer.weight, layer.bias) if p is not None]
            parts = torch.autograd.grad(value, own, retain_graph=True)
            found[name].append(torch.cat([p.reshape(len(p), -1) for p in parts], 1).numpy())
    return {name: np.stack(parts) for name, parts in found.items()}


def test_lorif_with_every_direction_is_the_damped_inverse_of_the_gradients_own_curvature(
    factors, queries, tmp_path
) -> None:
    factors = stored(factors, tmp_path)
    index = build_index(factors, sketch=Sketch("lorif", 10**6, directions=10**4))
    known, asked = _gradients(factors, factors.trained.train, "loss"), _gradients(factors, queries, "measurement")
    expected = np.zeros((len(queries), 40))
    for name, g in known.items():
        g, q = g.reshape(40, -1).astype(np.float64), asked[name].reshape(len(queries), -1)
        curvature = g.T @ g / 40
        damping = 0.1 * np.trace(curvature) / len(curvature)
        expected -= q @ np.linalg.solve(curvature + damping * np.eye(len(curvature)), g.T) / factors.train_size
    np.testing.assert_allclose(index.scores(queries), expected, atol=5e-3 * np.abs(expected).max())
    few = build_index(factors, sketch=Sketch("lorif", 400, directions=30))
    assert few.entry.arrays["rows"].shape[1] <= 400
    assert np.corrcoef(few.scores(queries).ravel(), expected.ravel())[0, 1] > 0.5
    build_index(factors, sketch=few.sketch).scores(queries)
    assert [event.what for event in factors.trained.store.events[-2:]] == ["hit", "hit"]


def test_a_subspace_has_the_leading_directions_and_solves_by_them() -> None:
    rng = np.random.default_rng(0)
    g = (rng.normal(size=(300, 40)) * np.exp(-np.arange(40) / 4)).astype(np.float32)
    found = subspace(lambda: np.array_split(g, 7), 40, 8)
    values, vectors = np.linalg.eigh(g.T @ g / 300)
    np.testing.assert_allclose(found.values, values[::-1][:8], rtol=1e-2)
    truncated = (vectors[:, -8:] * values[-8:]) @ vectors[:, -8:].T + found.damping * np.eye(40)
    q = rng.normal(size=(3, 40)).astype(np.float32)
    expected = np.linalg.solve(truncated, q.T).T
    np.testing.assert_allclose(found.solve(q), expected, atol=0.03 * np.abs(expected).max())


def test_the_directions_of_lorif_change_no_row_and_no_key_of_other_kinds(factors) -> None:
    train = factors.trained.train
    one, other = (index_inputs(factors, train, Sketch("rank", 60, 0, n)) for n in (4, 9))
    assert key_of("gradients", one) == key_of("gradients", other)
