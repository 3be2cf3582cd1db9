"""DM-Direct (Georgiev et al. 2024): emit the datamodel's prediction; no weight changes. Each model's own logits are
the base, so that the variance between seeds survives. It answers only at points that the datamodel knows."""

from dataclasses import dataclass

import numpy as np

from whence.cache import Examples

from ..datamodels.base import Datamodel
from ..deletion import Deletion
from ..loop import Plan
from .dmm import PerModel, deltas, each_model


@dataclass(frozen=True, eq=False)
class DMDirect:
    """datamodel: one for all models, or a function from a model to its own. scale: of the predicted change."""

    datamodel: Datamodel | PerModel
    scale: float = 1.0
    name: str = "DM-Direct"

    def plan(self, deletion: Deletion) -> Plan:
        datamodels = each_model(self.datamodel, deletion)

        def shift(points: Examples) -> np.ndarray:
            return self.scale * deltas(datamodels, deletion, points)

        return Plan((), deletion.models, shift=shift)
