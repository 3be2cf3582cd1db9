"""One Newton step on the retained objective (Guo et al. 2020): θ + H⁻¹ g / N, with g the summed gradient of the
forgotten losses and H⁻¹ from exact curvature or EK-FAC factors. Exact for ridge regression with the retained
curvature."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from whence.attrib import Factors
from whence.cache import TrainedModel

from ..datamodels.inverse import InverseProduct, exact, forget_gradient, inverse_product
from ..plan import Plan
from ..request import UnlearningRequest
from .method import UnlearningMethod, not_a_setting

# from a model to its inverse curvature
Inverse: TypeAlias = Callable[[TrainedModel], InverseProduct | Factors]


@dataclass(frozen=True, eq=False)
class Newton(UnlearningMethod):
    """Move every model by one step.

    Args:
        inverse: from a model to its inverse curvature (`exact`, `projected`, or fitted factors); by default the exact
            curvature on the kept data.
        scale: of the step, calibrated on other requests.
        damping: of the exact curvature, times its mean diagonal.
    """

    inverse: Inverse | None = not_a_setting("a function, which the result keeps", default=None)
    scale: float = 1.0
    damping: float = 1.0
    name, title = "newton", "Newton"

    def plan(self, request: UnlearningRequest) -> Plan:
        models = request.models
        flat = models.flat.clone()
        views = models.views(flat)
        for e in range(len(models)):
            trained = request.trained(e, quiet=True)
            curvature = self.inverse(trained) if self.inverse else exact(trained, request.kept, damping=self.damping)
            inverse = inverse_product(curvature)
            gradient = forget_gradient(trained, request.forgotten, inverse.names)
            change = inverse({name: g / len(request.train) for name, g in gradient.items()})
            with torch.no_grad():
                for name, value in change.items():
                    if name in views:
                        views[name][e] += self.scale * value.to(flat)
        return Plan((), models.with_flat(flat), spent=float(len(request.forget)))
