"""GraNd and EL2N: how much an example matters early in training (Paul et al. 2021, Definitions 2.1 and 3.1)."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from whence.cache import DataError, Examples, Sites, TrainedModel
from whence.cache.model.batches import CapturedBatch
from whence.cache.model.task import Batch
from whence.cache.model.trained import ModelPass

from .. import kernels
from ..annotations import values_of
from ..chosen import chosen
from ..fitted import Fitted, Train
from ..method import CheckpointMethod
from .features import features

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class EarlyScores(Fitted):
    """Scores of the training examples themselves, which no query enters: the same row for every query.
    models: the trained model at every checkpoint; scores are averaged over them."""

    models: tuple[TrainedModel, ...]
    sites: Sites

    @abstractmethod
    def values_at(self, trained: TrainedModel, train: Examples) -> Float[np.ndarray, " n"]:
        """The scores of one model."""

    def values(self, train: Examples) -> Float[np.ndarray, " n"]:
        """The scores averaged over the models."""
        return np.mean([self.values_at(self.trained.replace(model=at.model), train) for at in self.models], axis=0)

    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        return np.tile(self.values(train), (len(queries), 1))

    def self_influence(self, train: Train = None) -> "xarray.DataArray":
        """The scores [train], without a query."""
        return self.labelled_alone(self.values(chosen(self.trained.train, train)), train)


@dataclass(frozen=True)
class GradientNorms(EarlyScores):
    """|grad L_n| over the sites."""

    units = "norm of the gradient"

    def values_at(self, trained: TrainedModel, train: Examples) -> Float[np.ndarray, " n"]:
        run = trained.run("loss", self.sites, train)
        ones = {s.name: jnp.ones(s.shape) for s in run.sites}

        def norm(batch: CapturedBatch) -> Any:
            parts = [
                kernels.weighted_squares(a, batch.grads[name], None, None, ones[name].astype(a.dtype))
                for name, a in batch.inputs.items()
            ]
            return jnp.sqrt(sum(parts[1:], parts[0]))[:, None]

        return features(run, norm, "GraNd")[:, 0]


@dataclass(frozen=True)
class ErrorNorms(EarlyScores):
    """|p - y|_2 of each example; over a sequence, the root of the summed squares of its positions."""

    units = "norm of the error"

    def values_at(self, trained: TrainedModel, train: Examples) -> Float[np.ndarray, " n"]:
        task: Any = trained.task

        def norm(model: nn.Module, batch: Batch) -> Tensor:
            logits = task.logits(model, batch)
            if hasattr(task, "targets"):
                y, counted = task.targets(batch)
                logits = logits[:, :-1]
            else:
                y = batch["y"].long()
                counted = torch.ones_like(y, dtype=torch.bool)
            error = logits.softmax(-1) - torch.nn.functional.one_hot(y, logits.shape[-1])
            return (error.square().sum(-1) * counted).reshape(len(y), -1).sum(1).sqrt()

        return values_of(trained, train, norm)


@dataclass(frozen=True)
class Early(CheckpointMethod):
    """A score of examples averaged over models early in training, from several initialisations (the checkpoints)."""

    fitted: ClassVar[type[EarlyScores]]

    def fit_at(self, trained: TrainedModel, sites: Sites) -> EarlyScores:
        models = self.models(trained)
        inputs = self.inputs_at(models, ModelPass(trained, trained.train, sites))
        return self.fitted(trained, self.name, inputs, models, sites)


@dataclass(frozen=True)
class GraNd(Early):
    """The norm of the loss gradient."""

    name = "grand"
    fitted = GradientNorms


@dataclass(frozen=True)
class EL2N(Early):
    """The norm of the prediction's error p - y. `fit` raises DataError for examples without class labels."""

    name = "el2n"
    fitted = ErrorNorms

    def fit_at(self, trained: TrainedModel, sites: Sites) -> EarlyScores:
        y = trained.train.columns.get("y")
        if "input_ids" not in trained.train.columns and (y is None or np.asarray(y).dtype.kind not in "iu"):
            raise DataError("EL2N compares probabilities with a class label.", "Use GraNd for regression.")
        return super().fit_at(trained, sites)
