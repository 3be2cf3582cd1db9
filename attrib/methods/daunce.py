"""Daunce: attribution by how losses vary together over models trained with perturbed data (Pan et al. 2025, arXiv
2505.23223)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from whence.cache import Examples, Sites, TrainedModel, UsageError
from whence.cache.model.checkpoints import Checkpoint
from whence.cache.model.trained import ModelPass

from ..annotations import values_of
from ..fitted import Fitted
from ..method import CheckpointMethod, not_in_key

Values = Callable[[nn.Module, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Covariances(Fitted):
    """models: whose values are compared. scale: of the covariance."""

    models: tuple[TrainedModel, ...]
    scale: float

    units = "covariance"

    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        """-scale Cov over the models (f_q, L_n)."""
        measured = self._centred(queries, self.trained.task.measurement)
        losses = self._centred(train, self.trained.task.loss)
        return -self.scale * measured.T @ losses / (len(self.models) - 1)

    def _centred(self, examples: Examples, of: Values) -> Float[np.ndarray, "e n"]:
        values = np.stack([values_of(self.trained.replace(model=at.model), examples, of) for at in self.models])
        return values - values.mean(0)


@dataclass(frozen=True)
class Daunce(CheckpointMethod):
    """Minus the covariance of a query's measurement and an example's loss over models that were each fine-tuned on a
    random subset of the data, as a bank of `subset_masks` trains them. (The paper's term that moves each model along
    random gradients is left out, as in its form for models behind an interface.)

    Args:
        checkpoints: the models, or their state_dicts: `[replicas.module(e) for e in range(len(replicas))]` of a bank.
            `fit` raises UsageError for fewer than two.
    """

    checkpoints: Sequence[Checkpoint] = not_in_key((), "enters as the checkpoints' fingerprints")
    name = "daunce"
    at_sites = False

    def fit_at(self, trained: TrainedModel, sites: Sites) -> Covariances:
        if len(self.checkpoints) < 2:
            raise UsageError(
                "Daunce compares models trained on random subsets of the data, and needs at least two.",
                "Give Daunce(checkpoints=[...]) (--checkpoints): the replicas of a bank under subset_masks.",
            )
        models = self.models(trained)
        inputs = self.inputs_at(models, ModelPass(trained, trained.train, sites))
        return Covariances(trained, self.name, inputs, models, 1.0)
