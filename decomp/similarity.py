"""How alike two sets of activations of the same tokens are: X [t d] of one model or layer, Y [t e] of another.

A measure is a pair: `prepare` does once what depends on one side only, `compare` takes two prepared sides. Rows
of both must be the same tokens in the same order.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from whence.cache.display.interval import Interval, resampled_rows

ANCHORS = 300
NEIGHBOURS = 10
NEIGHBOUR_ROWS = 2000
KEPT = 20  # singular directions of SVCCA
SEED = 0


class Measure(NamedTuple):
    """prepare(x [t d]) -> anything; compare(one, other) -> a number, larger is more alike."""

    prepare: Callable[[np.ndarray], Any]
    compare: Callable[[Any, Any], float]

    def __call__(self, x: np.ndarray, y: np.ndarray) -> float:
        return self.compare(self.prepare(x), self.prepare(y))


def centred(x: np.ndarray) -> Float[np.ndarray, "t d"]:
    """Less the mean of every coordinate, in float64."""
    x = np.asarray(x, np.float64)
    return x - x.mean(axis=0)


def _cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019, linear kernel: ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖), Frobenius norms, both centred."""
    across = np.sum((x.T @ y) ** 2)
    return float(across / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def _directions(x: np.ndarray) -> Float[np.ndarray, "t k"]:
    """The leading left singular vectors of the centred rows."""
    return np.linalg.svd(centred(x), full_matrices=False)[0][:, :KEPT]


def _svcca(u: np.ndarray, v: np.ndarray) -> float:
    """Raghu et al. 2017: mean canonical correlation of the leading singular directions. Both are orthonormal, so
    the correlations are the singular values of UᵀV."""
    return float(np.linalg.svd(u.T @ v, compute_uv=False).mean())


def _scores(x: np.ndarray) -> Float[np.ndarray, "t k"]:
    """The leading principal components, unscaled."""
    u, s, _ = np.linalg.svd(centred(x), full_matrices=False)
    return u[:, :KEPT] * s[:KEPT]


def _svcca_as_published(p: np.ndarray, q: np.ndarray) -> float:
    """SVCCA as the code published with ITDA computes it: the eigenvalues of Σ_xx⁻¹ Σ_xy Σ_yy⁻¹ Σ_yx are squared
    canonical correlations, but that product is not symmetric, and a routine for symmetric matrices reads only
    its lower triangle. Kept to compare with the published numbers; it is no measure of anything."""
    within_p, within_q, across = p.T @ p, q.T @ q, p.T @ q
    matrix = np.linalg.solve(within_p, across) @ np.linalg.solve(within_q, across.T)
    squared = np.linalg.eigvalsh(matrix, UPLO="L")
    return float(np.sqrt(np.clip(squared, 0, 1)).mean())


def _relative(x: np.ndarray) -> Float[np.ndarray, "t a"]:
    """Cosine of every row with the same random anchor rows, scaled to unit rows."""
    x = np.asarray(x, np.float64)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    anchors = np.random.default_rng(SEED).choice(len(x), min(ANCHORS, len(x)), replace=False)
    found = unit @ unit[anchors].T
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def _mean_cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Moschella et al. 2023: mean cosine between the relative representations of the same token."""
    return float(np.mean(np.sum(x * y, axis=1)))


def _neighbours(x: np.ndarray) -> Int[np.ndarray, "t n"]:
    """The nearest rows by cosine of each of the same random rows, itself not counted."""
    rows = np.sort(np.random.default_rng(SEED).permutation(len(x))[:NEIGHBOUR_ROWS])
    unit = np.asarray(x, np.float32)[rows]
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    near = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    return np.argpartition(-near, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """Huh et al. 2024: mean share of the neighbours that two representations have in common."""
    return float((a[:, :, None] == b[:, None, :]).any(axis=2).mean())


class _Sides(NamedTuple):
    """inverse: pseudo-inverse of the even rows; even, odd: the rows, centred."""

    inverse: np.ndarray
    even: np.ndarray
    odd: np.ndarray


def _sides(x: np.ndarray) -> _Sides:
    x = centred(x)
    return _Sides(np.linalg.pinv(x[::2], rcond=1e-8), x[::2], x[1::2])


def _regression(x: _Sides, y: _Sides) -> float:
    """R² of the least-squares map from x to y, fitted on even rows and judged on odd ones."""
    left = np.sum((y.odd - x.odd @ (x.inverse @ y.even)) ** 2)
    return float(1 - left / np.sum((y.odd - y.odd.mean(axis=0)) ** 2))


cka = Measure(centred, _cka)
svcca = Measure(_directions, _svcca)
svcca_as_published = Measure(_scores, _svcca_as_published)
relative = Measure(_relative, _mean_cosine)
mutual_neighbours = Measure(_neighbours, _shared)
regression = Measure(_sides, _regression)

MEASURES: Mapping[str, Measure] = {
    "linear regression": regression,
    "linear CKA": cka,
    "SVCCA": svcca,
    "SVCCA as published": svcca_as_published,
    "relative representations": relative,
    "mutual neighbours": mutual_neighbours,
}


def bootstrap(
    measure: Measure, x: np.ndarray, y: np.ndarray, document: np.ndarray, seed: int = 0, draws: int = 100
) -> Interval:
    """The measure with a 95 % interval, by resampling documents with all their rows.

    Rows that a draw repeats make most measures larger, so the interval is the spread of the draws about their
    median, laid around the value.
    """
    _, inverse = np.unique(document, return_inverse=True)
    members = [np.flatnonzero(inverse == n) for n in range(inverse.max() + 1)]
    drawn = []
    for chosen in resampled_rows(len(members), seed, draws):
        rows = np.concatenate([members[n] for n in chosen])
        drawn.append(measure(x[rows], y[rows]))
    value = measure(x, y)
    low, high = value + np.percentile(drawn, [2.5, 97.5]) - np.median(drawn)
    return Interval(value, float(low), float(high))
