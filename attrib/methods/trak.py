"""TRAK: projected gradients of the margin as features of a linear model (Park et al. 2023, Eq. 13)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from whence.cache import Examples, Sites, Task, TrainedModel, UsageError
from whence.cache.model.task import Batch
from whence.cache.model.trained import ModelPass

from ..annotations import values_of
from ..fitted import Fitted
from ..method import CheckpointMethod, in_key
from .features import dense_projection, features, margin_task


@dataclass(frozen=True)
class ProjectedFisher(Fitted):
    """models: the trained model at every checkpoint. inverses: (Phi^T Phi + damping)^-1 of the fitted examples at
    each, [m k k]. seed: of the projection."""

    models: tuple[TrainedModel, ...]
    sites: Sites
    inverses: Float[np.ndarray, "m k k"]
    seed: int

    units = "margin of the linearised model"

    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        """(mean over checkpoints of phi_q^T (Phi^T Phi)^-1 phi_n) (mean over checkpoints of 1 - p_n)."""
        products, doubt = np.zeros((len(queries), len(train))), np.zeros(len(train))
        width, task = self.inverses.shape[1], self.trained.task
        for at, inverse in zip(self.models, self.inverses):
            here = self.trained.replace(model=at.model)
            phi = projected_margins(here.replace(task=margin_task(task)), self.sites, train, width, self.seed)
            products += projected_margins(here, self.sites, queries, width, self.seed) @ inverse @ phi.T
            doubt += values_of(here, train, lambda model, batch: 1 - probability(model, task, batch))
        return products * doubt / len(self.models) ** 2


def projected_margins(trained: TrainedModel, sites: Sites, examples: Examples, width: int, seed: int) -> np.ndarray:
    """The projected gradient of every example's measurement, [n width]."""
    run = trained.run("measurement", sites, examples)
    return features(run, dense_projection(run, width, seed), "projected gradients")


def probability(model: nn.Module, task: Task, batch: Batch) -> Tensor:
    """exp(-loss) per predicted position: p of the label, its geometric mean over a sequence."""
    counted = task.targets(batch)[1].sum(1).clamp(min=1) if hasattr(task, "targets") else 1.0
    return (-task.loss(model, batch) / counted).exp()


@dataclass(frozen=True)
class TRAK(CheckpointMethod):
    """Influence in a linear model of the margin. For language the margin of a sequence is the sum of its tokens'.

    Args:
        checkpoints: independently trained models (or state_dicts) to average over; by default the model itself.
        width: of the random projection, one for all sites. `fit` raises UsageError for a width below 1 or a task
            without margins, ResourceError if the projection does not fit the memory limit.
        damping: times the mean eigenvalue of Phi^T Phi, needed if there are fewer examples than dimensions.
        seed: of the projection.
    """

    width: int = in_key(512)
    damping: float = in_key(1e-3)
    seed: int = in_key(0, name="projection")
    name = "trak"

    def fit_at(self, trained: TrainedModel, sites: Sites) -> ProjectedFisher:
        if self.width < 1:
            raise UsageError(f"A projection to {self.width} numbers.", "Give a width of at least 1.")
        measured = trained.replace(task=margin_task(trained.task))
        models, inverses = self.models(measured), []
        for at in models:
            phi = projected_margins(at, sites, at.train, self.width, self.seed).astype(np.float64)
            gram = phi.T @ phi
            inverses.append(np.linalg.inv(gram + self.damping * np.trace(gram) / self.width * np.eye(self.width)))
        inputs = self.inputs_at(models, ModelPass(measured, trained.train, sites, "measurement"))
        return ProjectedFisher(trained, self.name, inputs, models, sites, np.stack(inverses), self.seed)
