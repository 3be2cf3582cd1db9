"""Shared by the tables of condensation: digits with a nuisance, splits, the sweep of rates, comparisons in words.

A rate is chosen on a validation split by sets and networks of their own; no table is computed from either.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from whence.cache.display.interval import Interval
from whence.unlearn.condense import Condensed, Pool, Settings, Training, condense, evaluate
from whence.unlearn.condense.condensing import Diverged
from whence.unlearn.condense.evaluate import Accuracies
from whence.unlearn.condense.selection import select

from .forgetting import digits

PATTERNS = ((1, 0), (0, 1), (1, 1), (1, 2))
PUBLISHED = 0.1  # rate of DC and of DCC in their papers, in the same units


def digit_images(strength: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Digits [n 8 8], in units of their standard deviation, in an order of their own; plus four smooth patterns, the
    same for all classes, each with a normal coefficient of its own for every image: together, their standard deviation
    is `strength`."""
    x, y = digits()
    rng = np.random.default_rng([seed, 7])
    waves = [np.cos(np.pi * np.arange(8)[:, None] * a / 8 + np.pi * np.arange(8) * b / 8) for a, b in PATTERNS]
    patterns = np.stack([wave / np.sqrt(len(PATTERNS) * np.mean(wave**2)) for wave in waves])
    nuisance = np.einsum("nk,khw->nhw", rng.normal(size=(len(x), len(PATTERNS))), patterns)
    return ((x - x.mean()) / x.std() + strength * nuisance).astype(np.float32), y


def split(x: np.ndarray, y: np.ndarray, validation: int = 300, test: int = 500) -> tuple[Pool, Pool, Pool]:
    """Pools to condense, to choose rates on and to report on."""
    cut = len(x) - test - validation
    train = Pool.of((x[:cut], y[:cut]))
    return (
        train,
        Pool.of((x[cut:-test], y[cut:-test]), train.classes, train.scaling),
        Pool.of((x[-test:], y[-test:]), train.classes, train.scaling),
    )


@dataclass(frozen=True)
class Sweep:
    """Rates to try, on how many sets and with how many networks each."""

    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    sets: int = 1
    networks: int = 5

    def of(self, settings: Settings, train: Pool, validation: Pool, training: Training) -> dict[float, float]:
        """Mean validation accuracy at every rate, percent; a rate that diverges scores 0."""
        found = {}
        for lr in self.rates:
            try:
                condensed = condense(train, replace(settings, lr=lr), tuple(range(100, 100 + self.sets)), quiet=True)
                found[lr] = evaluate(condensed, validation, settings.network, training, self.networks, seed=1).mean
            except Diverged:
                found[lr] = 0.0
        return found


def best(sweep: dict[float, float]) -> float:
    return max(sweep, key=lambda lr: sweep[lr])


def sets_of(settings: Settings, train: Pool, count: int) -> tuple[Condensed, ...]:
    """The sets that are reported on; none of them was used to choose the rate."""
    return condense(train, settings, tuple(range(count)), quiet=True)


def random_sets(train: Pool, per_class: int, count: int) -> list[Pool]:
    return [select(train, "random", per_class, seed) for seed in range(count)]


def below(a: Accuracies, b: Accuracies) -> bool:
    """Whether the interval of `a` lies wholly below that of `b`."""
    return a.interval()[1] < b.interval()[0]


def at_which(hits: Sequence[object], of: str) -> str:
    """In words: at which of them; `of` names what they are."""
    return "no, at none" if not hits else f"yes, at {of} " + ", ".join(map(str, hits))


def spread(values: Sequence[float] | np.ndarray, digits: int = 1) -> str:
    """Mean and, in brackets, its 95 % bootstrap interval."""
    return format(Interval.bootstrap(np.asarray(values, float), resamples=2000), f".{digits}f")
