"""Scores do not depend on how they are computed: batch size, order, padding, a kill in the middle, query batch."""

from typing import Any

import numpy as np
import pytest

from tests import cases
from whence.attrib import EKFAC
from whence.cache import Examples, Store


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def case() -> cases.Case:
    found = cases.build("attention with prompts")
    find = {"pattern": ["qkv", "up", "ln"]}
    return cases.Case("float32", found.model.float(), cases.sequences(24, prompts=True), found.task, find)


@pytest.fixture(scope="module")
def queries() -> Examples:
    return cases.sequences(5, seed=9)


@pytest.fixture(scope="module")
def wanted(case: cases.Case, queries: Examples) -> np.ndarray:
    return EKFAC().fit(case.trained()).score(queries).values


def run(case: cases.Case, queries: Examples, train: Examples, **options: Any) -> np.ndarray:
    return EKFAC().fit(case.trained(train=train, **options)).score(queries).values


@pytest.mark.parametrize("positions", [9, 40])
def test_batch_size(case: cases.Case, queries: Examples, wanted: np.ndarray, positions: int) -> None:
    same(run(case, queries, case.examples, positions=positions), wanted)


def test_no_memory_to_keep_batches(case: cases.Case, queries: Examples, wanted: np.ndarray) -> None:
    same(run(case, queries, case.examples, positions=40, memory=600_000), wanted)


def test_order_of_examples(case: cases.Case, queries: Examples, wanted: np.ndarray) -> None:
    order = np.random.default_rng(0).permutation(len(case.examples))
    same(run(case, queries, case.examples.select(order)), wanted[:, order])


def test_padding(case: cases.Case, queries: Examples, wanted: np.ndarray) -> None:
    """Padded by the caller, with a mask, instead of by the batch."""
    tokens = np.full((24, 9), 3)
    labels, mask = np.full((24, 9), 4), np.zeros((24, 9), np.int64)
    for row, (t, label) in enumerate(zip(case.examples.columns["input_ids"], case.examples.columns["labels"])):
        tokens[row, : len(t)], labels[row, : len(t)], mask[row, : len(t)] = t, label, 1
    columns = {"input_ids": tokens, "labels": labels, "attention_mask": mask}
    same(run(case, queries, Examples(columns, case.examples.ids)), wanted)


def test_query_batch(case: cases.Case, queries: Examples, wanted: np.ndarray) -> None:
    factors = EKFAC().fit(case.trained())
    for q in range(5):
        same(factors.score(queries.select([q])).values[0], wanted[q])


def test_sites_add_up(case: cases.Case, queries: Examples, wanted: np.ndarray) -> None:
    factors = EKFAC().fit(case.trained())
    by_site = factors.score(queries, per_site=True)
    assert by_site.dims == ("query", "train", "site")
    same(by_site.sum("site").values, wanted)


def test_positions_add_up(case: cases.Case, queries: Examples, wanted: np.ndarray) -> None:
    sites = case.sites.only([s.name for s in case.sites if s.kind == "linear"])
    factors = EKFAC().fit(case.trained(sites=sites))
    whole, tokens = factors.score(queries), factors.token_scores(queries)
    same(np.nansum(tokens.values, -1), whole.values)
    for row, length in enumerate(case.examples.lengths):
        assert np.isnan(tokens.values[:, row, length:]).all()
        assert not np.isnan(tokens.values[:, row, :length]).any()


def test_killed_in_the_middle_and_run_again(
    case: cases.Case, queries: Examples, wanted: np.ndarray, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partitions and shards that were done are not done again, and the result is the same bit for bit."""
    monkeypatch.setattr("whence.attrib.fit.PARTITION_EXAMPLES", 5)
    monkeypatch.setattr("whence.attrib.scoring.rows.SHARD_ROWS", 7)

    def work(store: Store) -> np.ndarray:
        return EKFAC().fit(case.trained(store=store)).score(queries).values

    straight = work(Store(tmp_path / "straight"))
    same(straight, wanted)

    class Killed(BaseException):
        pass

    forward, calls = type(case.model).forward, [0]

    def mortal(self, *args, **kwargs):
        calls[0] += 1
        if calls[0] % 16 == 0:  # a start takes up to 13 passes on single examples before it commits something
            raise Killed
        return forward(self, *args, **kwargs)

    deaths = 0
    with monkeypatch.context() as patch:
        patch.setattr(type(case.model), "forward", mortal)
        while True:
            try:
                killed = work(Store(tmp_path / "killed"))
                break
            except Killed:
                deaths += 1
                assert deaths < 30, "a start that is killed makes no progress"
    assert deaths >= 2
    np.testing.assert_array_equal(killed, straight)


def test_nothing_is_computed_twice(case: cases.Case, queries: Examples, tmp_path, monkeypatch) -> None:
    first, again = Store(tmp_path), Store(tmp_path)
    for store in (first, again):
        factors = EKFAC().fit(case.trained(store=store))
        factors.score(queries)
        factors.self_influence()
    assert [event.what for event in first.events].count("built") >= 4
    assert {event.what for event in again.events} == {"hit"}
