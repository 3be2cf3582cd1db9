"""Prepared queries: their forms agree, and what does not fit is refused with what would."""

import jax.numpy as jnp
import numpy as np
import pytest

from whence.attrib.scoring.lowrank import LowRank
from whence.attrib.scoring.queries import PreparedQueries, check_fits, prepare_queries, resolved_rank
from whence.cache import ResourceError, UsageError
from whence.cache.model.batches import CapturedBatch

LENGTHS = np.array([9])


def test_forms_agree() -> None:
    rng = np.random.default_rng(0)
    a, g = (jnp.asarray(rng.normal(size=(3, 5, w)), jnp.float32) for w in (6, 7))
    low = LowRank(*(jnp.asarray(rng.normal(size=(4, w, 2)), jnp.float32) for w in (7, 6)))
    batch = CapturedBatch(np.arange(3), np.zeros(3), {"m": a}, {"m": g}, {})
    wanted = np.einsum("qoi,bso,bsi->qb", low.dense(), g, a)
    for value, form in ((low.dense(), "tiles"), (low, "rank"), (low, "positions")):
        found = PreparedQueries({"m": value}, {"m": form}, "float32").products(batch, "m")
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_queries_have_the_type_of_the_products(fitted) -> None:
    prepared = prepare_queries(fitted.factors, fitted.queries, LENGTHS, precision="bfloat16")
    assert {value.dtype for value in prepared.values.values()} == {jnp.dtype(jnp.bfloat16)}


def test_rank_follows_the_memory_limit(fitted, capsys, monkeypatch) -> None:
    monkeypatch.delenv("WHENCE_QUIET", raising=False)
    factors = fitted.factors
    assert resolved_rank(factors, 5, "auto", "float32") is None
    assert resolved_rank(factors, 10**9, "auto", "float32") == 32
    assert capsys.readouterr().err == ""
    assert resolved_rank(factors.on(fitted.trained.replace(quiet=False)), 10**9, "auto", "float32") == 32
    assert "rank 32 is used" in capsys.readouterr().err
    assert resolved_rank(factors, 10**9, 4, "float32") == 4
    with pytest.raises(UsageError, match="rank = 0"):
        resolved_rank(factors, 5, 0, "float32")


def test_queries_that_do_not_fit_say_what_would(fitted) -> None:
    small = fitted.factors.on(fitted.trained.replace(memory=5_000))
    with pytest.raises(ResourceError, match="at rank=32, score at most 2 queries at a time"):
        prepare_queries(small, fitted.queries, LENGTHS)
    with pytest.raises(ResourceError, match="To fit, score at most 10 queries"):
        check_fits(20, 32, 2_000, 1_000)
