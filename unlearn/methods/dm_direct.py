"""DM-Direct (Georgiev et al. 2024): emit the datamodel's prediction; no weight changes. Each model's own logits are
the base, so that the variance between seeds survives. It answers only at points that the datamodel knows."""

from dataclasses import dataclass

import numpy as np

from whence.cache import Examples

from ..datamodels.base import Datamodel
from ..plan import Plan
from ..request import UnlearningRequest
from .dmm import PerModel, deltas, each_model
from .method import UnlearningMethod, not_a_setting


@dataclass(frozen=True, eq=False)
class DMDirect(UnlearningMethod):
    """Add the predicted change to the models' own logits.

    Args:
        datamodel: one for all models, or a function from a model to its own.
        scale: of the predicted change.
    """

    datamodel: Datamodel | PerModel = not_a_setting("an object, which the result keeps")
    scale: float = 1.0
    name, title = "dm-direct", "DM-Direct"

    def plan(self, request: UnlearningRequest) -> Plan:
        datamodels = each_model(self.datamodel, request)

        def shift(points: Examples) -> np.ndarray:
            return self.scale * deltas(datamodels, request, points)

        return Plan((), request.models, shift=shift)
