"""Random activations as atoms: the control. What greedy selection is worth is what it gains over this."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from whence.cache.jobs.progress import progress

from ..activations import ActivationBatch
from ..dictionary import Dictionary
from .builder import Builder, Source, labelled
from .growth import Rows, empty, extended, places


@dataclass(frozen=True)
class Random(Builder[Dictionary]):
    """Activations sampled evenly from the whole stream (reservoir sampling), none of them judged.

    Args:
        size: atoms.
        k: pursuit steps of the dictionary's `encode`.
        pursuit: a name of PURSUITS.
        seed: of the sample.

    >>> len(Random(16, k=2).build(read))
    16
    """

    name: ClassVar[str] = "random"

    size: int
    k: int = 16
    pursuit: str = "matching"
    seed: int = 0

    def construct(self, source: Source) -> Dictionary:
        """Raises DataError if the stream has fewer than `size` usable rows."""
        rows, generator = Rows(source.stream), np.random.default_rng(self.seed)
        kept: ActivationBatch | None = None
        keys = np.zeros(0)
        for part in progress(iter(lambda: rows.take(4096), None), desc="sampling", unit="batch", quiet=source.quiet):
            both = part if kept is None else ActivationBatch(*map(np.concatenate, zip(kept, part)))
            keys = np.concatenate([keys, generator.random(len(part.x))])
            chosen = np.sort(np.argsort(keys, kind="stable")[: self.size])  # the smallest keys, in stream order
            keys, kept = keys[chosen], ActivationBatch(*(column[chosen] for column in both))
        kept = rows.check(kept, self.size)
        grown = extended(empty(kept.x.shape[1], gram=False), kept.x, places(kept, np.arange(self.size), np.nan))
        return labelled(self, grown, rows, source.origin)
