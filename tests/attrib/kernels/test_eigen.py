"""Eigendecompositions with their own check, against numpy's."""

import jax.numpy as jnp
import numpy as np

from tests.attrib.kernels.arrays import close
from whence.attrib import kernels


def test_a_decomposition_rebuilds_its_matrix_and_measures_its_error() -> None:
    x = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32)
    matrix = x.T @ x
    values, vectors, error = (np.asarray(part) for part in kernels.checked_eigh(jnp.asarray(matrix)))
    close((vectors * values) @ vectors.T, matrix, 1e-4)
    wanted = np.abs(vectors.astype(np.float64).T @ vectors - np.eye(12)).max()
    assert abs(float(error) - wanted) < 1e-6
    assert np.isnan(kernels.checked_eigh(jnp.full((3, 3), jnp.nan))[2])
