"""The curvature of LoRIF (Li et al. 2026, arXiv 2601.21929): the projected gradients' own, in a few directions.

At a site, with projected gradients g_n in D numbers, H = (1/N) sum g_n g_n^T + damping. With V [D r] and s the leading
eigenvectors and eigenvalues of the sum over N, Woodbury's identity gives

    H^-1 q = (q - V diag(s / (s + damping)) V^T q) / damping,

so D x D numbers are never formed. V and s come from subspace iteration over the rank factors that the index stores.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

DAMPING = 0.1  # of the mean eigenvalue
PASSES = 2  # of subspace iteration over the rows, before the one that gives the eigenvalues
MORE = 8  # directions iterated beyond those that are kept


@dataclass(frozen=True, eq=False)
class Subspace:
    """vectors: V [D r]; values: s [r]; damping."""

    vectors: Float[np.ndarray, "D r"]
    values: Float[np.ndarray, " r"]
    damping: float

    def solve(self, queries: Float[np.ndarray, "q D"]) -> Float[np.ndarray, "q D"]:
        """H^-1 of each query."""
        share = self.values / (self.values + self.damping)
        return (queries - (queries @ self.vectors * share) @ self.vectors.T) / np.float32(self.damping)


def subspace(
    tiles: Callable[[], Iterable[Float[np.ndarray, "n D"]]], width: int, directions: int, seed: int = 0
) -> Subspace:
    """The leading eigenvectors of (1/N) sum g g^T over the rows of all tiles, which are read PASSES + 1 times.

    Args:
        tiles: gives the rows [N D] in parts.
        width: D.
        directions: r, at most D.
    """
    kept = min(directions, width)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, min(width, kept + MORE))))[0]
    for _ in range(PASSES if len(basis) > basis.shape[1] else 0):  # a whole basis needs none
        moved = np.zeros(basis.shape)
        for g in tiles():
            moved += g.T @ (g @ basis.astype(np.float32))
        basis = np.linalg.qr(moved)[0]
    small, trace, count = np.zeros((basis.shape[1],) * 2), 0.0, 0
    for g in tiles():
        inside = (g @ basis.astype(np.float32)).astype(np.float64)
        small += inside.T @ inside
        trace, count = trace + float(np.sum(np.square(g, dtype=np.float64))), count + len(g)
    values, vectors = np.linalg.eigh(small / max(count, 1))
    damping = max(DAMPING * trace / max(count, 1) / width, 1e-30)
    leading = slice(None, -kept - 1, -1)
    found = (basis @ vectors)[:, leading].astype(np.float32)
    return Subspace(found, np.maximum(values[leading], 0).astype(np.float32), damping)
