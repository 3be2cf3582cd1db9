"""Every kernel against its slow twin, and a law it must satisfy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whence.attrib import kernels

SHAPES = [(3, 5, 4, 6), (2, 1, 7, 3), (4, 9, 300, 2)]  # b s o i


def arrays(b: int, s: int, o: int, i: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    a, g = rng.normal(size=(b, s, i)), rng.normal(size=(b, s, o))
    qa, qs = np.linalg.qr(rng.normal(size=(i, i)))[0], np.linalg.qr(rng.normal(size=(o, o)))[0]
    return tuple(x.astype(np.float32) for x in (a, g, qa, qs))


def formed(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Per-example gradients, one outer product at a time."""
    return np.array([sum(np.outer(g[b, s], a[b, s]) for s in range(a.shape[1])) for b in range(len(a))])


def close(found, wanted, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape: tuple[int, ...]) -> None:
    a, g, _, _ = arrays(*shape)
    close(kernels.gradients(a, g), formed(a, g))


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


@pytest.mark.parametrize("group", [1, 2, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_pair_products_whatever_the_group(shape: tuple[int, ...], group: int) -> None:
    a, g, _, _ = arrays(*shape)
    queries = np.random.default_rng(2).normal(size=(5, shape[2], shape[3])).astype(np.float32)
    found = kernels.pair_products(jnp.asarray(queries), a, g, group=group)
    wanted = np.einsum("qoi,boi->qb", queries, formed(a, g))
    close(found, wanted, 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_position_products_add_up_to_pair_products(shape: tuple[int, ...]) -> None:
    a, g, _, _ = arrays(*shape)
    queries = jnp.asarray(np.random.default_rng(2).normal(size=(3, shape[2], shape[3])), jnp.float32)
    each = kernels.position_products(queries, a, g)
    close(each.sum(-1), np.asarray(kernels.pair_products(queries, a, g, group=2)), 1e-4)


@pytest.mark.parametrize("order", ["positions", "gradients"])
@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_squares(shape: tuple[int, ...], order: kernels.Order) -> None:
    a, g, qa, qs = arrays(*shape)
    weight = np.random.default_rng(3).random(shape[2:]).astype(np.float32)
    wanted = np.array([(weight * (qs.T @ one @ qa) ** 2).sum() for one in formed(a, g)])
    close(kernels.weighted_squares(a, g, qa, qs, weight, order), wanted, 1e-4)
    close(kernels.weighted_squares_unrotated(a, g, weight), (weight * formed(a, g) ** 2).sum((1, 2)), 1e-4)
