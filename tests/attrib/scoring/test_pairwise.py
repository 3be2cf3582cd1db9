"""Scores at low rank, in narrow precision and by site, against exact ones."""

import itertools

import numpy as np
import pytest
import torch

from tests import cases
from whence.attrib import EKFAC, Damping
from whence.cache import Examples, Store, TrainedModel


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


class Wide(torch.nn.Module):
    """One layer wide enough for rank 64 to be a choice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = torch.nn.Embedding(7, 72), torch.nn.Linear(72, 72), torch.nn.Linear(72, 7)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids).cumsum(1)
        return self.head(torch.tanh(self.mix(x)))


def test_scores_converge_to_the_exact_ones_as_the_rank_grows() -> None:
    """At ranks whose factors are no smaller than the matrix, queries stay exact."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)  # one length: one shape to compile
    train, queries = (Examples.of({"input_ids": rng.integers(0, 7, (n, 24))}) for n in (40, 6))
    trained = TrainedModel(Wide(), train, cases.build("flat rows").task, sites="mix", quiet=True)
    factors = EKFAC().fit(trained)
    exact = factors.score(queries, rank=None).values
    found = [correlation(factors.score(queries, rank=rank).values, exact) for rank in (1, 2, 4, 8, 16, 32, 64)]
    assert found[0] > 0.5
    assert all(b > a - 0.01 for a, b in itertools.pairwise(found))
    assert found[5] > 0.995
    assert found[6] > 1 - 1e-6


def test_narrow_precision_correlates(fitted) -> None:
    for precision in ("tf32", "bfloat16"):
        assert correlation(fitted.factors.score(fitted.queries, precision=precision).values, fitted.exact) > 0.98
    low = fitted.factors.score(fitted.queries, rank=2, precision="bfloat16").values
    assert correlation(low, fitted.exact) > 0.8


def test_sites_add_up_to_the_score(fitted) -> None:
    by_site = fitted.factors.score(fitted.queries, per_site=True)
    assert by_site.dims == ("query", "train", "site")
    assert list(by_site["site"].values) == ["qkv", "out"]
    np.testing.assert_allclose(by_site.sum("site").values, fitted.exact, atol=1e-5 * np.abs(fitted.exact).max())


def test_shards_share_the_prepared_queries(fitted, tmp_path, monkeypatch) -> None:
    """A scoring run in several shards prepares its queries once, and a second one reads the store."""
    monkeypatch.setattr("whence.attrib.scoring.rows.FEWEST_ROWS", 4)
    prepared = []
    original = type(fitted.factors).inverse_gradients

    def counted(self, inputs, grads):
        prepared.append(len(inputs))
        return original(self, inputs, grads)

    monkeypatch.setattr(type(fitted.factors), "inverse_gradients", counted)
    store = Store(tmp_path)
    factors = fitted.factors.on(fitted.trained.replace(store=store))
    np.testing.assert_allclose(factors.score(fitted.queries).values, fitted.exact, rtol=1e-5, atol=1e-6)
    once = len(prepared)
    fitted.factors.score(fitted.queries)
    assert len(prepared) == 2 * once  # without a store: one shard
    factors.score(fitted.queries)
    assert len(prepared) == 2 * once
    assert store.events[-1].what == "hit"


@pytest.mark.parametrize("damping", [Damping(), Damping(0.0, "absolute")])
def test_fewer_examples_than_dimensions(fitted, damping) -> None:
    """Singular factors: damping decides in directions that no example has; without damping they are left out."""
    few = fitted.trained.train.select(range(2))
    found = EKFAC(damping=damping).fit(fitted.trained.replace(train=few)).score(few)
    assert np.isfinite(found.values).all()
    assert (np.diag(found.values) > 0).all()
