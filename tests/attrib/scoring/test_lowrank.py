"""Weighted truncation against the expected squared error of a score."""

import jax.numpy as jnp
import numpy as np

from whence.attrib.curvature import SiteFactors
from whence.attrib.scoring.lowrank import curvature_weights, truncated


def test_weighted_truncation_loses_least_of_the_score() -> None:
    """For gradients whose second moments are the eigenvalues, in their basis."""
    rng = np.random.default_rng(0)
    o, i, rank = 12, 15, 3
    qa, qs = (np.linalg.qr(rng.normal(size=(w, w)))[0] for w in (i, o))
    eigenvalues = np.outer(np.logspace(0, -4, o), np.logspace(0, -3, i)) * rng.uniform(0.5, 1.5, (o, i))
    damped = eigenvalues + 0.1 * eigenvalues.mean()
    value = jnp.asarray(qs @ ((qs.T @ rng.normal(size=(4, o, i)) @ qa) / damped) @ qa.T, jnp.float32)

    def loss(weighted: bool) -> float:
        low = truncated(value, SiteFactors(qa, qs, eigenvalues), rank, weighted)
        error = qs.T @ np.asarray(value - low.dense(), np.float64) @ qa
        return float((eigenvalues * error**2).sum())

    assert loss(True) < 0.1 * loss(False)


def test_plain_truncation_is_the_best_of_its_rank() -> None:
    value = np.random.default_rng(0).normal(size=(3, 6, 8))
    found = truncated(jnp.asarray(value, jnp.float32), SiteFactors(None, None, np.ones((6, 8))), 2, weighted=False)
    for each, low in zip(value, found.dense()):
        u, s, v = np.linalg.svd(each)
        np.testing.assert_allclose(low, (u[:, :2] * s[:2]) @ v[:2], atol=1e-3)


def test_weights_are_the_leading_singular_vectors() -> None:
    u, v = curvature_weights(np.outer([1.0, 4.0], [9.0, 1.0, 0.0]))
    np.testing.assert_allclose(u, [0.5, 1.0])
    np.testing.assert_allclose(v, [1.0, 1 / 3, 1e-3])
    np.testing.assert_array_equal(curvature_weights(np.zeros((2, 3))).u, [1, 1])
