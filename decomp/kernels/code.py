"""A sparse code: which atoms, with which coefficients, and what they leave unexplained."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


class Code(NamedTuple):
    """k steps of a pursuit for each of b signals.

    indices: [b k] atom chosen at each step. Steps that were not needed hold atom 0 with coefficient 0.
    values: [b k] coefficient of that step. Matching pursuit may choose an atom again, and then the steps add.
    residual: [b] squared norm of what the code leaves, carried exactly along the pursuit: the certificate.
    energy: [b] squared norm of the signal.
    """

    indices: Int[Array, "b k"]
    values: Float[Array, "b k"]
    residual: Float[Array, " b"]
    energy: Float[Array, " b"]

    @property
    def unexplained(self) -> Float[Array, " b"]:
        """Share of the signal's squared norm that is left, 0 for a signal that is zero."""
        return jnp.where(self.energy > 0, self.residual / jnp.maximum(self.energy, 1e-30), 0.0)


def decode(code: Code, atoms: Float[Array, "a d"]) -> Float[Array, "b d"]:
    """Σ_k values · atoms[indices], adding one step at a time so that no [b k d] array exists."""
    start = jnp.zeros((code.values.shape[0], atoms.shape[1]), atoms.dtype)
    for step in range(code.values.shape[1]):
        start = start + code.values[:, step, None] * atoms[code.indices[:, step]]
    return start


def densify(code: Code, size: int) -> Float[Array, "b {size}"]:
    """The code as an array over all atoms, for tools that want one."""
    rows = jnp.arange(code.values.shape[0])[:, None]
    return jnp.zeros((code.values.shape[0], size), code.values.dtype).at[rows, code.indices].add(code.values)
