"""Dataset condensation by gradient matching: the loss is Σ over classes of the distance of class gradients.

Source: Zhao, Mopuri and Bilen 2021, "Dataset condensation with gradient matching"; with differentiable Siamese
augmentation (see augment.py), Zhao and Bilen 2021.
"""

import numpy as np
from jaxtyping import Int

from ..pool import Pool
from .method import GradientMatching


class DC(GradientMatching):
    """Every class is its own part."""

    name = "dc"

    def parts(self, pool: Pool, groups: int = 1) -> Int[np.ndarray, "g m"]:
        return np.arange(pool.classes)[:, None]


class DSA(DC):
    """DC with differentiable Siamese augmentation."""

    name, augmented = "dsa", True
