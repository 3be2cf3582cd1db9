"""Sparse autoencoders: the latents of a signal, and the losses that they and dictionaries are trained with."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from .forms import basis_of, first_largest, gram_pays, whole_blocks
from .matching import take_correlation
from .pursuit import Pursuit, chunk_rows, encode

SILENT = 32768  # tokens after which a latent that has not fired counts as dead in training


class Weights(NamedTuple):
    """encoder [d a], bias [a], decoder [a d] with unit rows."""

    encoder: Float[Array, "d a"]
    bias: Float[Array, " a"]
    decoder: Float[Array, "a d"]


@jax.jit
def most_active(x: Array, encoder: Array, bias: Array, threshold: Array) -> Array:
    """The largest number of latents that one of the signals has."""
    pre = jnp.matmul(x, encoder, precision=jax.lax.Precision.HIGHEST) + bias
    return jnp.sum((pre > 0) & (pre >= threshold), axis=1).max(initial=0)


@partial(jax.jit, static_argnums=4)
def largest(x: Array, encoder: Array, bias: Array, threshold: Array, k: int) -> tuple[Array, Array]:
    """The k largest latents of each signal that reach the threshold, indices and values [b k].

    One at a time: a processor's own top-k sorts every row, which takes far longer.
    """
    b, size = x.shape[0], encoder.shape[1]
    rows = jnp.arange(b)
    pre = jnp.matmul(x, encoder, precision=jax.lax.Precision.HIGHEST) + bias
    kept = jnp.where((pre > 0) & (pre >= threshold), pre, -jnp.inf)
    padded = jnp.full((b, whole_blocks(size)), -jnp.inf).at[:, :size].set(kept)

    def take(step: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        left, indices, values = state
        j = first_largest(left)
        return left.at[rows, j].set(-jnp.inf), indices.at[:, step].set(j), values.at[:, step].set(left[rows, j])

    start = (padded, jnp.zeros((b, k), jnp.int32), jnp.zeros((b, k)))
    _, indices, values = jax.lax.fori_loop(0, k, take, start)
    return jnp.where(values > 0, indices, 0), jnp.where(values > 0, values, 0.0)


def training_loss(
    weights: Weights, x: Float[Array, "b d"], silent: Float[Array, " a"], kind: str, k: int, auxiliary: float
) -> tuple[Array, tuple[Array, Array]]:
    """Mean squared error over the variance of the batch, plus the auxiliary loss of the dead latents; with it which
    latents fired, and the smallest value kept."""
    pre = jnp.maximum(x @ weights.encoder + weights.bias, 0.0)
    z, cut = kept_largest(pre, kind, k)
    left = x - z @ weights.decoder
    error = jnp.sum(left**2) / jnp.sum(x**2)
    if auxiliary:
        dead = silent > SILENT

        def through_dead(pre: Array, decoder: Array) -> Array:
            kept = jnp.where(dead, pre, 0.0)
            kept = kept * (kept >= reached_by(jax.lax.stop_gradient(kept), min(pre.shape[1], 2 * k), 1))
            goal = jax.lax.stop_gradient(left)
            return jnp.sum((goal - kept @ decoder) ** 2) / jnp.maximum(jnp.sum(goal**2), 1e-12)

        other = jax.lax.cond(jnp.any(dead), through_dead, lambda *_: jnp.zeros(()), pre, weights.decoder)
        error = error + auxiliary * other
    return error, (jnp.any(z > 0, axis=0), cut)


def pursuit_loss(pursuit: Pursuit, atoms: Float[Array, "a d"], x: Float[Array, "b d"]) -> Array:
    """Squared error of the code of a pursuit with these unit atoms, over the squared norm of the batch.

    The choices have no derivative. Matching pursuit's coefficients are the correlations along the way, so its steps are
    taken again (Costa et al. 2025, arXiv 2506.03093). Where they solve least squares on the support they are fixed: the
    derivative of a minimum by what it is minimised over is zero.
    """
    fixed = jax.lax.stop_gradient(atoms)
    pays = gram_pays(len(atoms)) and len(atoms) < pursuit.k * len(x)  # than products with all atoms at every step
    code = encode(pursuit, x, basis_of(fixed, pays), chunk_rows())
    taken = (code.values != 0).astype(x.dtype)
    by_steps = not pursuit.refit and pursuit.rule.update is take_correlation

    def step(left: Array, chosen: tuple[Array, Array, Array]) -> tuple[Array, None]:
        j, live, value = chosen
        direction = atoms[j]
        if by_steps:
            value = live * jnp.sum(left * direction, axis=1)
        return left - value[:, None] * direction, None

    left = jax.lax.scan(step, x, (code.indices.T, taken.T, code.values.T))[0]
    return jnp.sum(left**2) / jnp.sum(x**2)


def unit_rows(x: Float[Array, "a d"]) -> Float[Array, "a d"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-8)


def kept_largest(pre: Float[Array, "b a"], kind: str, k: int) -> tuple[Array, Array]:
    """The largest of each row, or of the whole batch; and the smallest value kept."""
    fixed = jax.lax.stop_gradient(pre)
    if kind == "topk":
        floor = reached_by(fixed, k, 1)
    else:
        floor = reached_by(fixed, pre.shape[0] * k, None)
    return jnp.where((pre >= floor) & (pre > 0), pre, 0.0), jnp.mean(floor)


def reached_by(values: Float[Array, "b a"], count: int, axis: int | None) -> Array:
    """A value that `count` entries reach, of every row (axis 1) or of them all (None), by bisection: sorting takes far
    longer. values ≥ 0."""

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.sum(values >= middle, axis=axis, keepdims=True) >= count
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    highest = values.max(axis=axis, keepdims=True)
    return jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(highest), highest))[0]
