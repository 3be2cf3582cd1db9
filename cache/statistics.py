"""Statistics that several packages judge by: rank correlation and the linear datamodeling score (Park et al. 2023).

A prediction of how outputs depend on the training data is judged on models that were trained on subsets of it: LDS is
Spearman's correlation of predicted with actual outputs over subsets, averaged over queries.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from .display.interval import Interval
from .errors import DataError

FEWEST = {True: 12, False: 8}  # subsets, by whether they are resampled


@dataclass(frozen=True)
class LDS(Interval):
    """The mean over queries with its bootstrap interval.

    per_query: [q]. subsets: how many distinct ones. constant: queries whose actual output is the same for every
    subset; their correlation counts as 0.
    """

    per_query: Float[np.ndarray, " q"] = field(default_factory=lambda: np.empty(0), compare=False, repr=False)
    subsets: int = 0
    constant: int = 0

    def __str__(self) -> str:
        return f"LDS {self:.3f} ({self.subsets} subsets, {len(self.per_query)} queries)"


@dataclass(frozen=True)
class Difference(Interval):
    """The mean of LDS(a) - LDS(b) under the same resampled subsets and queries, its interval, and the share of
    resamples in which a is below b."""

    below: float = np.nan

    def __str__(self) -> str:
        return f"difference {self:+.3f}, below zero in {self.below:.1%} of resamples"


def spearman(x: Float[np.ndarray, "e q"], y: Float[np.ndarray, "e q"]) -> Float[np.ndarray, " q"]:
    """Rank correlation of every column; 0 when a column is constant.

    >>> x = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    >>> spearman(x, -x).tolist()
    [-1.0, 0.0]
    """
    x, y = rankdata(x, axis=0), rankdata(y, axis=0)
    x, y = x - x.mean(0), y - y.mean(0)
    size = np.sqrt((x * x).sum(0) * (y * y).sum(0))
    return np.divide((x * y).sum(0), size, out=np.zeros(x.shape[1]), where=size > 0)


def lds(
    predicted: Float[np.ndarray, "e q"],
    actual: Float[np.ndarray, "e q"],
    *,
    over_subsets: bool = True,
    resamples: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> LDS:
    """LDS of predicted against actual outputs of e models, each trained on a subset of its own.

    Args:
        predicted: [e q], any unit.
        actual: [e q].
        over_subsets: whether the interval resamples subsets and queries, or queries alone (fast for many outputs).
        resamples: bootstrap samples.
        level: of the interval.
        seed: of the bootstrap.

    Raises:
        DataError: there are too few subsets.
    """
    check_count(len(predicted), over_subsets)
    each = spearman(predicted, actual)
    if over_subsets:
        rows = _resampled(predicted.shape, resamples, seed)
        found = [spearman(predicted[e], actual[e])[q].mean() for e, q in rows]
    else:
        rng = np.random.default_rng(seed)
        found = [each[rng.integers(0, len(each), len(each))].mean() for _ in range(resamples)]
    interval = Interval.of(each.mean(), np.array(found), level)
    constant = int((np.ptp(actual, axis=0) == 0).sum())
    return LDS(interval.value, interval.low, interval.high, level, each, len(predicted), constant)


def lds_difference(
    first: Float[np.ndarray, "e q"],
    second: Float[np.ndarray, "e q"],
    actual: Float[np.ndarray, "e q"],
    *,
    resamples: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """LDS of the first prediction less that of the second, by a paired bootstrap: both see the same resampled subsets
    and queries. Arguments and errors are those of `lds`."""
    check_count(len(first), True)

    def difference(e: np.ndarray) -> np.ndarray:
        return spearman(first[e], actual[e]) - spearman(second[e], actual[e])

    found = np.array([difference(e)[q].mean() for e, q in _resampled(first.shape, resamples, seed)])
    whole = Interval.of(difference(np.arange(len(first))).mean(), found, level)
    return Difference(whole.value, whole.low, whole.high, level, float((found < 0).mean()))


def check_count(subsets: int, over_subsets: bool) -> None:
    """Raises DataError when these are too few subsets for an LDS."""
    if subsets < FEWEST[over_subsets]:
        raise DataError(
            f"{subsets} distinct subsets are too few for a rank correlation with an interval.",
            f"Retrain on at least {FEWEST[over_subsets]} subsets; 50 to 100 give a useful interval.",
        )


def _resampled(shape: tuple[int, ...], resamples: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    subsets, queries = shape
    return [(rng.integers(0, subsets, subsets), rng.integers(0, queries, queries)) for _ in range(resamples)]
