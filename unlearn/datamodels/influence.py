"""Datamodels from curvature: no retraining at all.

Leaving out F moves a trained model's parameters by about Δθ = (G + λ)⁻¹ g / N, with g the summed gradient of the
forgotten losses and G the mean curvature of an example; outputs follow by a Jacobian-vector product,
Δlogits(x) = J(x) Δθ.

The first order ignores that the curvature goes with the examples: G of what is kept is G - G_F/N. For a coherent
forget set, `group` terms of the series (1 + G⁻¹ G_F/N + ...) put that back: each is one product with the forget set's
own curvature and one with the inverse. On models far from convergence the opposite error is the larger: directions
that training never settled are moved too far, and the damping or scale must be calibrated on other requests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.attrib import Factors
from whence.attrib.solvers.gauss_newton import gauss_newton_product
from whence.cache import DataError, Examples, NumericalError, TrainedModel
from whence.cache.model.borrowing import borrowed
from whence.cache.model.bridge import to_numpy
from whence.cache.model.stateless import named_parameters, stateless
from whence.cache.retrain.retrained import member_rows

from .base import Cost
from .inverse import InverseProduct, batches, forget_gradient, inverse_product


@dataclass(frozen=True, eq=False)
class Influence:
    """A datamodel from fitted curvature: one inverse product and a Jacobian-vector product per batch of points.

    Args:
        curvature: fitted factors (`attrib.EKFAC().fit(trained)`), or an inverse product (`exact`, `projected`).
        scale: of the predicted change.
        group: correction terms for the forget set's own curvature.
    """

    curvature: Factors | InverseProduct
    scale: float = 1.0
    group: int = 0

    @cached_property
    def inverse(self) -> InverseProduct:
        return inverse_product(self.curvature)

    @property
    def cost(self) -> Cost:
        return Cost(passes=self.inverse.passes)

    def prediction_passes(self, forget: int, points: int) -> float:
        """Example passes of one prediction: the forget set's gradient (and curvature products), and a forward
        with its tangent (two thirds of a pass) at every point."""
        return forget * (1.0 + self.group) + 2 / 3 * points

    def removal(self, forget: np.ndarray) -> "Removal":
        """The prediction for one forget set, at any points. Raises NumericalError if its step is not finite."""
        trained = self.inverse.trained
        chosen = member_rows(trained.train.ids, forget)
        examples = trained.train.select(chosen)
        gradient = forget_gradient(trained, examples, self.inverse.names)
        right = {name: g / len(trained.train) for name, g in gradient.items()}
        step = self.inverse(right)
        for _ in range(self.group):
            own = curvature_product(trained, examples, step)
            step = self.inverse({n: right[n] + own[n] / len(trained.train) for n in right})
        if not all(bool(torch.isfinite(v).all()) for v in step.values()):
            raise NumericalError(
                "The inverse curvature of the forget set's gradient is not finite.",
                "Raise the damping, or use fewer group terms.",
            )
        return Removal(self, chosen, step)

    def step(self, forget: np.ndarray) -> dict[str, Tensor]:
        """Predicted change of the parameters when the forget set is left out (before `scale`)."""
        return self.removal(forget).step

    def predict_delta(self, forget: np.ndarray, points: Examples) -> Float[np.ndarray, "p ..."]:
        """J(x) Δθ at every point: [p c], or [p s c] for language."""
        return self.removal(forget).predict_delta(forget, points)


@dataclass(frozen=True, eq=False)
class Removal:
    """An influence datamodel for one forget set.

    forget: bool [n], the rows of the training examples in it. step: predicted change of the parameters (before
    `scale`).
    """

    influence: Influence
    forget: np.ndarray
    step: dict[str, Tensor]

    @property
    def cost(self) -> Cost:
        return self.influence.cost

    def prediction_passes(self, forget: int, points: int) -> float:
        return self.influence.prediction_passes(forget, points)

    def predict_delta(self, forget: np.ndarray, points: Examples) -> Float[np.ndarray, "p ..."]:
        """As for `Influence`. Raises DataError for another forget set."""
        trained = self.influence.inverse.trained
        if not np.array_equal(member_rows(trained.train.ids, forget), self.forget):
            raise DataError("This removal was computed for another forget set.", "Compute one: influence.removal(ids).")
        return self.influence.scale * jacobian_product(trained, points, self.step)


def jacobian_product(trained: TrainedModel, points: Examples, step: Mapping[str, Tensor]) -> Float[np.ndarray, "p ..."]:
    """J(x) step at every point, by forward-mode differentiation (with plain attention: the fused kernel of a CPU
    has no forward derivative)."""
    logits, own = stateless(trained.task.logits, trained.model), named_parameters(trained.model)
    base, out = {name: own[name].detach() for name in step}, []
    with borrowed(trained.model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for batch in batches(trained, points):
            change = jvp(lambda theta, batch=batch: logits(theta, batch), (base,), (dict(step),))[1]
            out.append(to_numpy(change))
    return np.concatenate(out)


def curvature_product(trained: TrainedModel, examples: Examples, step: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum over examples of their Gauss-Newton matrices times `step`."""
    total = {name: torch.zeros_like(value) for name, value in step.items()}
    vectors = {name: value[None] for name, value in step.items()}
    with borrowed(trained.model), sdpa_kernel(SDPBackend.MATH):
        for batch in batches(trained, examples):
            found = gauss_newton_product(trained.model, trained.task, batch, vectors)
            total = {name: total[name] + value[0] for name, value in found.items()}
    return total


@dataclass(frozen=True, eq=False)
class Averaged:
    """The mean prediction of several datamodels: checkpoints, projections, seeds."""

    datamodels: Sequence[Influence]

    @property
    def cost(self) -> Cost:
        each = [d.cost for d in self.datamodels]
        return Cost(sum(c.trainings for c in each) + len(each) - 1, sum(c.passes for c in each))

    def prediction_passes(self, forget: int, points: int) -> float:
        return sum(d.prediction_passes(forget, points) for d in self.datamodels)

    def predict_delta(self, forget: np.ndarray, points: Examples) -> Float[np.ndarray, "p ..."]:
        return np.mean([d.predict_delta(forget, points) for d in self.datamodels], axis=0)
