"""Training examples named by their ids: exactly those, or an error."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray

from tests import cases
from whence.attrib import BM25, EKFAC
from whence.attrib.evaluate.agreement import aligned
from whence.attrib.lexical import token_counts
from whence.attrib.selection import bids, hashed_ngrams, top_k
from whence.cache import DataError, Examples, NumericalError


def test_ids_stand_for_the_training_examples() -> None:
    case = cases.build("attention")
    subject = case.trained(model=case.model.float())
    factors, ids = EKFAC().fit(subject), subject.train.ids[[3, 1]]
    wanted = factors.score(subject.train)
    for found in (factors.score(subject.train, ids), factors.token_scores(subject.train, ids).sum("position")):
        assert found.train.values.tolist() == ids.tolist()
        np.testing.assert_allclose(found, wanted.sel(train=ids), atol=1e-4 * np.abs(wanted).max())
    assert set(BM25().fit(subject).top(subject.train, 1, ids.tolist()).helpful_id.values.ravel()) <= set(ids)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda ids: np.arange(6) < 2, "array of bool"),
        (lambda ids: [1.0, 2.0], "array of float64"),
        (lambda ids: ids[[1, 1, 2]].tolist(), "named twice"),
        (lambda ids: [99], "not among"),
    ],
)
def test_masks_floats_and_repeated_ids_are_refused(wrong: Callable[[np.ndarray], Any], match: str) -> None:
    case = cases.build("attention")
    factors = EKFAC().fit(case.trained(model=case.model.float()))
    train = factors.trained.train
    wrong = wrong(train.ids)
    for name in ("score", "top", "token_scores", "head_scores", "group_scores"):
        more = {"attention": []} if name == "head_scores" else {}
        with pytest.raises(DataError, match=match):
            getattr(factors, name)(train, train=wrong, **more)
    with pytest.raises(DataError, match=match):
        factors.self_influence(wrong)
    if not isinstance(wrong, np.ndarray):  # a mask over the examples is a group
        with pytest.raises(DataError, match=match):
            factors.group_scores(train, train_groups={"some": wrong})


def test_padding_is_no_token() -> None:
    texts = [[1, 2, 3], [4]]
    ragged = Examples.of({"input_ids": texts})
    padded = Examples.of({"input_ids": np.array([[1, 2, 3], [0, 0, 4]]), "attention_mask": [[1, 1, 1], [0, 0, 1]]})
    for count in (token_counts, hashed_ngrams):
        np.testing.assert_array_equal(count(ragged).todense(), count(padded).todense())


def test_split_scores_are_summed_before_a_selection() -> None:
    values = np.random.default_rng(0).normal(size=(3, 9, 4))
    split = xarray.DataArray(values, dims=("query", "train", "site"), coords={"train": np.arange(9) + 2**40})
    assert top_k(split, 4).tolist() == top_k(split.sum("site"), 4).tolist()
    assert bids(split, 4).tolist() == bids(split.sum("site"), 4).tolist()
    values[1, 2, 3] = np.nan
    with pytest.raises(NumericalError, match="not finite"):
        top_k(split, 2)


def test_large_ids_are_aligned_exactly() -> None:
    ids = np.array([2**63 + 5, 2**64 - 1], np.uint64)
    scores = xarray.DataArray([[1.0, 2.0]], dims=("query", "train"), coords={"train": ids})
    assert aligned(scores, ids[::-1]).tolist() == [[2.0, 1.0]]
