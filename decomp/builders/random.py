"""Random activations as atoms: the control. What greedy selection is worth is what it gains over this."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from whence.cache import progress
from whence.cache.errors import DataError

from ..activations import ActivationBatch, as_stream
from ..dictionary import Dictionary
from ..kernels import Basis
from .growth import Grown, Rows, extended, places
from .itda import finished


@dataclass(frozen=True)
class Random:
    """`size` activations drawn evenly from the whole stream (reservoir sampling), none of them judged.

    >>> len(Random(16, k=2).build(read))
    16
    """

    size: int
    k: int = 16
    pursuit: str = "matching"
    seed: int = 0

    def build(self, source: "Iterable[ActivationBatch] | Any", *, quiet: bool = True) -> Dictionary:
        """Reads the whole stream once. Raises DataError when it holds fewer than `size` usable rows."""
        stream, origin = as_stream(source)
        rows, generator = Rows(stream), np.random.default_rng(self.seed)
        kept: ActivationBatch | None = None
        keys = np.zeros(0)
        for part in progress(iter(lambda: rows.take(4096), None), desc="drawing", unit="batch", quiet=quiet):
            both = part if kept is None else ActivationBatch(*map(np.concatenate, zip(kept, part)))
            keys = np.concatenate([keys, generator.random(len(part.x))])
            chosen = np.sort(np.argsort(keys, kind="stable")[: self.size])  # the smallest keys, in stream order
            keys, kept = keys[chosen], ActivationBatch(*(column[chosen] for column in both))
        if kept is None or len(kept.x) < self.size:
            raise DataError(
                f"{0 if kept is None else len(kept.x)} usable activations for {self.size} atoms.",
                "Give more data, or a smaller size.",
            )
        start = Grown(Basis(jnp.zeros((64, kept.x.shape[1])), None), 0, places(kept, np.zeros(0, int), 1.0), 0, ())
        grown = extended(start, kept.x, places(kept, np.arange(self.size), np.nan))
        return finished(grown, self, rows, origin)
