"""Formed and rotated gradients against one outer product at a time, and the laws of a rotation."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.attrib.kernels.arrays import SHAPES, arrays, close, formed
from whence.attrib import kernels


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape: tuple[int, ...]) -> None:
    a, g, _, _ = arrays(*shape)
    close(kernels.gradients(a, g), formed(a, g))


@pytest.mark.parametrize("order", ["positions", "gradients"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rotated_squares_both_orders(shape: tuple[int, ...], order: kernels.Order) -> None:
    a, g, qa, qs = arrays(*shape)
    total = kernels.zero_sum((shape[2], shape[3]), jnp.float32)
    found = kernels.add_rotated_squares(total, a, g, qa, qs, order=order)
    squares = np.array([(qs.T @ one @ qa) ** 2 for one in formed(a, g)])
    close(np.asarray(found.high), squares.sum(0))
    # an orthogonal rotation keeps the sum of squares
    np.testing.assert_allclose(float(found.high.sum()), (formed(a, g) ** 2).sum(), rtol=1e-4)


def test_the_cheaper_order_is_taken() -> None:
    assert kernels.rotation_order(128, 1024, 257) == "positions"
    assert kernels.rotation_order(4096, 64, 64) == "gradients"


@pytest.mark.parametrize("shape", SHAPES)
def test_squares(shape: tuple[int, ...]) -> None:
    a, g, _, _ = arrays(*shape)
    found = kernels.add_squares(kernels.zero_sum((shape[2], shape[3]), jnp.float32), a, g)
    close(np.asarray(found.high), (formed(a, g) ** 2).sum(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_there_and_back_is_nothing(shape: tuple[int, ...]) -> None:
    a, g, qa, qs = arrays(*shape)
    there = kernels.rotate(jnp.asarray(formed(a, g), jnp.float32), qa, qs)
    close(there, np.array([qs.T @ one @ qa for one in formed(a, g)]))
    close(kernels.rotate_back(there, qa, qs), formed(a, g))
    for order in ("positions", "gradients"):
        close(kernels.rotated(a, g, qa, qs, order), np.asarray(there), 1e-4)


@pytest.mark.parametrize("order", ["positions", "gradients"])
@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_squares(shape: tuple[int, ...], order: kernels.Order) -> None:
    a, g, qa, qs = arrays(*shape)
    weight = np.random.default_rng(3).random(shape[2:]).astype(np.float32)
    wanted = np.array([(weight * (qs.T @ one @ qa) ** 2).sum() for one in formed(a, g)])
    close(kernels.weighted_squares(a, g, qa, qs, weight, order), wanted, 1e-4)
    close(kernels.weighted_squares(a, g, None, None, weight), (weight * formed(a, g) ** 2).sum((1, 2)), 1e-4)
