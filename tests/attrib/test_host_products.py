"""Products on the host equal the kernels', and in bfloat16 to its rounding."""

import jax.numpy as jnp
import numpy as np
import pytest

from whence.attrib import host_products, kernels

RNG = np.random.default_rng(0)
A, G = (jnp.asarray(RNG.normal(size=(3, 5, width)), jnp.float32) for width in (7, 4))
WEIGHT = jnp.asarray(RNG.random((3, 5)) < 0.7, jnp.float32)
QA, QS = (np.linalg.qr(RNG.normal(size=(width, width)))[0].astype(np.float32) for width in (7, 4))


@pytest.mark.parametrize(("half", "close"), [(False, 1e-6), (True, 2e-2)])
def test_moments_are_the_kernels(half: bool, close: float) -> None:
    wanted = kernels.add_moment(kernels.zero_sum((7, 7), A.dtype), A, WEIGHT).high
    found = host_products.add_moment(kernels.zero_sum((7, 7), A.dtype), A, WEIGHT, half).high
    np.testing.assert_allclose(found, wanted, atol=close * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("order", ["positions", "gradients"])
def test_rotated_squares_in_bfloat16_are_the_kernels(order: kernels.Order) -> None:
    wanted = kernels.add_rotated_squares(kernels.zero_sum((4, 7), A.dtype), A, G, QA, QS, order=order).high
    narrow = (host_products.narrow(q) for q in (QA, QS))
    found = host_products.add_rotated_squares(kernels.zero_sum((4, 7), A.dtype), A, G, *narrow, order=order).high
    np.testing.assert_allclose(found, wanted, atol=4e-2 * float(jnp.abs(wanted).max()))
    assert not np.array_equal(found, wanted)
