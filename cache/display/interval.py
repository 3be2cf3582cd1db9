"""A number with its confidence interval, and the bootstrap that gives one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval [low, high] at `level`; low and high are NaN when no interval is known.

    >>> f"{Interval(0.5, 0.25, 1.0):.2f}", str(Interval(0.5))
    ('0.50 [0.25, 1.00]', '0.500')
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    level: float = 0.95

    @property
    def known(self) -> bool:
        """Whether there is an interval beside the estimate."""
        return not np.isnan(self.low)

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        return f"{self.value:{spec}}" + (f" [{self.low:{spec}}, {self.high:{spec}}]" if self.known else "")

    def __str__(self) -> str:
        return format(self)

    @staticmethod
    def of(value: float, resampled: np.ndarray, level: float = 0.95) -> "Interval":
        """The percentile interval of a statistic's resampled values; those that are NaN do not count."""
        resampled = np.asarray(resampled, np.float64)
        if not np.isfinite(resampled).any():
            return Interval(float(value), level=level)
        low, high = np.nanpercentile(resampled, [50 * (1 - level), 50 * (1 + level)])
        return Interval(float(value), float(low), float(high), level)

    @staticmethod
    def bootstrap(
        *samples: Shaped[np.ndarray, " n"],
        statistic: Callable[..., np.ndarray] | None = None,
        rng: int | np.random.Generator = 0,
        resamples: int = 1000,
        level: float = 0.95,
    ) -> "Interval":
        """A percentile bootstrap over n independent units.

        Args:
            samples: one array [n], or several that are resampled together.
            statistic: function of the samples that reduces their last axis; the mean by default.
            rng: generator, or its seed.
            resamples: how many bootstrap samples.
            level: of the interval.

        >>> Interval.bootstrap(np.ones(10))
        Interval(value=1.0, low=1.0, high=1.0, level=0.95)
        """
        of = statistic or (lambda values: values.mean(-1))
        arrays = [np.asarray(sample, np.float64) for sample in samples]
        rows = resampled_rows(len(arrays[0]), rng, resamples)
        return Interval.of(float(of(*arrays)), of(*(array[rows] for array in arrays)), level)


def resampled_rows(count: int, rng: int | np.random.Generator = 0, resamples: int = 1000) -> Int[np.ndarray, "e n"]:
    """Row numbers of bootstrap samples of `count` units."""
    return np.random.default_rng(rng).integers(0, count, (resamples, count))
