"""Confidence intervals by resampling whole documents: tokens of one text are not independent."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

DRAWS = 1000


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resampled(count: int, seed: int = 0, draws: int = DRAWS) -> Int[np.ndarray, "draws count"]:
    """Row numbers of bootstrap samples of `count` units."""
    return np.random.default_rng(seed).integers(0, count, (draws, count))


def per_document(values: np.ndarray, document: np.ndarray) -> Float[np.ndarray, " n"]:
    """Sum of [t] values within each document, documents in order of their id."""
    _, inverse = np.unique(document, return_inverse=True)
    return np.bincount(inverse, weights=np.asarray(values, np.float64))


def ratio(numerator: Float[np.ndarray, " n"], denominator: Float[np.ndarray, " n"], seed: int = 0) -> Estimate:
    """Σ numerator / Σ denominator with a percentile bootstrap over the n units."""
    rows = resampled(len(numerator), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = numerator[rows].sum(axis=1) / denominator[rows].sum(axis=1)
        value = float(numerator.sum() / denominator.sum())
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return Estimate(value, float(low), float(high))


def mean(values: np.ndarray, seed: int = 0) -> Estimate:
    """The mean of n independent values."""
    values = np.asarray(values, np.float64)
    return ratio(values, np.ones(len(values)), seed)
