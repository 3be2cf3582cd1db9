"""Truncated singular value decompositions of batches of matrices."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

OVERSAMPLING = 16
POWER_STEPS = 2


@partial(jax.jit, static_argnames="rank")
def truncated_pairs(
    matrix: Float[Array, "q o i"],
    into_a: Float[Array, "i i"],
    into_s: Float[Array, "o o"],
    back_a: Float[Array, "i i"],
    back_s: Float[Array, "o o"],
    rank: int,
) -> tuple[Float[Array, "q o r"], Float[Array, "q i r"]]:
    """left right^T ~ matrix: the truncated SVD of into_s^T matrix into_a, multiplied with back_s and back_a."""
    left, right = leading_pairs(jnp.einsum("op,qoi,ij->qpj", into_s, matrix, into_a), rank)
    return back_s @ left, back_a @ right


def leading_pairs(
    matrix: Float[Array, "*q o i"], count: int
) -> tuple[Float[Array, "*q o {count}"], Float[Array, "*q i {count}"]]:
    """left right^T, the best approximation of this rank: left's columns are orthonormal, right's as long as the
    singular values. By subspace iteration (Halko, Martinsson and Tropp 2011, Algorithm 4.4)."""
    width = min(count + OVERSAMPLING, *matrix.shape[-2:])
    omega = jax.random.normal(jax.random.key(0), (matrix.shape[-1], width), matrix.dtype)
    basis = jnp.linalg.qr(matrix @ omega)[0]
    for _ in range(POWER_STEPS):
        other = jnp.linalg.qr(jnp.swapaxes(matrix, -1, -2) @ basis)[0]
        basis = jnp.linalg.qr(matrix @ other)[0]
    small = jnp.swapaxes(basis, -1, -2) @ matrix  # [... w i]
    _, vectors = jnp.linalg.eigh(small @ jnp.swapaxes(small, -1, -2))
    leading = vectors[..., ::-1][..., :count]  # eigenvalues ascend
    return basis @ leading, jnp.swapaxes(small, -1, -2) @ leading
