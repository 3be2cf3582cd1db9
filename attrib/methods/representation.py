"""Representation similarity: the cosine of hidden states, which sees what examples look like to the model and nothing
of what they taught it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from torch import nn

from whence.cache import Examples, Sites, Store, Task, find_sites
from whence.cache.model.batches import CapturedBatch

from ..features import features
from ..method import FitOptions, inputs_of, make_run
from ..states import check_fitted, kept, labelled

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Hidden:
    """mean [i] of the fitted examples' states at one site, which is taken off before the cosine."""

    method: str
    inputs: Mapping[str, Any]
    sites: Sites
    mean: np.ndarray

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
        """Cosine of the centred mean states, -1 to 1."""
        check_fitted(self.inputs, model)

        def make() -> np.ndarray:
            found = [states(model, task, e, self.sites, options) - self.mean for e in (queries, train)]
            unit = [h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12) for h in found]
            return unit[0] @ unit[1].T

        values = kept(store, {**self.inputs, "task": task.settings}, queries, train, make)
        return labelled(values, queries, train, self.method, "cosine", task)


def states(model: nn.Module, task: Task, examples: Examples, sites: Sites, options: FitOptions) -> np.ndarray:
    """The input of the one site, averaged over counted positions, [n i]."""
    run = make_run(model, task, examples, sites, "loss", 0, options)
    name = sites.names[0]

    def each(batch: CapturedBatch) -> jax.Array:
        a, weight = batch.inputs[name], batch.weights[name]
        return jnp.einsum("bsi,bs->bi", a, weight) / jnp.maximum(weight.sum(1, keepdims=True), 1)

    return features(run, each, "states", options.quiet)


@dataclass(frozen=True)
class Representation:
    """at: the site whose input is compared; the last linear one when not given."""

    at: str | None = None
    name = "representation"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> Hidden:
        """Raises ModelError where no site is called `at`."""
        run = make_run(model, task, examples, sites, "loss", 0, options)
        if self.at is not None:
            one = find_sites(model, self.at, quiet=True)
        else:
            linear = [site.name for site in run.sites if site.kind == "linear"] or list(run.sites.names)
            one = run.sites.only(linear[-1:])
        one = one.only(one.names[:1])
        mean = states(model, task, examples, one, options).mean(0)
        inputs = {**inputs_of(run, method=self.name), "sites": one.settings}
        return Hidden(self.name, inputs, one, mean)
