"""Queries at low rank: a preconditioned query gradient P [o i] stored as left right^T with r columns.

Which part of P may be dropped is a question about scores, not about P. In the eigenbasis the training gradients'
coordinates are uncorrelated with second moments lambda, so dropping E changes a score by sum of E_oi G_oi, whose mean
square is sum of lambda_oi E_oi^2. With sqrt(lambda) ~ u v^T (its best rank-1 approximation, positive by Perron and
Frobenius) that is |diag(u) E diag(v)|^2, which the truncated singular value decomposition of diag(u) P diag(v)
makes smallest. A plain truncation of P spends its rank where P is large, which after preconditioning is where no
training gradient goes. (The plain form is Section 3.2.2 of Grosse et al. 2023; the weighting is ours.)
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import kernels
from ..curvature import SiteFactors, StoredSite

POWER_STEPS = 30
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


def curvature_weights(eigenvalues: Float[np.ndarray, "o i"]) -> Weights:
    """The leading singular vectors of sqrt(eigenvalues) by the power method, scaled to a maximum of 1, at least FLOOR.
    A site without any curvature gets equal weights."""
    root = np.sqrt(np.maximum(np.asarray(eigenvalues, np.float64), 0))
    if root.max(initial=0.0) == 0.0:
        return Weights(np.ones(root.shape[0]), np.ones(root.shape[1]))
    v = root.mean(0)
    for _ in range(POWER_STEPS):
        u = root @ v
        u /= np.linalg.norm(u)
        v = root.T @ u
        v /= np.linalg.norm(v)
    u, v = u / u.max(), v / v.max()
    return Weights(np.maximum(u, FLOOR), np.maximum(v, FLOOR))


def truncated(
    prepared: Float[Array, "q o i"], factors: SiteFactors | StoredSite, rank: int, weighted: bool = True
) -> LowRank:
    """Preconditioned gradients of one site at this rank (or at min(o, i) if that is less), weighted as described above
    or plainly truncated."""
    dtype, (o, i) = prepared.dtype, prepared.shape[1:]
    weights = curvature_weights(factors.eigenvalues) if weighted else Weights(np.ones(o), np.ones(i))
    u, v = jnp.asarray(weights.u, dtype), jnp.asarray(weights.v, dtype)
    own = zip((factors.qa, factors.qs), (i, o))
    qa, qs = (jnp.eye(width, dtype=dtype) if q is None else jnp.asarray(q, dtype) for q, width in own)
    return LowRank(*kernels.truncated_pairs(prepared, qa * v, qs * u, qa / v, qs / u, min(rank, o, i)))


def worth_it(rank: int | None, o: int, i: int) -> bool:
    """Whether rank-r factors of an [o i] matrix are smaller than the matrix."""
    return rank is not None and rank * (o + i) < o * i
