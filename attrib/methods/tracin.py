"""TracIn: gradient dot products summed over checkpoints (Pruthi et al. 2020, Eq. 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from whence.cache import Examples, Sites, Store, Task, UsageError

from ..checkpoints import Checkpoint, models_at
from ..factors import Factors
from ..method import FitOptions
from ..scores import score
from ..states import NATS, check_fitted, kept, labelled
from .identity import Identity

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class CheckpointFactors:
    """models, factors, rates: one a checkpoint. inputs: as in its key."""

    method: str
    inputs: Mapping[str, Any]
    models: tuple[nn.Module, ...]
    factors: tuple[Factors, ...]
    rates: tuple[float, ...]

    def scores(
        self,
        model: nn.Module,
        task: Task,
        queries: Examples,
        train: Examples,
        *,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> "xarray.DataArray":
        """sum over checkpoints c of rate_c (1/N) grad f_q(theta_c)^T (-grad L_n(theta_c)), [query, train]."""
        check_fitted(self.inputs, model)

        def make() -> np.ndarray:
            total = np.zeros((len(queries), len(train)))
            for at, factors, rate in zip(self.models, self.factors, self.rates):
                total = total + rate * score(factors, at, task, queries, train, options=options).values
            return total

        values = kept(store, {**self.inputs, "task": task.settings}, queries, train, make)
        return labelled(values, queries, train, self.method, NATS, task)


@dataclass(frozen=True)
class TracIn:
    """checkpoints: models or state_dicts along training; rates: the step size at each times the steps that it stands
    for (all 1 unless given). At one checkpoint, the final model, it is Identity."""

    checkpoints: Sequence[Checkpoint] = ()
    rates: Sequence[float] = ()
    name = "tracin"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> CheckpointFactors:
        """Raises ModelError for a checkpoint of another shape, UsageError for another number of rates."""
        models = models_at(model, self.checkpoints or [model])
        rates = tuple(map(float, self.rates or [1.0] * len(models)))
        if len(rates) != len(models):
            raise UsageError(f"{len(rates)} rates for {len(models)} checkpoints.", "Give one rate a checkpoint.")
        factors = tuple(Identity().fit(at, task, examples, sites=sites, store=store, options=options) for at in models)
        own = Identity().fit(model, task, examples, sites=sites, options=options)
        inputs = {**own.inputs, "method": self.name, "rates": list(rates)}
        inputs["checkpoints"] = [f.inputs["model"] for f in factors]
        return CheckpointFactors(self.name, inputs, tuple(models), factors, rates)
