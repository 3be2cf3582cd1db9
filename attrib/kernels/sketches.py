"""Sketches of whitened gradients H = scale * (qs^T G qa): whole, gathered, projected, or as leading singular pairs."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .lowrank import leading_pairs

TOGETHER = 16  # examples at a time on a GPU; a CPU takes them one by one


@jax.jit
def whitened(
    qa: Float[Array, "i ri"],
    qs: Float[Array, "o ro"],
    scale: Float[Array, "ro ri"],
    a: Float[Array, "b s i"],
    g: Float[Array, "b s o"],
) -> Float[Array, "b k"]:
    """H of every example, flattened."""
    return _each_whitened(jnp.ravel, qa, qs, scale, a, g)


@partial(jax.jit, static_argnames="count")
def whitened_pairs(
    qa: Float[Array, "i ri"],
    qs: Float[Array, "o ro"],
    scale: Float[Array, "ro ri"],
    a: Float[Array, "b s i"],
    g: Float[Array, "b s o"],
    count: int,
) -> Float[Array, "b k"]:
    """`count` singular pairs of H: left vectors, then right ones, each scaled by the root of its singular value."""

    def finish(h: Float[Array, "o i"]) -> Float[Array, " k"]:
        left, right = leading_pairs(h, count)
        root = jnp.sqrt(jnp.linalg.norm(right, axis=0))
        return jnp.concatenate([(left * root).ravel(), (right / jnp.where(root > 0, root, 1.0)).T.ravel()])

    return _each_whitened(finish, qa, qs, scale, a, g)


@jax.jit
def whitened_coordinates(
    qa: Float[Array, "i ri"],
    qs: Float[Array, "o ro"],
    scale: Float[Array, "ro ri"],
    place: Int[Array, " k"],
    a: Float[Array, "b s i"],
    g: Float[Array, "b s o"],
) -> Float[Array, "b k"]:
    """The entries of H at `place`, counted along its rows."""
    return _each_whitened(lambda h: h.ravel()[place], qa, qs, scale, a, g)


@jax.jit
def whitened_projection(
    qa: Float[Array, "i ri"],
    qs: Float[Array, "o ro"],
    scale: Float[Array, "ro ri"],
    left: Float[Array, "ro k"],
    right: Float[Array, "ri l"],
    a: Float[Array, "b s i"],
    g: Float[Array, "b s o"],
) -> Float[Array, "b n"]:
    """left^T H right of every example, flattened."""
    return _each_whitened(lambda h: (left.T @ h @ right).ravel(), qa, qs, scale, a, g)


def _each_whitened(
    finish: Callable[[jax.Array], jax.Array],
    qa: jax.Array,
    qs: jax.Array,
    scale: jax.Array,
    a: jax.Array,
    g: jax.Array,
) -> Float[Array, "b k"]:
    """finish(H) of every example, rotated in the cheaper order."""
    (i, ri), (o, ro), s = qa.shape, qs.shape, a.shape[1]
    positions_first = s * (i * ri + o * ro + ro * ri) < o * i * (s + ri) + o * ri * ro
    if positions_first:
        a, g = a @ qa, g @ qs

    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        formed = pair[1].T @ pair[0]
        return finish(scale * (formed if positions_first else qs.T @ (formed @ qa)))

    return jax.lax.map(one, (a, g), batch_size=None if jax.default_backend() == "cpu" else TOGETHER)
