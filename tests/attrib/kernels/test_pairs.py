"""Inner products of gradients against formed gradients."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.attrib.kernels.arrays import SHAPES, arrays, close, formed
from whence.attrib import kernels
from whence.attrib.kernels.pairs import inner_products


@pytest.mark.parametrize("group", [1, 2, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_pair_products_whatever_the_group(shape: tuple[int, ...], group: int) -> None:
    a, g, _, _ = arrays(*shape)
    queries = np.random.default_rng(2).normal(size=(5, shape[2], shape[3])).astype(np.float32)
    found = kernels.pair_products(*map(jnp.asarray, (queries, a, g)), group=group)
    wanted = np.einsum("qoi,boi->qb", queries, formed(a, g))
    close(found, wanted, 1e-4)


def test_inner_products_are_the_same_in_the_form_of_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    queries, each = (jnp.asarray(rng.normal(size=(count, 5, 7)), jnp.float32) for count in (4, 3))
    wanted = np.einsum("qoi,boi->qb", queries, each)
    close(inner_products(queries, each), wanted, 1e-4)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    close(inner_products(queries, each), wanted, 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_position_products_add_up_to_pair_products(shape: tuple[int, ...]) -> None:
    a, g, _, _ = arrays(*shape)
    queries = jnp.asarray(np.random.default_rng(2).normal(size=(3, shape[2], shape[3])), jnp.float32)
    each = kernels.position_products(queries, a, g)
    close(each.sum(-1), np.asarray(kernels.pair_products(queries, *map(jnp.asarray, (a, g)), group=2)), 1e-4)


def test_rebuilt_products_whatever_the_tile() -> None:
    rng = np.random.default_rng(0)
    a, g, left, right = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 5, 6), (3, 5, 7), (4, 7, 2), (4, 6, 2))
    )
    wanted = np.einsum("qor,qir,bso,bsi->qb", left, right, g, a)
    for tile in (None, 1, 3, 7):
        close(kernels.rebuilt_products(left, right, a, g, tile=tile), wanted, 1e-4)
    close(kernels.rank_products(left, right, a, g), wanted, 1e-4)


def test_atom_products_one_step_at_a_time() -> None:
    rng = np.random.default_rng(0)
    p, g, atoms = rng.normal(size=(2, 4, 3)), rng.normal(size=(5, 6, 4)), rng.normal(size=(7, 3))
    indices, values = rng.integers(0, 7, (5, 6, 2)), rng.normal(size=(5, 6, 2))
    wanted = np.zeros((2, 5, 7))
    for b in range(5):
        for s in range(6):
            for k in range(2):
                atom = indices[b, s, k]
                wanted[:, b, atom] += values[b, s, k] * np.einsum("o,qoi,i->q", g[b, s], p, atoms[atom])
    found = kernels.atom_products(*(x.astype(np.float32) for x in (p, g)), indices, *(
        x.astype(np.float32) for x in (values, atoms)
    ))  # fmt: skip
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)
