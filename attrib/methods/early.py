"""GraNd and EL2N: how much an example matters early in training (Paul et al. 2021, Definitions 2.1 and 3.1)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn

from whence.cache import DataError, Examples, Sites, Store, Task, model_fingerprint
from whence.cache.model.batches import ModelPass
from whence.cache.model.task import Batch

from .. import kernels
from ..checkpoints import Checkpoint, models_at
from ..features import features, values_of
from ..method import FitOptions, inputs_of, make_run
from ..states import kept, labelled

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class EarlyScores:
    """Scores of the training examples themselves, which no query enters. models: what they are averaged over."""

    method: str
    inputs: Mapping[str, Any]
    models: tuple[nn.Module, ...]
    sites: Sites
    each: Callable[[nn.Module, Task, Examples, Sites, FitOptions], np.ndarray]

    def values(self, task: Task, train: Examples, options: FitOptions = FitOptions()) -> np.ndarray:
        """[n], averaged over the models."""
        found = [self.each(at, task, train, self.sites, options) for at in self.models]
        return np.mean(found, axis=0)

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
        """The same row for every query."""

        def make() -> np.ndarray:
            return np.tile(self.values(task, train, options), (len(queries), 1))

        values = kept(store, {**self.inputs, "task": task.settings}, queries, train, make)
        units = "norm of the gradient" if self.method == "grand" else "norm of the error"
        return labelled(values, queries, train, self.method, units, task)


def gradient_norms(model: nn.Module, task: Task, train: Examples, sites: Sites, options: FitOptions) -> np.ndarray:
    """|grad L_n| over the sites, [n]."""

    run: ModelPass = make_run(model, task, train, sites, "loss", 0, options)
    ones = {s.name: jnp.ones(s.shape) for s in run.sites}

    def each(batch: Any) -> Any:
        parts = [
            kernels.weighted_squares_unrotated(a, batch.grads[name], ones[name].astype(a.dtype))
            for name, a in batch.inputs.items()
        ]
        return jnp.sqrt(sum(parts[1:], parts[0]))[:, None]

    return features(run, each, "GraNd", options.quiet)[:, 0]


def error_norms(model: nn.Module, task: Task, train: Examples, sites: Sites, options: FitOptions) -> np.ndarray:
    """|p - y|_2 of each example [n]; over a sequence, the root of the summed squares of its positions."""

    def of(model: nn.Module, batch: Batch) -> Tensor:
        logits = task.logits(model, batch)
        if hasattr(task, "targets"):
            y, counted = task.targets(batch)
            logits = logits[:, :-1]
        else:
            y = batch["y"].long()
            counted = torch.ones_like(y, dtype=torch.bool)
        error = logits.softmax(-1) - torch.nn.functional.one_hot(y, logits.shape[-1])
        return (error.square().sum(-1) * counted).reshape(len(y), -1).sum(1).sqrt()

    return values_of(model, train, of, options)


@dataclass(frozen=True)
class GraNd:
    """The norm of the loss gradient, averaged over models early in training from several initialisations."""

    checkpoints: Sequence[Checkpoint] = ()
    name = "grand"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> EarlyScores:
        """Raises ModelError for unlike checkpoints. With none given, the model itself is used."""
        return _early(self.name, self.checkpoints, gradient_norms, model, task, examples, sites, options)


@dataclass(frozen=True)
class EL2N:
    """The norm of the prediction's error p - y, averaged as GraNd."""

    checkpoints: Sequence[Checkpoint] = ()
    name = "el2n"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> EarlyScores:
        """Raises ModelError for unlike checkpoints, DataError where examples have no class labels."""
        y = examples.columns.get("y")
        if "input_ids" not in examples.columns and (y is None or np.asarray(y).dtype.kind not in "iu"):
            raise DataError("EL2N compares probabilities with a class label.", "Use GraNd for regression.")
        return _early(self.name, self.checkpoints, error_norms, model, task, examples, sites, options)


def _early(
    name: str, checkpoints: Sequence[Checkpoint], each: Any, model: nn.Module, task: Task, examples: Examples,
    sites: Sites | None, options: FitOptions,
) -> EarlyScores:  # fmt: skip
    models = models_at(model, checkpoints or [model])
    run = make_run(model, task, examples, sites, "loss", 0, options)
    inputs = inputs_of(run, method=name, checkpoints=[model_fingerprint(at).hex for at in models])
    return EarlyScores(name, inputs, tuple(models), run.sites, each)
