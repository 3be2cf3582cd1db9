"""Whether models have forgotten a person, and what else is lost, beyond the noise.

What is lost of the others' facts is compared with the models before, answer by answer and model by model, because two
ensembles differ even if nothing is lost. The rule, the same for every row:

- `off`: how far the mean log-probability of the person's answers is above the oracles', as a share of what the models
  before are above them. "forgets" if the interval is within ±OFF, "too little" or "too much" if it is beyond, else
  "undecided".
- A group is broken if the interval of its loss is above what is allowed, kept if it is below, else undecided. Allowed
  is DRIFT (TEXT for other text), or the spread if that is larger: the 95 % quantile of the difference between two
  halves of the oracles, which were trained independently.

Intervals are of 95 %. People, their facts and models are resampled; the draws are the same for the models before and
after, whose answers are paired.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from whence.cache.display.interval import Interval

from .people import GROUPS, Measured

RESAMPLES = 1000
# what is allowed: of the gap on the person, nats per answer of other people, nats per token of other text
OFF, DRIFT, TEXT = 0.25, 0.1, 0.05
KEPT = (*GROUPS[1:], "text")


def values(measured: Measured, group: str) -> np.ndarray:
    """What is compared [e f], the larger the better: log-probabilities of right answers, or minus the nats per token of
    other text [e 1]."""
    return -np.asarray(measured.text)[:, None] if group == "text" else measured.answers[group].right


class Row(NamedTuple):
    """One line of the table: what was measured for each person, KLoM (forgotten, retained) and share of retraining."""

    name: str
    measured: list[Measured]
    klom: list[tuple[float, float]]
    ratio: float

    def values(self, group: str) -> list[np.ndarray]:
        """[e f] of each person."""
        return [values(one, group) for one in self.measured]


def resampled(paired: Sequence[Sequence[np.ndarray]], other: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """Means [t s] of several sides under resampling of people, facts and models.

    Args:
        paired: sides that share their models, each [e f] of every person.
        other: a side with models of its own, the last of s.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    sides, found = [*paired, other], np.empty((RESAMPLES, len(paired) + 1))
    for draw in range(RESAMPLES):
        own, others = (rng.integers(0, len(side[0]), len(side[0])) for side in (paired[0], other))
        means: list[list[float]] = [[] for _ in sides]
        for person in rng.integers(0, len(other), len(other)):
            facts = rng.integers(0, other[person].shape[1], other[person].shape[1])
            for side, into, models in zip(sides, means, [*[own] * len(paired), others]):
                into.append(side[person][models][:, facts].mean())
        found[draw] = np.mean(means, 1)
    return found


def mean(side: Sequence[np.ndarray]) -> float:
    """Over people, who count alike."""
    return float(np.mean([one.mean() for one in side]))


@dataclass(frozen=True, eq=False)
class Judge:
    """What rows are compared with.

    oracles: the reference. independent: as many oracles again, None if there are none. before: the models before.
    """

    oracles: Row
    before: Row
    independent: Row | None = None

    @cached_property
    def allowed(self) -> Mapping[str, float]:
        """Nats by group that may be lost."""
        return {group: max(TEXT if group == "text" else DRIFT, self.spread(group)) for group in KEPT}

    def spread(self, group: str) -> float:
        """By how much the means of two independent ensembles of oracles differ; 0 if there is one ensemble."""
        if self.independent is None:
            return 0.0
        both = [np.concatenate(pair).mean(1) for pair in
                zip(self.oracles.values(group), self.independent.values(group))]  # fmt: skip
        models, rng = np.mean(both, 0), np.random.default_rng(0)
        halves = [rng.permutation(models).reshape(2, -1).mean(1) for _ in range(RESAMPLES)]
        return float(np.quantile(np.abs(np.diff(halves)), 0.95))

    def off(self, row: Row) -> Interval:
        """0 at the oracles, 1 at the models before."""
        sides = [row.values("forgotten"), self.before.values("forgotten")]
        other = self.oracles.values("forgotten")

        def share(after: np.ndarray, before: np.ndarray, oracles: np.ndarray) -> np.ndarray:
            return (after - oracles) / (before - oracles)

        value = share(*(np.array(mean(side)) for side in (*sides, other)))
        return Interval.of(float(value), share(*resampled(sides, other).T))

    def lost(self, row: Row, group: str) -> Interval:
        """Nats that the answers of a group (or tokens of other text) have lost since before."""
        sides = [self.before.values(group), row.values(group)]
        before, after, _ = resampled(sides, sides[0]).T
        return Interval.of(mean(sides[0]) - mean(sides[1]), before - after)

    def verdict(self, row: Row) -> tuple[bool | None, str]:
        """Whether the row forgets and keeps the rest (None: undecided), and how it is said."""
        off = self.off(row)
        forgets = decided(off, lambda x: abs(x) <= OFF, crosses=off.low < 0 < off.high)
        words = {True: "forgets", False: "too little" if off.value > 0 else "too much", None: "undecided"}[forgets]
        kept = {group: decided(self.lost(row, group), lambda x, g=group: x <= self.allowed[g]) for group in KEPT}
        named = [f"{word} {', '.join(found)}" for word, verdict in (("breaks", False), ("undecided", None))
                 if (found := [group for group, one in kept.items() if one is verdict])]  # fmt: skip
        every = [forgets, *kept.values()]
        overall = False if False in every else None if None in every else True
        return overall, f"{words} ({off:+.2f}); " + ("; ".join(named) or "keeps the rest")


def decided(found: Interval, holds: Callable[[float], bool], crosses: bool = False) -> bool | None:
    """Whether something holds in the whole interval or nowhere in it; None if the interval does not decide.

    Args:
        found: the interval.
        holds: of a value; true between two values for which it is true.
        crosses: the interval has a value inside for which it holds, although it may hold at neither end.
    """
    ends = {holds(found.low), holds(found.high)}
    return None if len(ends) == 2 or (ends == {False} and crosses) else ends.pop()
