"""Eigendecompositions with their own check, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.jit
def checked_eigh(
    matrix: Float[Array, "n n"],
) -> tuple[Float[Array, " n"], Float[Array, "n n"], Float[Array, ""]]:
    """Ascending eigenvalues, column eigenvectors Q, and the largest |Q^T Q - I|, NaN if Q is not finite."""
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=True)
    gram = jnp.matmul(vectors.T, vectors, precision="highest")
    return values, vectors, jnp.abs(gram - jnp.eye(len(gram), dtype=gram.dtype)).max()
