"""Merged and subtracted sums against fits on the same data all at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import cases
from whence.attrib import EKFAC
from whence.attrib.merge import Basis, factors_of, merge, moment_sums, square_sums, subtract
from whence.cache import DataError, Examples, NumericalError, Store, TrainedModel


@pytest.fixture(scope="module")
def case() -> cases.Case:
    found = cases.build("attention")
    return cases.Case("merge", found.model.float(), cases.sequences(18), found.task, {"pattern": ["qkv", "up"]})


@pytest.fixture(scope="module")
def shards(case: cases.Case):
    return [case.examples.select(rows) for rows in (slice(0, 5), slice(5, 12), slice(12, 18))]


def moments_of(case: cases.Case, data, store=None, **more):
    return moment_sums(case.trained(store=store), data, **more)


def squares_of(case: cases.Case, basis: Basis, data, store=None):
    return square_sums(basis, case.trained(store=store), data)


def test_merged_shards_equal_a_fresh_fit(case, shards, tmp_path) -> None:
    store = Store(tmp_path)
    moments = merge(*(moments_of(case, part, store=store) for part in shards))
    basis = Basis.of(moments)
    squares = merge(*(squares_of(case, basis, part, store=store) for part in shards))
    merged = factors_of(basis, case.trained(), squares)
    fresh = EKFAC(redraw=False).fit(case.trained())
    assert merged.count == fresh.count == 18
    whole = moments_of(case, case.examples)
    for name, value in whole.arrays.items():
        np.testing.assert_allclose(moments.arrays[name], value, rtol=1e-5, atol=1e-5 * np.abs(value).max())
    queries = cases.sequences(3, seed=9)
    scores = [f.score(queries) for f in (merged, fresh)]
    np.testing.assert_allclose(*(s.values for s in scores), atol=2e-3 * np.abs(scores[1].values).max())
    again = moments_of(case, shards[1], store=store)
    assert store.events[-1].what == "hit"
    np.testing.assert_array_equal(again.arrays["up/S"], moments_of(case, shards[1], store=store).arrays["up/S"])


def test_data_are_added_and_a_document_is_taken_out(case, shards) -> None:
    """In a frozen basis, what is left equals what is fitted afresh on the rest, eigenvalue by eigenvalue."""
    basis = Basis.of(moments_of(case, case.examples))
    parts = [squares_of(case, basis, part) for part in shards]
    everything = squares_of(case, basis, case.examples)
    added = merge(merge(parts[0], parts[1]), parts[2])
    document = case.examples.select([3, 4])
    left = subtract(added, squares_of(case, basis, document))
    rest = squares_of(case, basis, case.examples.without(document.ids))
    assert left.ids == rest.ids
    for name in everything.arrays:
        top = everything.arrays[name].max()
        np.testing.assert_allclose(added.arrays[name], everything.arrays[name], rtol=1e-5, atol=1e-6 * top)
        np.testing.assert_allclose(left.arrays[name], rest.arrays[name], rtol=1e-5, atol=1e-6 * top)
    assert factors_of(basis, case.trained(), left).count == 16


def test_layers_that_read_one_input_share_a(case) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) * self.b(x)

    mlp = cases.build("mlp")
    data = Examples.of({"x": mlp.examples.columns["x"].astype("f4"), "y": mlp.examples.columns["y"]})
    trained = TrainedModel(Two(), data, mlp.task, quiet=True)
    first, second = (moment_sums(trained, data.select(rows)) for rows in (slice(0, 6), slice(6, 12)))
    assert "b/A" not in first.arrays
    basis = Basis.of(merge(first, second))
    assert basis.bases.at("a")[0] is basis.bases.at("b")[0]


def test_sums_that_do_not_belong_together(case, shards) -> None:
    one, two = (moments_of(case, part) for part in shards[:2])
    basis = Basis.of(one)
    with pytest.raises(DataError, match="5 examples are in both shards"):
        merge(one, one)
    with pytest.raises(DataError, match="differ in seed"):
        merge(one, moments_of(case, shards[1], seed=1))
    with pytest.raises(DataError, match="of different things"):
        merge(one, squares_of(case, basis, shards[1]))
    with pytest.raises(DataError, match="not in the sums"):
        subtract(one, two)
    with pytest.raises(DataError, match="Nothing would be left"):
        subtract(one, one)
    with pytest.raises(DataError, match="nothing to merge"):
        merge()
    squares = squares_of(case, basis, shards[0])
    with pytest.raises(DataError, match="another basis"):
        factors_of(Basis.of(two), case.trained(), squares)
    with pytest.raises(DataError, match="comes from moments"):
        Basis.of(squares)
    part = squares_of(case, basis, shards[0].select([0]))
    wrong = replace(part, arrays={name: value * 100 for name, value in part.arrays.items()})
    with pytest.raises(NumericalError, match="would be negative"):
        subtract(squares, wrong)
