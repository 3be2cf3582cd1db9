"""Gradient matching: the loss is the distance of a part's mean gradients; methods differ in what a part is.

DC, DSA: Zhao, Mopuri and Bilen 2021, "Dataset condensation with gradient matching"; Zhao and Bilen 2021,
"Dataset condensation with differentiable Siamese augmentation". DCC, DSAC: Lee et al. 2022, arXiv 2202.02916.
"""

import numpy as np
from jaxtyping import Array, Float, Int

from whence.cache.errors import UsageError

from ..layers import Params
from ..matching import Part, gradient_matching
from ..networks import Network
from ..pool import Pool
from .method import CondensationMethod, all_classes


class DC(CondensationMethod):
    """Every class is its own part."""

    name = "dc"

    def loss(self, network: Network, params: Params, part: Part) -> Float[Array, ""]:
        return gradient_matching(network, params, part)


class DSA(DC):
    """DC with differentiable Siamese augmentation."""

    name, augmented = "dsa", True


class DCC(DC):
    """All classes are one part: what they share cancels in Σ_c (p - 1_c) h if predictions are near uniform, so the one
    distance of the summed gradients sees what distinguishes classes."""

    name = "dcc"

    def parts(self, pool: Pool, groups: int = 1) -> Int[np.ndarray, "g m"]:
        return all_classes(pool.classes)


class DSAC(DCC):
    """DCC with differentiable Siamese augmentation; every class keeps its own operation."""

    name, augmented = "dsac", True


class Subgroup(DC):
    """Every group of like classes (k-means over their mean examples) is a part. One group is DCC, a group for every
    class is DC."""

    name = "subgroup"

    def parts(self, pool: Pool, groups: int = 1) -> Int[np.ndarray, "g m"]:
        """Class numbers of each group, padded with -1. Raises UsageError for more groups than classes, or none."""
        from sklearn.cluster import KMeans

        if not 1 <= groups <= pool.classes:
            raise UsageError(f"{groups} groups of {pool.classes} classes.", f"Use 1 to {pool.classes}.")
        means = np.stack([pool.x[pool.y == c].reshape(-1, pool.x[0].size).mean(0) for c in range(pool.classes)])
        found = KMeans(groups, n_init=10, random_state=0).fit_predict(means)
        members = [np.flatnonzero(found == g) for g in range(groups)]
        most = max(map(len, members))
        return np.stack([np.pad(m, (0, most - len(m)), constant_values=-1) for m in members])
