"""What a fit may return besides Factors, and the one call that scores with either.

A method fits curvature (`Factors`; its scores are inverse products with gradients), or it fits a state that scores
in its own way: words in common, projected features, a recorded training run. Both are compared by the same calls.
Influence is in nats where a method predicts a change of the measurement; others say in their units what they are.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import nn

from whence.cache import Examples, ModelError, Sites, Store, Task, model_fingerprint

from .factors import Factors
from .method import FitOptions
from .scores import score

if TYPE_CHECKING:
    import xarray

NATS = "nats"


@runtime_checkable
class State(Protocol):
    """The fitted state of a method that scores in its own way. `inputs` is what it was computed from."""

    method: str
    inputs: Mapping[str, Any]

    def scores(
        self,
        model: nn.Module,
        task: Task,
        queries: Examples,
        train: Examples,
        *,
        store: Store | None = None,
        options: FitOptions = ...,
    ) -> "xarray.DataArray":
        """[query, train]; larger means that the example helps the query's measurement more."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """A method: `fit` says before any work where it cannot apply (ModelError, DataError, UsageError)."""

    name: str

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = ...,
    ) -> Any: ...


def scores_of(
    state: Factors | State,
    model: nn.Module,
    task: Task,
    queries: Examples,
    train: Examples,
    *,
    store: Store | None = None,
    options: FitOptions = FitOptions(),
) -> "xarray.DataArray":
    """Scores [query, train] of any fitted method. Raises as `score` and as the method."""
    if isinstance(state, Factors):
        return score(state, model, task, queries, train, store=store, options=options)
    return state.scores(model, task, queries, train, store=store, options=options)


def kept(
    store: Store | None,
    inputs: Mapping[str, Any],
    queries: Examples,
    train: Examples,
    make: Callable[[], Float[np.ndarray, "q n"]],
) -> Float[np.ndarray, "q n"]:
    """Scores from the store where they are, made and put there where they are not."""
    if store is None:
        return np.asarray(make(), np.float32)
    keyed = {**inputs, "queries": queries.fingerprint, "train": train.fingerprint, "what": "pairwise"}
    if store.has("scores", keyed):
        return store.open("scores", keyed).read("values")
    values = np.asarray(make(), np.float32)
    store.put("scores", keyed, {"values": values}, about={"train": train.ids.tolist(), "query": queries.ids.tolist()})
    return values


def labelled(
    values: Float[np.ndarray, "q n"], queries: Examples, train: Examples, method: str, units: str, task: Task
) -> "xarray.DataArray":
    """Scores [q n] as a DataArray with ids and units."""
    import xarray

    return xarray.DataArray(
        np.asarray(values, np.float32),
        dims=("query", "train"),
        coords={"query": queries.ids, "train": train.ids},
        name="influence" if units == NATS else "score",
        attrs={"units": units, "method": method, "measurement": str(task.settings.get("measure", ""))},
    )


def check_fitted(inputs: Mapping[str, Any], model: nn.Module) -> None:
    """Raise ModelError when these are not the weights that the state was fitted on."""
    found = model_fingerprint(model).hex
    if found != inputs.get("model"):
        raise ModelError(
            f"This was fitted on a model with fingerprint {str(inputs.get('model'))[:12]}; this one has {found[:12]}.",
            "Score with the model that was fitted, or fit again on this one.",
        )
