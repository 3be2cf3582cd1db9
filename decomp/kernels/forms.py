"""Two ways of knowing how a residual correlates with every atom, behind one pair of functions.

Residual form keeps r [b d] and multiplies it with the atoms at every step, `TILE` of them at a time: 2·b·a·d operations
a step, and memory that does not grow with the atoms.
Gram form keeps the correlations c = D r [b a] themselves and subtracts v·G[j] when v·d_j leaves the residual:
2·b·a operations and one row of G = D Dᵀ read per signal and step, so it is bound by memory and wins whenever
G fits. A pursuit is written once over either.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

BLOCK = 64  # atoms in one block of the two-level search; a basis holds a whole number of blocks
TILE = 16384  # atoms that the residual form correlates with at once


class Basis(NamedTuple):
    """Unit atoms, padded with zero rows to a whole number of blocks, and their inner products if they fit.

    A zero row correlates with nothing and is never chosen.
    """

    atoms: Float[Array, "a d"]
    gram: Float[Array, "a a"] | None


class Form(NamedTuple):
    """start(x) -> state; best(state, score) -> (j [b], its score [b]), the atom with the largest score(correlation);
    at(state, s [b k]) -> [b k] correlations with these atoms; subtract(state, j [b], v [b]) -> state;
    inner(j [b], s [b k]) -> [b k] inner products of atoms."""

    start: Callable[[Array], Any]
    best: Callable[[Any, Callable[[Array], Array]], tuple[Array, Array]]
    at: Callable[[Any, Array], Array]
    subtract: Callable[[Any, Array, Array], Any]
    inner: Callable[[Array, Array], Array]


def product(x: Float[Array, "b d"], y: Float[Array, "a d"]) -> Float[Array, "b a"]:
    """x yᵀ in full float32 on every device (an accelerator would otherwise round its inputs)."""
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def whole_blocks(size: int) -> int:
    """The next whole number of blocks, in rows."""
    return -(-size // BLOCK) * BLOCK


def basis_of(
    atoms: Float[Array, "a d"], gram: bool = True, gram_dtype: Any = jnp.float32, capacity: int | None = None
) -> Basis:
    """Pads to `capacity` (default: the next whole number of blocks) and computes inner products if `gram`."""
    rows = whole_blocks(max(atoms.shape[0] if capacity is None else capacity, 1))
    padded = jnp.zeros((rows, atoms.shape[1]), jnp.float32).at[: atoms.shape[0]].set(atoms)
    if not gram:
        return Basis(padded, None)
    if gram_dtype == jnp.float32:
        return Basis(padded, product(padded, padded))
    blocks = padded.reshape(-1, BLOCK, atoms.shape[1])
    gram_rows = jax.lax.map(lambda block: product(block, padded).astype(gram_dtype), blocks)  # never whole in float32
    return Basis(padded, gram_rows.reshape(rows, rows))


def append(basis: Basis, new: Float[Array, "m d"], count: Int[Array, ""]) -> Basis:
    """Writes `new` into the rows from `count` on. Zero rows of `new` leave their rows free.

    The Gram matrix gets the m new rows and columns, 2·m·a·d operations. Raises nothing: the caller sees to it
    that count + m rows exist.
    """
    atoms = jax.lax.dynamic_update_slice(basis.atoms, new, (count, 0))
    if basis.gram is None:
        return Basis(atoms, None)
    rows = product(new, atoms).astype(basis.gram.dtype)
    gram = jax.lax.dynamic_update_slice(basis.gram, rows, (count, 0))
    return Basis(atoms, jax.lax.dynamic_update_slice(gram, rows.T, (0, count)))


def resized(basis: Basis, rows: int, gram: bool = True) -> Basis:
    """The basis with zero rows added or taken off at the end, and its Gram matrix if it has one and `gram`."""
    keep = min(rows, basis.atoms.shape[0])
    atoms = jnp.zeros((rows, basis.atoms.shape[1])).at[:keep].set(basis.atoms[:keep])
    if basis.gram is None or not gram:
        return Basis(atoms, None)
    return Basis(atoms, jnp.zeros((rows, rows), basis.gram.dtype).at[:keep, :keep].set(basis.gram[:keep, :keep]))


def gram_pays(size: int, itemsize: int = 4, limit: int = 4 << 30) -> bool:
    """Whether the Gram matrix of `size` atoms stays under `limit` bytes; where it does, it is the faster form."""
    return size * size * itemsize <= limit


def residual_form(basis: Basis) -> Form:
    """State: the residual [b d]."""
    size = basis.atoms.shape[0]
    tile = min(TILE, size)

    def best(r: Array, score: Callable[[Array], Array]) -> tuple[Array, Array]:
        def compare(n: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
            start = jnp.minimum(n * tile, size - tile)  # the last tile may overlap the one before
            scores = score(product(r, jax.lax.dynamic_slice_in_dim(basis.atoms, start, tile)))
            j, value = chosen(scores)
            better = value > found[1]
            return jnp.where(better, start + j, found[0]), jnp.where(better, value, found[1])

        nothing = jnp.zeros(r.shape[0], jnp.int32), jnp.full(r.shape[0], -jnp.inf)
        return jax.lax.fori_loop(0, -(-size // tile), compare, nothing)

    return Form(
        start=lambda x: x,
        best=best,
        at=lambda r, s: jnp.einsum("bd,bkd->bk", r, basis.atoms[s], precision=jax.lax.Precision.HIGHEST),
        subtract=lambda r, j, v: r - v[:, None] * basis.atoms[j],
        inner=lambda j, s: jnp.einsum(
            "bd,bkd->bk", basis.atoms[j], basis.atoms[s], precision=jax.lax.Precision.HIGHEST
        ),
    )


def gram_form(basis: Basis) -> Form:
    """State: the correlations [b a] in float32, whatever the Gram matrix is kept in.

    They are laid out as blocks [b a/64 64] so that the search reads them as they lie.
    """
    if basis.gram is None:
        raise ValueError("This basis carries no Gram matrix.")
    gram = basis.gram
    size = gram.shape[0]
    blocks = gram.reshape(size, size // BLOCK, BLOCK)
    return Form(
        start=lambda x: product(x, basis.atoms).reshape(x.shape[0], size // BLOCK, BLOCK),
        best=lambda c, score: chosen(score(c.reshape(c.shape[0], size))),
        at=lambda c, s: jnp.take_along_axis(c.reshape(c.shape[0], size), s, axis=1),
        subtract=lambda c, j, v: c - v[:, None, None] * blocks[j].astype(jnp.float32),
        inner=lambda j, s: gram[j[:, None], s].astype(jnp.float32),
    )


def form_of(basis: Basis) -> Form:
    """Gram form where the basis has a Gram matrix."""
    return residual_form(basis) if basis.gram is None else gram_form(basis)


def chosen(scores: Float[Array, "b a"]) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """The first largest of each row, and its value."""
    j = first_largest(scores)
    return j, jnp.take_along_axis(scores, j[:, None], axis=1)[:, 0]


def first_largest(scores: Float[Array, "b a"]) -> Int[Array, " b"]:
    """argmax along atoms, ties to the lowest index, in two levels.

    A block's maximum is a plain reduction that vectorises; only the winning block is searched for the place.
    """
    blocks = scores.reshape(scores.shape[0], -1, BLOCK)
    block = jnp.argmax(blocks.max(axis=2), axis=1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return (block * BLOCK + jnp.argmax(inside, axis=1)).astype(jnp.int32)
