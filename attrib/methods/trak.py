"""TRAK: projected gradients of the margin as features of a linear model (Park et al. 2023, Eq. 13)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from whence.cache import Examples, Sites, Store, Task, UsageError, model_fingerprint
from whence.cache.model.task import Batch

from ..checkpoints import Checkpoint, models_at
from ..features import margin_task, projected_gradients, values_of
from ..method import FitOptions, inputs_of, make_run
from ..states import check_fitted, kept, labelled

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class ProjectedFisher:
    """models: one a checkpoint. inverses: (Phi^T Phi + damping)^-1 of the fitted examples, [m k k]."""

    method: str
    inputs: Mapping[str, Any]
    models: tuple[nn.Module, ...]
    sites: Sites
    inverses: np.ndarray
    seed: int

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
        """(mean over checkpoints of phi_q^T (Phi^T Phi)^-1 phi_n) (mean over checkpoints of 1 - p_n)."""
        check_fitted(self.inputs, model)

        def make() -> np.ndarray:
            kernel, doubt = np.zeros((len(queries), len(train))), np.zeros(len(train))
            for at, inverse in zip(self.models, self.inverses):
                asked = self._project(at, task, queries, options)
                kernel += asked @ inverse @ self._project(at, margin_task(task), train, options).T
                doubt += values_of(at, train, lambda m, batch: 1 - probability(m, task, batch), options)
            return kernel * doubt / len(self.models) ** 2

        values = kept(store, {**self.inputs, "task": task.settings}, queries, train, make)
        return labelled(values, queries, train, self.method, "margin of the linearised model", task)

    def _project(self, at: nn.Module, task: Task, examples: Examples, options: FitOptions) -> np.ndarray:
        width = self.inverses.shape[1]
        return projected_gradients(at, task, examples, self.sites, "measurement", width, self.seed, options)


def probability(model: nn.Module, task: Task, batch: Batch) -> Tensor:
    """exp(-loss) per predicted position: p of the label, its geometric mean over a sequence."""
    counted = task.targets(batch)[1].sum(1).clamp(min=1) if hasattr(task, "targets") else 1.0
    return (-task.loss(model, batch) / counted).exp()


@dataclass(frozen=True)
class TRAK:
    """checkpoints: independently trained models (or state_dicts) to average over; the model itself when none is given.
    width: of the random projection, one for all sites. damping: times the mean eigenvalue of Phi^T Phi, for when
    there are fewer examples than dimensions. For language the margin of a sequence is the sum of its tokens'."""

    checkpoints: Sequence[Checkpoint] = ()
    width: int = 512
    damping: float = 1e-3
    seed: int = 0
    name = "trak"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> ProjectedFisher:
        """Raises UsageError for a task without margins or a width below 1, ModelError for unlike checkpoints,
        ResourceError where the projection does not fit."""
        if self.width < 1:
            raise UsageError(f"A projection to {self.width} numbers.", "Give a width of at least 1.")
        measured, models = margin_task(task), models_at(model, self.checkpoints or [model])
        run = make_run(model, measured, examples, sites, "measurement", 0, options)
        inverses = []
        for at in models:
            phi = projected_gradients(
                at, measured, examples, run.sites, "measurement", self.width, self.seed, options
            ).astype(np.float64)
            gram = phi.T @ phi
            inverses.append(np.linalg.inv(gram + self.damping * np.trace(gram) / self.width * np.eye(self.width)))
        inputs = inputs_of(run, method=self.name, width=self.width, damping=self.damping, projection=self.seed)
        inputs["checkpoints"] = [model_fingerprint(at).hex for at in models]
        return ProjectedFisher(self.name, inputs, tuple(models), run.sites, np.stack(inverses), self.seed)
