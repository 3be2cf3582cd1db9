"""Dataset condensation with contrastive signals: gradients are averaged over classes before they are compared.

What all classes share cancels in Σ_c (p - 1_c) h if predictions are near uniform, so the one distance of the
summed gradients sees what distinguishes classes. Source: Lee et al. 2022, arXiv 2202.02916.
"""

import numpy as np
from jaxtyping import Int

from ..pool import Pool
from .method import GradientMatching


class DCC(GradientMatching):
    """All classes are one part."""

    name = "dcc"

    def parts(self, pool: Pool, groups: int = 1) -> Int[np.ndarray, "g m"]:
        return np.arange(pool.classes)[None]


class DSAC(DCC):
    """DCC with differentiable Siamese augmentation; every class keeps its own operation (Lee et al. 2022)."""

    name, augmented = "dsac", True
