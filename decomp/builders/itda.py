"""Inference-time decomposition of activations (Leask et al. 2025, arXiv 2505.17769): a dictionary of activations.

Read the stream once; an activation that matching pursuit with the atoms so far leaves unexplained becomes an
atom. No gradient, no epochs.

This differs from the published code, each by choice:
1. the threshold is a share of the activation's squared norm, ‖r‖²/‖x‖², which means the same at every width;
   the published one is a mean over coordinates and adds nothing at all above 2/d;
2. seeds are the first activations of the stream, not the smallest in value ("lexicographic" has those);
3. failing activations of one batch are compared with each other before they are added;
4. rows that are zero or not finite are left out and counted.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import numpy as np

from whence.cache.errors import DataError, UsageError, check_known
from whence.cache.jobs.progress import progress

from .. import kernels
from ..activations import ActivationBatch
from ..dictionary import PURSUITS, Dictionary
from . import checkpoint as checkpoints
from .builder import Builder, Source, labelled
from .growth import Grown, Rows, empty, extended, grow, places
from .seeding import SEEDINGS, seed_rows

REPEATED = 1e-5  # a share that is rounding


@dataclass(frozen=True)
class ITDA(Builder[Dictionary]):
    """Inference-time decomposition of activations.

    Args:
        size: most atoms; None for as many as the threshold gives.
        k: pursuit steps.
        unexplained: share of the squared norm above which an activation becomes an atom, between 0 and 1.
        seeding: how the first atoms are chosen: "stream", "lexicographic" or "none" (see `seeding`).
        seeds: how many; by default as many as the width, at most a quarter of `size`.
        pursuit: a name of PURSUITS.
        batch: rows judged together.

    Raises UsageError for settings that cannot be right, among them a threshold that can add nothing.

    >>> dictionary = ITDA(size=32, k=4, unexplained=0.1).build(read)
    >>> len(dictionary), dictionary.atoms.shape
    (32, (32, 8))
    """

    name: ClassVar[str] = "itda"
    resumes: ClassVar[bool] = True

    size: int | None = None
    k: int = 16
    unexplained: float = 0.1
    seeding: str = "stream"
    seeds: int | None = None
    pursuit: str = "matching"
    batch: int = 512

    def __post_init__(self) -> None:
        check_known("pursuit", self.pursuit, PURSUITS)
        check_known("seeding", self.seeding, SEEDINGS)
        if self.unexplained >= 1:
            raise UsageError(
                f"A threshold of {self.unexplained} adds nothing: no pursuit leaves more than the whole norm.",
                "Give the share of the squared norm that may stay unexplained, such as 0.1.",
            )
        if self.unexplained <= 0:
            raise UsageError(
                f"A threshold of {self.unexplained} makes an atom of every activation.",
                "Give a share above 0, or use decomp.Random to take activations without judging.",
            )
        if self.k < 1 or self.batch < 1 or (self.size is not None and self.size < 1):
            raise UsageError("k, batch and size count things.", "Give whole numbers from 1.")
        if self.size is not None and self.k > self.size:
            raise UsageError(f"{self.k} steps from at most {self.size} atoms.", "Choose k up to size.")

    @classmethod
    def published(cls, threshold: float, width: int, **settings: Any) -> "ITDA":
        """From a threshold as the published code states it: mean over d coordinates of the squared difference
        of x and its reconstruction, both scaled to norm 1, which is (2 − 2 cos)/d.

        The unexplained share of a reconstruction at that cosine is 1 − cos². Raises UsageError above 2/d, where
        the rule can never add an atom (cos ≥ 0 for any pursuit).
        """
        if threshold * width >= 2:
            raise UsageError(
                f"A threshold of {threshold} at width {width} adds nothing: the error cannot exceed "
                f"2/d = {2 / width:.3g}.",
                "The published threshold depends on the width; give `unexplained` instead, or calibrate.",
            )
        return cls(unexplained=1 - (1 - threshold * width / 2) ** 2, **settings)

    def construct(self, source: Source) -> Dictionary:
        """Read the stream once, or until `size` atoms are there. The settings of the dictionary record rows read, rows
        left out, and the growth curve. Raises DataError for an empty stream, UsageError if the threshold added nothing.
        """
        rows, path = Rows(source.stream), source.checkpoint
        about = {} if path is None else source.settings(self)
        if path is not None and path.exists():
            grown = checkpoints.load(path, about)
            rows.skip(grown.taken)
        else:
            grown = self._seeded(rows)
        seeds = int(grown.provenance.seed.sum())
        pursuit = PURSUITS[self.pursuit](self.k)
        states = grow(grown, rows, pursuit, self.unexplained, self.size, self.batch)
        for n, state in enumerate(progress(states, desc="building", unit="batch", quiet=source.quiet)):
            grown = state
            if path is not None and n % source.every == source.every - 1:
                checkpoints.save(path, grown, about)
        if grown.filled == seeds and (self.size is None or seeds < self.size):
            self._nothing_added(seeds, rows.taken, grown.worst)
        if path is not None:
            path.unlink(missing_ok=True)
        return labelled(self, grown, rows, source.origin)

    def _nothing_added(self, seeds: int, taken: int, worst: float) -> NoReturn:
        if worst < REPEATED:
            raise DataError(
                f"Nothing but its {seeds} seeds: they explain all {taken} activations entirely (at most {worst:.1g} of "
                "a squared norm is left), so the activations repeat.",
                "Give activations that differ: check the hook point, and leave out tokens that repeat (padding, "
                "beginning of sequence).",
            )
        raise UsageError(
            f"Nothing but its {seeds} seeds: no activation was left unexplained by {self.unexplained}; the largest "
            f"share was {worst:.3g}.",
            "Lower the threshold below that share, or find one with decomp.calibrate; fewer seeds or steps (k) also "
            "leave more to explain.",
        )

    def _seeded(self, rows: Rows) -> Grown:
        """The seeds. The rows are put back to be judged like all others; seeds explain themselves."""
        first = rows.check(rows.take(1))
        width = first.x.shape[1]
        limit = width if self.size is None else min(width, self.size // 4)
        count = 0 if self.seeding == "none" else limit if self.seeds is None else self.seeds
        more = rows.take(max(4 * count, self.batch) - 1) if count else None
        pool = first if more is None else ActivationBatch(*map(np.concatenate, zip(first, more)))
        chosen = seed_rows(self.seeding, pool, count)
        grown = empty(width, gram=kernels.gram_pays(self.size or 1))
        if self.size is not None and len(chosen) > self.size:
            raise UsageError(f"{count} seeds for at most {self.size} atoms.", "Ask for fewer seeds.")
        grown = extended(grown, pool.x[chosen], places(pool, chosen, 1.0, seed=True))
        rows.put_back(pool)
        return grown
