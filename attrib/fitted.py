"""What a fit returns: an object that scores training examples against queries."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float

from whence.cache import Examples, ModelError, Task, TrainedModel, UsageError
from whence.cache.model.task_key import task_settings

from .annotations import annotated, impossible, impossible_text, logprobs, titled, warned
from .chosen import chosen

if TYPE_CHECKING:
    import xarray

NATS = "nats"
Train: TypeAlias = Any  # Examples, or ids of the training data; None: all of it
F = TypeVar("F", bound="Fitted")  # typing.Self is refused by beartype on methods


@dataclass(frozen=True)
class Fitted(ABC):
    """A fitted attribution method. It is never changed; a new kind implements `pairwise`.

    trained: the model that it was fitted on, with its data, task, device and store. method: its registered name.
    inputs: what it was computed from, as in its key.

    Influence is in nats if the method predicts a change of the measurement; otherwise see `attrs["units"]`.
    """

    trained: TrainedModel
    method: str
    inputs: Mapping[str, Any]

    units: ClassVar[str] = NATS

    @abstractmethod
    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        """Scores of every training example for every query; larger means that the example raises the measurement."""

    def score(self, queries: Examples, train: Train = None) -> "xarray.DataArray":
        """Scores [query, train], with ids as coordinates; stored under their key, and read when it is there.

        Args:
            queries: the examples whose measurement is explained.
            train: the examples that are scored, or ids of the training data; by default all of it.

        Raises ModelError if the model is not the one that was fitted; DataError for examples that do not fit the task.
        """
        train = chosen(self.trained.train, train)
        self.check_model()
        values = self.stored(self.score_inputs(queries, train), lambda: self.pairwise(queries, train), queries, train)
        return self.labelled(values, queries, train)

    def top(self, queries: Examples, k: int = 10, train: Train = None) -> "xarray.Dataset":
        """The k highest and k lowest scores of each query, [query, place]: `helpful` and `harmful`, with the
        examples' ids `helpful_id` and `harmful_id`. Raises UsageError for k below 1, and the errors of `score`."""
        scores = self.score(queries, train)
        if k < 1:
            raise UsageError(f"k = {k}.", "Give a k of at least 1.")
        order = np.argsort(-scores.values, axis=1, kind="stable")
        rows = {"helpful": order[:, :k], "harmful": np.argsort(scores.values, axis=1, kind="stable")[:, :k]}
        values = {name: np.take_along_axis(scores.values, found, axis=1) for name, found in rows.items()}
        return self.extremes(values, rows, queries, chosen(self.trained.train, train))

    def self_influence(self, train: Train = None) -> "xarray.DataArray":
        """Influence of each example on its own loss, [train]. Raises UsageError if the method has none."""
        raise UsageError(
            f"{self.method} has no self-influence.", "Use EKFAC, KFAC, Diagonal, Shampoo or Identity for it."
        )

    def measuring(self: F, task: Task) -> F:
        """The same fit with another measurement of the queries (a margin, an activation)."""
        return self.on(self.trained.replace(task=task))

    def on(self: F, trained: TrainedModel) -> F:
        """The same fit with another store, device, data or run options."""
        return replace(self, trained=trained)

    @property
    def caution(self) -> str:
        """What makes every score of this fit doubtful, with the cure; "" if nothing is known to."""
        return ""

    def logprobs(self, queries: Examples) -> Float[np.ndarray, " q"] | None:
        """log p of every query under the model; None for a method or a task without probabilities."""
        return logprobs(self.trained, queries) if "model" in self.inputs else None

    @property
    def measure(self) -> str:
        """What the task measures: "logprob", "margin", ..."""
        return str(self.trained.task.settings.get("measure", ""))

    @property
    def score_units(self) -> str:
        """Units of the scores: the task's own if it measures something else than nats, and the method predicts it."""
        return getattr(self.trained.task, "units", NATS) if self.units == NATS else self.units

    @property
    def labels(self) -> dict[str, str]:
        """What every result says of the fit."""
        return {"method": self.method} | ({} if self.trained.checks else {"checked": "no"})

    def check_model(self) -> None:
        """Raise ModelError if the weights are not those that were fitted."""
        wanted = self.inputs.get("model")
        if wanted is not None and (found := self.trained.fingerprint()) != wanted:
            raise ModelError(
                f"{self.method} was fitted on a model with fingerprint {str(wanted)[:12]}; this one has {found[:12]}.",
                "Score with the model that was fitted, or fit again on this one.",
            )

    def score_inputs(self, queries: Examples, train: Examples) -> dict[str, Any]:
        """What the scores are computed from, as in their key."""
        task, fitted = task_settings(self.trained.task), self.inputs.get("task", {})
        inputs = {**self.inputs, "task": task}
        if fitted and {**fitted, "measure": ""} != {**task, "measure": ""}:
            inputs["fitted_task"] = fitted  # fitted with another loss than the scores are of
        return {**inputs, "queries": queries.fingerprint, "train": train.fingerprint, "what": "pairwise"}

    def stored(
        self,
        inputs: Mapping[str, Any],
        compute: Callable[[], Float[np.ndarray, "q n"]],
        queries: Examples,
        train: Examples,
    ) -> Float[np.ndarray, "q n"]:
        """Scores from the store if they are there, else computed and stored."""
        store = self.trained.store
        if store is None:
            return np.asarray(compute(), np.float32)
        if store.has("scores", inputs):
            return store.open("scores", inputs).read("values")
        values = np.asarray(compute(), np.float32)
        about = {"train": train.ids.tolist(), "query": queries.ids.tolist()}
        store.put("scores", inputs, {"values": values}, about=about)
        return values

    def labelled(
        self, values: Float[np.ndarray, "q n *_"], queries: Examples, train: Examples, last: str = "site"
    ) -> "xarray.DataArray":
        """Scores [q n] or [q n last] as a DataArray with ids, titles and texts, the log-probability of each query,
        units, method, measurement, and a warning if something cannot be right (`annotations`)."""
        import xarray

        array = xarray.DataArray(
            np.asarray(values),
            dims=("query", "train", *([last] if np.ndim(values) == 3 else [])),
            coords={"query": queries.ids, "train": train.ids},
            name="influence" if self.units == NATS else "score",
            attrs={"units": self.score_units, "measurement": self.measure, **self.labels},
        )
        return annotated(array, self.trained, queries, train, logprob=self.logprobs(queries), caution=self.caution)

    def labelled_alone(self, values: Float[np.ndarray, " n"], train: Train) -> "xarray.DataArray":
        """Scores of the examples themselves, [train], with ids, units, method, and the fit's caution."""
        import xarray

        return xarray.DataArray(
            values,
            dims=("train",),
            coords={"train": chosen(self.trained.train, train).ids},
            name="self_influence",
            attrs={"units": self.units, **self.labels} | ({"warning": self.caution} if self.caution else {}),
        )

    def extremes(
        self, values: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray], queries: Examples, train: Examples
    ) -> "xarray.Dataset":
        """`helpful` and `harmful` [query, place] with the ids, titles and texts of these rows of the training examples,
        the log-probability of each query, and a warning if something cannot be right."""
        import xarray

        ids = {name: train.ids[found] for name, found in rows.items()}
        beside = {f"{name}_id": found for name, found in ids.items()} | titled(ids, train)
        arrays = {name: (("query", "place"), np.asarray(found)) for name, found in {**values, **beside}.items()}
        attrs = {"units": self.score_units, "examples": len(train), **self.labels}
        coords: dict[str, Any] = {"query": queries.ids, "place": np.arange(1, values["helpful"].shape[1] + 1)}
        warnings: list[str] = []
        if (logprob := self.logprobs(queries)) is not None:
            coords["logprob"] = ("query", logprob)
            side = "harmful" if self.measure == "loss" else "helpful"
            if attrs["units"] == NATS:
                marks = impossible(values[side], logprob, self.measure)
                warnings += impossible_text(values[side], logprob, marks, queries.ids, ids[side])
                coords |= {f"{side}_impossible": (("query", "place"), marks)} if marks.any() else {}
        return xarray.Dataset(arrays, coords=coords, attrs={**attrs, **warned(warnings, self.trained, self.caution)})
