"""Exemplar partitioning (arXiv 2605.14347): one pass of leader clustering on the centred unit sphere.

An activation whose cosine with every exemplar so far is below a threshold becomes an exemplar. That is the
greedy construction with one non-negative pursuit step: a single step leaves 1 − cos² of the squared norm, so the
two share their loop.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import numpy as np

from whence.cache.errors import DataError, UsageError
from whence.cache.jobs.progress import progress

from .. import kernels
from ..activations import ActivationBatch, Activations, finite
from ..dictionary import Dictionary
from .builder import Builder, Source, labelled
from .growth import Rows, empty, grow


@dataclass(frozen=True)
class Partition(Builder[Dictionary]):
    """Exemplar partitioning.

    Args:
        cosine: below it a new exemplar starts, between 0 and 1.
        size: most exemplars; None for as many as the cosine gives.
        k: pursuit steps of the dictionary's `encode`; 1 assigns to a region.
        pursuit: a name of PURSUITS.
        batch: rows judged together.
        centre_rows: the mean of so many first activations is the centre.
    """

    name: ClassVar[str] = "partition"

    cosine: float = 0.5
    size: int | None = None
    k: int = 1
    pursuit: str = "nonnegative"
    batch: int = 512
    centre_rows: int = 16384

    def __post_init__(self) -> None:
        if not 0 < self.cosine < 1:
            raise UsageError(f"A cosine of {self.cosine}.", "Give one between 0 and 1, such as 0.5.")

    def construct(self, source: Source) -> Dictionary:
        """Read the stream once. Raises DataError for an empty one."""
        first, rest = _peek(source.stream, self.centre_rows)
        if not len(first.x):
            raise DataError("No activation to build from.", "Check the hook point, and what was excluded.")
        centre = first.x.mean(axis=0, dtype=np.float64).astype(np.float32)
        rows = Rows(rest, centre)
        grown = empty(len(centre), gram=True)
        pursuit = kernels.nonnegative_matching_pursuit(1)
        states = grow(grown, rows, pursuit, 1 - self.cosine**2, self.size, self.batch)
        for state in progress(states, desc="partitioning", unit="batch", quiet=source.quiet):
            grown = state
        if not grown.filled:
            raise DataError(
                f"All {rows.zero} usable activations equal their mean: there is nothing to partition.",
                "Give activations that differ: check the hook point, and leave out tokens that repeat.",
            )
        return labelled(self, grown, rows, source.origin, centre)


def _peek(stream: Iterable[ActivationBatch], count: int) -> tuple[ActivationBatch, Iterable[ActivationBatch]]:
    """The first `count` usable rows, and the stream from its start again."""
    if isinstance(stream, Activations):
        head = stream.select(np.arange(min(count, len(stream)))).whole()
        return finite(head)[0], stream
    parts: list[ActivationBatch] = []
    iterator = iter(stream)
    for batch in iterator:
        parts.append(batch)
        if sum(len(part.x) for part in parts) >= count:
            break
    if not parts:
        raise DataError("No activation to build from.", "Check the hook point, and what was excluded.")
    head = ActivationBatch(*map(np.concatenate, zip(*parts)))
    return finite(head)[0], chain(parts, iterator)
