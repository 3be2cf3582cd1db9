"""Confidence intervals by resampling whole documents: tokens of one text are not independent."""

import numpy as np
from jaxtyping import Float

from whence.cache.display.interval import Interval


def per_document(values: np.ndarray, document: np.ndarray) -> Float[np.ndarray, " n"]:
    """Sum of [t] values within each document, documents in order of their id."""
    _, inverse = np.unique(document, return_inverse=True)
    return np.bincount(inverse, weights=np.asarray(values, np.float64))


def ratio(numerator: Float[np.ndarray, " n"], denominator: Float[np.ndarray, " n"], seed: int = 0) -> Interval:
    """Σ numerator / Σ denominator with a 95 % percentile bootstrap over the n units."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return Interval.bootstrap(numerator, denominator, statistic=lambda a, b: a.sum(-1) / b.sum(-1), rng=seed)
