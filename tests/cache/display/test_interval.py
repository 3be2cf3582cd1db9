"""An interval is a number with bounds; the bootstrap covers what it says."""

import numpy as np
import pytest

from whence.cache.display.interval import Interval, resampled_rows


def test_how_it_is_printed() -> None:
    assert f"{Interval(0.5, -0.25, 1.0):+.2f}" == "+0.50 [-0.25, +1.00]"
    assert str(Interval(0.5)) == "0.500"
    assert not Interval(0.5).known


def test_a_mean_has_its_normal_interval() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = Interval.bootstrap(values, resamples=4000)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    np.testing.assert_allclose([found.low, found.high], [found.value - half, found.value + half], atol=0.01)


def test_samples_are_resampled_together() -> None:
    a = np.arange(1.0, 9.0)
    found = Interval.bootstrap(2 * a, a, statistic=lambda x, y: x.sum(-1) / y.sum(-1))
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)
    narrow, wide = (Interval.bootstrap(a, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_seed_is_one_sample() -> None:
    np.testing.assert_array_equal(resampled_rows(5, 3, 7), np.random.default_rng(3).integers(0, 5, (7, 5)))


def test_resamples_that_are_not_finite() -> None:
    assert not Interval.of(1.0, np.array([np.nan, np.nan])).known
    assert Interval.of(1.0, np.array([np.nan, 2.0, 2.0])).low == 2.0
