"""Queries at low rank: a preconditioned query gradient P [o i] kept as left right^T with r columns.

Which part of P may be dropped is a question about scores, not about P. In the eigenbasis the training gradients'
coordinates are uncorrelated with second moments lambda, so dropping E changes a score by sum of E_oi G_oi, whose mean
square is sum of lambda_oi E_oi^2. With sqrt(lambda) ~ u v^T (its best rank-1 approximation, positive by Perron and
Frobenius) that is |diag(u) E diag(v)|^2, which the truncated singular value decomposition of diag(u) P diag(v)
makes smallest. A plain truncation of P spends its rank where P is large, which after preconditioning is where no
training gradient goes. (The plain form is Section 3.2.2 of Grosse et al. 2023; the weighting is ours.)
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..curvature import Curvature

OVERSAMPLING = 16
POWER_STEPS = 2
FLOOR = 1e-3  # of the largest weight: a direction without curvature still counts a little


class LowRank(NamedTuple):
    """P_q ~ left_q right_q^T for every query, in the weights' own basis."""

    left: Float[Array, "q o r"]
    right: Float[Array, "q i r"]

    @property
    def rank(self) -> int:
        return self.left.shape[2]

    @property
    def nbytes(self) -> int:
        return self.left.nbytes + self.right.nbytes

    def dense(self) -> Float[Array, "q o i"]:
        return jnp.einsum("qor,qir->qoi", self.left, self.right)


class Weights(NamedTuple):
    """Positive weights u [o] and v [i], u v^T the best rank-1 approximation of sqrt(eigenvalues)."""

    u: Float[np.ndarray, " o"]
    v: Float[np.ndarray, " i"]


def curvature_weights(eigenvalues: Float[np.ndarray, "o i"], steps: int = 30) -> Weights:
    """The leading singular vectors of sqrt(eigenvalues) by the power method, floored and scaled to a maximum of 1.
    A site without any curvature is weighted evenly."""
    root = np.sqrt(np.maximum(np.asarray(eigenvalues, np.float64), 0))
    if root.max(initial=0.0) == 0.0:
        return Weights(np.ones(root.shape[0]), np.ones(root.shape[1]))
    v = root.mean(0)
    for _ in range(steps):
        u = root @ v
        u /= np.linalg.norm(u)
        v = root.T @ u
        v /= np.linalg.norm(v)
    u, v = u / u.max(), v / v.max()
    return Weights(np.maximum(u, FLOOR), np.maximum(v, FLOOR))


def truncated(
    factors: Curvature, site: str, prepared: Float[Array, "q o i"], rank: int, weighted: bool = True
) -> LowRank:
    """The preconditioned gradients of one site at this rank (or at the largest there is, min(o, i), if less)."""
    state, dtype = factors.per_site[site], prepared.dtype
    o, i = prepared.shape[1:]
    weights = curvature_weights(state.eigenvalues) if weighted else Weights(np.ones(o), np.ones(i))
    u, v = jnp.asarray(weights.u, dtype), jnp.asarray(weights.v, dtype)
    qa = jnp.eye(i, dtype=dtype) if state.qa is None else jnp.asarray(state.qa, dtype)
    qs = jnp.eye(o, dtype=dtype) if state.qs is None else jnp.asarray(state.qs, dtype)
    return LowRank(*_truncate(prepared, qa * v, qs * u, qa / v, qs / u, min(rank, o, i)))


@partial(jax.jit, static_argnames="rank")
def _truncate(
    prepared: Float[Array, "q o i"],
    into_a: Float[Array, "i i"],
    into_s: Float[Array, "o o"],
    back_a: Float[Array, "i i"],
    back_s: Float[Array, "o o"],
    rank: int,
) -> tuple[Float[Array, "q o r"], Float[Array, "q i r"]]:
    """Truncated SVD of into_s^T P into_a, taken back to the weights' basis."""
    left, right = leading_pairs(jnp.einsum("op,qoi,ij->qpj", into_s, prepared, into_a), rank)
    return back_s @ left, back_a @ right


def leading_pairs(
    matrix: Float[Array, "*q o i"], count: int
) -> tuple[Float[Array, "*q o {count}"], Float[Array, "*q i {count}"]]:
    """left right^T, the best approximation of these ranks: left's columns are orthonormal, right's as long as the
    singular values. By subspace iteration (Halko, Martinsson and Tropp 2011, Algorithm 4.4)."""
    width = min(count + OVERSAMPLING, *matrix.shape[-2:])
    omega = jax.random.normal(jax.random.key(0), (matrix.shape[-1], width), matrix.dtype)
    basis = jnp.linalg.qr(matrix @ omega)[0]
    for _ in range(POWER_STEPS):
        other = jnp.linalg.qr(jnp.swapaxes(matrix, -1, -2) @ basis)[0]
        basis = jnp.linalg.qr(matrix @ other)[0]
    small = jnp.swapaxes(basis, -1, -2) @ matrix  # [... w i]
    _, turn = jnp.linalg.eigh(small @ jnp.swapaxes(small, -1, -2))
    turn = turn[..., ::-1][..., :count]  # eigenvalues ascend
    return basis @ turn, jnp.swapaxes(small, -1, -2) @ turn


def worth_it(rank: int | None, o: int, i: int) -> bool:
    """Whether rank-r factors of an [o i] matrix are smaller than the matrix."""
    return rank is not None and rank * (o + i) < o * i
