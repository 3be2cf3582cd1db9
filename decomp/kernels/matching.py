"""Matching pursuit: take the best atom with its own correlation as the coefficient.

Mallat & Zhang 1993; the encoder of ITDA (Leask et al. 2025, algorithm 1; its text says orthogonal, its code
and algorithm 2 are plain matching pursuit). Unit atoms give ‖r_{t+1}‖² = ‖r_t‖² − c_j², so the residual's norm
costs nothing, and an atom may be chosen again.
"""

import jax.numpy as jnp
from jax import Array

from .forms import Form
from .pursuit import Pursuit, Rule, Step


def take_correlation(
    form: Form, signal: Array, indices: Array, values: Array, memory: None, step: Array, live: Array
) -> Step:
    """values[step] = c_j;  r ← r − c_j d_j."""
    j = indices[:, step]
    v = jnp.where(live, form.at(signal, j[:, None])[:, 0], 0.0)
    return Step(form.subtract(signal, j, v), values.at[:, step].set(v), v * v, memory)


SIGNED = Rule(jnp.abs, lambda b, k: None, take_correlation)
NONNEGATIVE = Rule(lambda c: c, lambda b, k: None, take_correlation)


def matching_pursuit(k: int, target: float = 0.0) -> Pursuit:
    """Signed: the largest |c|, coefficients of either sign (as ITDA's encoder)."""
    return Pursuit(SIGNED, k, target)


def nonnegative_matching_pursuit(k: int, target: float = 0.0) -> Pursuit:
    """The largest c, never below zero; a signal is done when no atom correlates positively."""
    return Pursuit(NONNEGATIVE, k, target)


def refitted_matching_pursuit(k: int, target: float = 0.0) -> Pursuit:
    """Signed matching pursuit chooses the support, least squares its coefficients; most of the way to
    orthogonal matching pursuit for the price of one k × k system a signal."""
    return Pursuit(SIGNED, k, target, refit=True)
