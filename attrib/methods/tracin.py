"""TracIn: gradient dot products summed over checkpoints (Pruthi et al. 2020, Eq. 2), each parameter's product times its
effective learning rate if the run was recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from whence.cache import Examples, Sites, TrainedModel, UsageError
from whence.cache.model.bridge import to_numpy
from whence.cache.model.runs import TrainingRun
from whence.cache.model.sites import matrices_of
from whence.cache.model.trained import ModelPass

from ..curvature import SiteFactors
from ..fitted import Fitted
from ..method import CheckpointMethod, not_in_key
from ..training import per_example, rates_of, stretches
from .identity import NONE, Scaled, identities

Scales = Mapping[str, SiteFactors]


@dataclass(frozen=True)
class CheckpointProducts(Fitted):
    """models: of every checkpoint. scales: what its gradients are multiplied by. count: examples that the model was
    trained on."""

    models: tuple[TrainedModel, ...]
    sites: Sites
    scales: tuple[Scales, ...]
    count: int

    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        """sum over checkpoints c of (1/N) grad f_q(theta_c)^T P_c (-grad L_n(theta_c)), P_c the learning rates."""
        total = np.zeros((len(queries), len(train)))
        for at, scales, fingerprint in zip(self.models, self.scales, self.inputs["checkpoints"]):
            here = self.trained.replace(model=at.model, store=None)
            factors = Scaled(here, "identity", {"model": fingerprint}, self.sites, scales, self.count, NONE)
            total += factors.score(queries, train).values
        return total


@dataclass(frozen=True)
class TracIn(CheckpointMethod):
    """Gradient products along training. At one checkpoint, the final model, it is Identity.

    Without checkpoints, those of the recorded run are taken, if the trained model has one: each for the steps up to the
    next, with the rates of those steps and, for Adam, one over the root of the second moment of every parameter's
    gradients.

    Args:
        checkpoints: models or state_dicts along training; by default the run's, or the model itself.
        rates: the step size at each checkpoint times the steps that it represents; by default 1. `fit` raises
            UsageError if their number differs from that of the checkpoints.
    """

    rates: Sequence[float] = not_in_key((), "enters as the rate of every checkpoint")
    name = "tracin"

    def fit_at(self, trained: TrainedModel, sites: Sites) -> CheckpointProducts:
        run, told = trained.training, dict[str, Any]()
        if run is not None and not self.checkpoints and not self.rates:
            models = tuple(trained.at(saved.read()) for saved in run.checkpoints[:-1])
            scales, told = run_scales(trained, sites, run), told | {"run": run.fingerprint}
        else:
            models = self.models(trained)
            rates = tuple(map(float, self.rates or [1.0] * len(models)))
            if len(rates) != len(models):
                raise UsageError(f"{len(rates)} rates for {len(models)} checkpoints.", "Give one rate per checkpoint.")
            scales, told = tuple(constant(sites, rate) for rate in rates), told | {"rates": list(rates)}
        inputs = self.inputs_at(models, ModelPass(trained, trained.train, sites)) | told
        return CheckpointProducts(trained, self.name, inputs, models, sites, scales, len(trained.train))


def constant(sites: Sites, rate: float) -> Scales:
    return {name: one._replace(eigenvalues=rate * one.eigenvalues) for name, one in identities(sites).items()}


def run_scales(trained: TrainedModel, sites: Sites, run: TrainingRun) -> tuple[Scales, ...]:
    """The summed effective learning rates of every parameter over every stretch between checkpoints, per unit of the
    mean over examples of their losses."""
    unit = per_example(trained, run)
    out = []
    for start, stop, factors in stretches(run):
        matrices = matrices_of(trained.model, sites, rates_of(trained.model, run, start, stop, factors))
        out.append({name: SiteFactors(None, None, unit * to_numpy(value)) for name, value in matrices.items()})
    return tuple(out)
