"""TracIn: gradient dot products summed over checkpoints (Pruthi et al. 2020, Eq. 2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from whence.cache import Examples, Sites, TrainedModel, UsageError
from whence.cache.model.trained import ModelPass

from ..factors import Factors
from ..fitted import Fitted
from ..method import CheckpointMethod, not_in_key
from .identity import NONE, identities


@dataclass(frozen=True)
class CheckpointProducts(Fitted):
    """models, rates: of every checkpoint. count: examples that the model was trained on."""

    models: tuple[TrainedModel, ...]
    sites: Sites
    rates: tuple[float, ...]
    count: int

    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        """sum over checkpoints c of rate_c (1/N) grad f_q(theta_c)^T (-grad L_n(theta_c))."""
        total, ones = np.zeros((len(queries), len(train))), identities(self.sites)
        for at, rate, fingerprint in zip(self.models, self.rates, self.inputs["checkpoints"]):
            here = self.trained.replace(model=at.model, store=None)
            factors = Factors(here, "identity", {"model": fingerprint}, self.sites, ones, self.count, NONE)
            total += rate * factors.score(queries, train).values
        return total


@dataclass(frozen=True)
class TracIn(CheckpointMethod):
    """Gradient products along training. At one checkpoint, the final model, it is Identity.

    Args:
        checkpoints: models or state_dicts along training; by default the model itself.
        rates: the step size at each checkpoint times the steps that it represents; by default 1. `fit` raises
            UsageError if their number differs from that of the checkpoints.
    """

    rates: Sequence[float] = not_in_key((), "enters as the rate of every checkpoint")
    name = "tracin"

    def fit_at(self, trained: TrainedModel, sites: Sites) -> CheckpointProducts:
        models = self.models(trained)
        rates = tuple(map(float, self.rates or [1.0] * len(models)))
        if len(rates) != len(models):
            raise UsageError(f"{len(rates)} rates for {len(models)} checkpoints.", "Give one rate per checkpoint.")
        inputs = self.inputs(ModelPass(trained, trained.train, sites))
        inputs |= {"rates": list(rates), "checkpoints": [at.fingerprint() for at in models]}
        return CheckpointProducts(trained, self.name, inputs, models, sites, rates, len(trained.train))
