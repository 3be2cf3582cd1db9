"""AdamW-influence: what an example's gradients did through the optimiser's own state. (Deng et al. 2026, arXiv
2605.18814, show how much a trajectory method gains by following AdamW; the form here is our own derivation.)

MAGIC carries a query's gradient back through every step: through the optimiser's update and through the change of the
later gradients. Here the second part is left out, as in TracIn, and the first is exact: momentum, second moments with
their bias correction, decay, clipping and the learning rates of the run. A step then needs one product with the
examples' gradients and no second derivative in the parameters.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp, vmap

from whence.cache import Examples
from whence.cache.retrain.optimisers import AdamW

from .magic import MAGIC, Recorded

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Direct(Recorded):
    def backward(self, number: int, point: Any, adjoint: Any) -> tuple[Any, Tensor]:
        """As MAGIC's, the later gradients held as they were."""
        run, at = self.run, point.parameters
        ones = run.ones(run.steps[number])
        at_ones: Any = vjp(lambda weights: run.gradient(at, weights, number), ones)
        gradient, to_gradient = at_ones

        def update(parameters: Any, averages: Any, gradient: Any) -> Any:
            return run.update(parameters, averages, gradient, number)

        pull: Any = vjp(update, at, point.moments.averages, gradient)[1]
        parameters, averages, carried = vmap(lambda u: pull(u))(adjoint)
        return (parameters, averages), vmap(lambda u: to_gradient(u)[0])(carried)

    def labelled(
        self, values: Float[np.ndarray, "q n *_"], queries: Examples, train: Examples, last: str = "site"
    ) -> "xarray.DataArray":
        """As MAGIC's, with `attrs["error_proxy"]` (see `error_proxy`)."""
        return super().labelled(values, queries, train, last).assign_attrs(error_proxy=self.error_proxy())

    def error_proxy(self) -> float:
        """x, the sum over the run of learning rate times curvature along its path, from the points that were kept: the
        gradients' change over the way between two points, in the optimiser's metric. Scores that leave curvature out
        are too large by x / (1 - exp(-x)) along the path, so they need an x well below 1."""
        run, optimiser = self.run, self.run.recipe.optimiser
        points, total = sorted({**run.points, len(run.steps): run.end()}.items()), 0.0
        with run.exact():
            for (first, before), (stop, after) in pairwise(points):
                ones = run.ones(run.steps[first])
                slopes: list[Any] = [run.gradient(at.parameters, ones, first) for at in (before, after)]
                bent, moved = torch.zeros(()).double(), torch.zeros(()).double()
                for name, value in after.parameters.items():
                    way = (value - before.parameters[name]).double()
                    if isinstance(optimiser, AdamW):
                        second = after.moments.averages[1][name].double() / (1 - optimiser.betas[1] ** stop)
                        speed: Any = 1 / (second.sqrt() + optimiser.eps)
                    else:
                        speed = 1 / (1 - optimiser.momentum)
                    bent += (way * (slopes[1][name] - slopes[0][name])).sum().cpu()
                    moved += (way.square() / speed).sum().cpu()
                total += sum(step.rate for step in run.steps[first:stop]) * float(bent / moved.clamp(min=1e-300))
        return total


@dataclass(frozen=True)
class AdamWInfluence(MAGIC):
    """As MAGIC without the change of later gradients: about a third of its cost, and right as long as the run is short
    (`attrs["error_proxy"]`). For SGD it is SGD-influence without curvature.

    Args:
        start, recipe, seed: as for MAGIC; without a start, a recorded run is taken again.
    """

    name = "adamw"
    recorded = Direct
