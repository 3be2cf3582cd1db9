"""Orthogonal matching pursuit: after each choice, project on all atoms chosen so far.

Pati et al. 1993; in Gram form, Rubinstein et al. 2008 ("Batch-OMP"). The residual stays orthogonal to the
support, so no atom is chosen twice, and one step costs a subtraction for every atom chosen so far.
"""

import jax
import jax.numpy as jnp
from jax import Array

from .forms import Form
from .orthogonal_basis import extend
from .pursuit import Pursuit, Rule, Step


def project(form: Form, signal: Array, indices: Array, values: Array, memory: Array, step: Array, live: Array) -> Step:
    """The residual is orthogonal to q_s for s < t, so y_t = ⟨q_t, r⟩ = R_tt c_j.

    memory: R = L⁻¹ [b k k] of the support's Gram matrix.
    With α += y_t R_t the residual loses y_t q_t = Σ_s y_t R_ts d_s: one subtraction for each chosen atom.
    """
    j = indices[:, step]
    steps = jnp.arange(values.shape[1])
    cross = jnp.where(steps < step, form.inner(j, indices), 0.0)
    inverse, scale = extend(memory, cross, step)
    y = jnp.where(live, form.at(signal, j[:, None])[:, 0] * scale, 0.0)
    delta = y[:, None] * inverse[:, step]
    signal = jax.lax.fori_loop(0, step + 1, lambda s, state: form.subtract(state, indices[:, s], delta[:, s]), signal)
    return Step(signal, values + delta, y * y, inverse)


ORTHOGONAL = Rule(jnp.abs, lambda b, k: jnp.zeros((b, k, k)), project)


def orthogonal_matching_pursuit(k: int, target: float = 0.0) -> Pursuit:
    """Signed orthogonal matching pursuit."""
    return Pursuit(ORTHOGONAL, k, target)
