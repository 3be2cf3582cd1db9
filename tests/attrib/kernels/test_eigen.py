"""Eigendecompositions with their own check, and damped eigenvalues, against numpy's."""

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


def test_directions_without_curvature_and_damping_have_no_inverse() -> None:
    values = np.array([[0.0, 2.0], [0.5, 0.0]], np.float32)
    np.testing.assert_allclose(kernels.damped_inverse(jnp.asarray(values), 0.0), [[0, 0.5], [2, 0]])
    np.testing.assert_allclose(kernels.damped_inverse(jnp.asarray(values), 0.5), 1 / (values + 0.5))
