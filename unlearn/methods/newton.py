"""One Newton step on the retained objective (Guo et al. 2020): θ + H⁻¹ g / N, with g the summed gradient of the
forgotten losses and H⁻¹ from exact curvature or EK-FAC factors. Exact for ridge regression with the retained
curvature."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..datamodels.influence import InverseProduct, forget_gradient
from ..deletion import Deletion
from ..loop import Plan


@dataclass(frozen=True, eq=False)
class Newton:
    """inverse: from a model to its inverse curvature (see `unlearn.datamodels`: `ekfac`, `exact`, `projected`).
    scale: of the step, calibrated on other deletions. steps: repeats, each with a fresh gradient of what is kept;
    the first uses the forgotten gradient alone, as if training had converged.
    """

    inverse: Callable[[nn.Module], InverseProduct]
    scale: float = 1.0
    name: str = "Newton"

    def plan(self, deletion: Deletion) -> Plan:
        lanes = deletion.models
        flat = lanes.flat.clone()
        for e in range(len(lanes)):
            model = lanes.module(e)
            inverse = self.inverse(model)
            gradient = forget_gradient(model, deletion.task, deletion.forgotten, inverse.names)
            change = inverse({name: g / len(deletion.train) for name, g in gradient.items()})
            views = lanes.views(flat)
            with torch.no_grad():
                for name, value in change.items():
                    if name in views:
                        views[name][e] += self.scale * value.to(flat.dtype)
        return Plan((), lanes.with_flat(flat), spent=float(len(deletion.forget)))
