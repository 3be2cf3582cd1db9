"""Contrast within groups of like classes: DCC's loss, once for each group.

Groups are found by k-means over the classes' mean examples. One group is DCC, a group for every class is DC.
"""

import numpy as np
from jaxtyping import Int

from whence.cache.errors import UsageError

from ..pool import Pool
from .method import GradientMatching


class Subgroup(GradientMatching):
    """Every group of like classes is a part."""

    name = "subgroup"

    def parts(self, pool: Pool, groups: int = 1) -> Int[np.ndarray, "g m"]:
        """Class numbers of each group, padded with -1. Raises UsageError for more groups than classes, or none."""
        from sklearn.cluster import KMeans

        if not 1 <= groups <= pool.classes:
            raise UsageError(f"{groups} groups of {pool.classes} classes.", f"Use 1 to {pool.classes}.")
        flat = pool.x.reshape(len(pool), -1)
        means = np.stack([flat[pool.y == c].mean(0) for c in range(pool.classes)])
        found = KMeans(groups, n_init=10, random_state=0).fit_predict(means)
        members = [np.flatnonzero(found == g) for g in range(groups)]
        padded = np.full((groups, max(len(m) for m in members)), -1)
        for row, m in zip(padded, members):
            row[: len(m)] = m
        return padded
