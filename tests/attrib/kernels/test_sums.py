"""Sums over batches against sums of formed matrices, and what float32 alone would lose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attrib.kernels.arrays import SHAPES, arrays, close, formed
from whence.attrib import kernels


@pytest.mark.parametrize("width", [3, 301, kernels.SYMMETRIC_WIDTH + 1])
def test_symmetric_product_is_the_plain_one(width: int) -> None:
    x = np.random.default_rng(0).normal(size=(20, width)).astype(np.float32)
    close(np.asarray(kernels.symmetric_product(jnp.asarray(x))), x.T @ x)


@pytest.mark.parametrize("shape", SHAPES)
def test_moment_counts_weighted_positions_only(shape: tuple[int, ...]) -> None:
    a, _, _, _ = arrays(*shape)
    weight = (np.random.default_rng(1).random(a.shape[:2]) < 0.6).astype(np.float32)
    total = kernels.zero_sum((a.shape[2],) * 2, jnp.float32)
    for part in range(len(a)):
        total = kernels.add_moment(total, a[part : part + 1], weight[part : part + 1])
    rows = a.reshape(-1, a.shape[2])[weight.ravel() > 0]
    close(np.asarray(total.high + total.low), sum((np.outer(r, r) for r in rows), np.zeros((a.shape[2],) * 2)))


def test_sums_keep_what_float32_would_lose() -> None:
    terms = np.random.default_rng(0).normal(size=3000).astype(np.float32) ** 2 * 10.0 ** np.arange(3000).clip(0, 5)
    total = kernels.zero_sum((), jnp.float32)
    plain = jnp.zeros((), jnp.float32)
    step = jax.jit(kernels.add)
    for term in terms:
        total, plain = step(total, jnp.asarray(term)), plain + term
    exact = terms.astype(np.float64).sum()
    error = abs(float(np.float64(total.high) + np.float64(total.low)) - exact) / exact
    assert error < 1e-9 < abs(float(plain) - exact) / exact


@pytest.mark.parametrize("shape", SHAPES)
def test_gram_matrices_are_those_of_the_gradients(shape: tuple[int, ...]) -> None:
    a, g, _, _ = arrays(*shape)
    each = formed(a, g)
    for side, wanted in (("L", each @ each.swapaxes(1, 2)), ("R", each.swapaxes(1, 2) @ each)):
        found = kernels.add_gram(kernels.zero_sum(wanted.shape[1:], jnp.float32), a, g, side=side)
        close(np.asarray(found.high), wanted.sum(0), 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_summed_gradient(shape: tuple[int, ...]) -> None:
    a, g, _, _ = arrays(*shape)
    found = kernels.add_gradient(kernels.zero_sum(shape[2:], jnp.float32), a, g)
    close(np.asarray(found.high), formed(a, g).sum(0))
