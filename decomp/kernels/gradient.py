"""Gradient pursuit: after each choice, one steepest-descent step along the support.

Blumensath & Davies 2008, algorithm with the gradient direction. With g = D_S r on the support and u = D_Sᵀ g
the best step length is a = ‖g‖²/‖u‖², and the residual's squared norm falls by a‖g‖². Cheaper than a
projection where k is large, and never above matching pursuit's first steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from .forms import Form
from .pursuit import Pursuit, Rule, Step


class Support(NamedTuple):
    """gram: [b k k] inner products of the chosen atoms; fresh: [b k] 1 where a slot is an atom's first."""

    gram: Float[Array, "b k k"]
    fresh: Float[Array, "b k"]


def descend(
    form: Form, signal: Array, indices: Array, values: Array, memory: Support, step: Array, live: Array
) -> Step:
    """values_S += a g;  r ← r − a Σ_s g_s d_s."""
    j = indices[:, step]
    steps = jnp.arange(values.shape[1])
    before = (steps < step) & (memory.fresh > 0)
    again = jnp.any(before & (indices == j[:, None]), axis=1)
    fresh = memory.fresh.at[:, step].set(jnp.where(live & ~again, 1.0, 0.0))
    cross = form.inner(j, indices)
    gram = memory.gram.at[:, step, :].set(cross).at[:, :, step].set(cross)
    g = form.at(signal, indices) * fresh
    g = jnp.where(live[:, None], g, 0.0)
    square = jnp.sum(g * g, axis=1)
    moved = jnp.einsum("bs,bst,bt->b", g, gram, g, precision=jax.lax.Precision.HIGHEST)
    length = jnp.where(moved > 0, square / jnp.maximum(moved, 1e-30), 0.0)
    delta = length[:, None] * g
    signal = jax.lax.fori_loop(0, step + 1, lambda s, state: form.subtract(state, indices[:, s], delta[:, s]), signal)
    return Step(signal, values + delta, length * square, Support(gram, fresh))


GRADIENT = Rule(jnp.abs, lambda b, k: Support(jnp.zeros((b, k, k)), jnp.zeros((b, k))), descend)


def gradient_pursuit(k: int, target: float = 0.0) -> Pursuit:
    """Signed gradient pursuit."""
    return Pursuit(GRADIENT, k, target)
