"""Values of every training example: one pass of captured batches of the training loss, in shards that are stored,
resumed after a kill and shared among workers."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from whence.cache import ArraySpec, Examples, NumericalError
from whence.cache.errors import NotCached, enough_memory
from whence.cache.model.batches import BatchSource, CapturedBatch
from whence.cache.model.gradients import open_gradients, stored_dtype
from whence.cache.model.task_key import task_settings
from whence.cache.model.trained import ModelPass
from whence.cache.store.layout import Shard

from ..curvature import Curvature
from ..memory import groups_of
from .precision import Precision, products_in

SHARD_ROWS = 2048
FEWEST_ROWS = 512
SHARDS = 16

Values = Callable[[CapturedBatch], np.ndarray]
Prepare = Callable[[BatchSource], Values]


@dataclass(frozen=True)
class RowWork:
    """Values of one shard of training examples, float32.

    shape: of one example's values. groups: the factors at groups of sites, each with what prepares its values: a
    function of the batches' source that returns one of a batch. The groups' values are added. A single group is
    prepared once per process, so a worker prepares once for all its shards; several are prepared one after the other
    in every shard. desc: for the progress bar. gradients: see `gradients_in`. precision: of matrix products, the
    model's on a GPU too.
    """

    groups: Sequence[tuple[Curvature, Prepare]]
    train: Examples
    shape: tuple[int, ...]
    desc: str
    gradients: str = "float32"
    precision: Precision = "float32"

    @cached_property
    def _first(self) -> tuple[BatchSource, Values]:
        return self._ready(*self.groups[0])

    def _ready(self, factors: Curvature, prepare: Prepare) -> tuple[BatchSource, Values]:
        source = row_source(factors, self.train, self.gradients)
        return source, prepare(source)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_first"}

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        rows = np.arange(shard.start, shard.stop)
        out = np.zeros((len(rows), *self.shape), np.float32)
        for number, group in enumerate(self.groups, 1):
            with products_in(self.precision):
                source, values_of = self._first if len(self.groups) == 1 else self._ready(*group)
                desc = self.desc if len(self.groups) == 1 else f"{self.desc}, sites {number} of {len(self.groups)}"
                for batch in source.batches(rows, desc=desc):
                    values = values_of(batch)
                    check_rows(values, self.train.ids[batch.rows])
                    out[batch.rows - rows[0]] += values
            del source, values_of
        return {"values": out}


def over_rows(
    factors: Curvature,
    train: Examples,
    inputs: Mapping[str, Any],
    shape: tuple[int, ...],
    groups: Sequence[tuple[Curvature, Prepare]],
    desc: str,
    precision: Precision = "float32",
    about: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Values [n, *shape] of every training example: read from the store, resumed, or computed on the trained model's
    cluster. Arguments as in `RowWork`; a group is prepared only if there is something to compute."""
    store = factors.trained.store
    if store is not None and store.has("scores", inputs):
        return store.open("scores", inputs).read("values")
    work = RowWork(groups, train, shape, desc, gradients_in(inputs), precision)
    if store is None:
        with enough_memory(desc):
            return work(Shard(0, 0, len(train)))["values"]
    return factors.trained.job(
        "scores", inputs, {"values": ArraySpec((len(train), *shape), "float32")}, work, desc=desc,
        shard_rows=shard_rows(len(train)), about={"train": train.ids.tolist(), **(about or {})},
    ).read("values")  # fmt: skip


def at_groups(factors: Curvature, sizes: Mapping[str, int]) -> list[Curvature]:
    """The factors at groups of sites whose prepared values, of these sizes in bytes, fit half of the memory limit."""
    limit = factors.trained.memory_limit()
    groups = groups_of(factors.sites, sizes, limit // 2)
    if len(groups) == 1:
        return [factors]
    trained = factors.trained.replace(memory=limit)  # of free memory: as it is now
    return [replace(factors, trained=trained, sites=group) for group in groups]


def row_source(factors: Curvature, train: Examples, dtype: str) -> BatchSource:
    """Batches of the training loss: from the store if they are there in this type, else from the model. Raises
    NotCached for gradients in another type than float32 that have left the store."""
    run = factors.trained.run("loss", factors.sites, train)
    if factors.trained.store is not None:
        with suppress(*([NotCached] if dtype == "float32" else [])):
            return open_gradients(run, factors.trained.store, (dtype,))
    return run


def gradients_at_hand(factors: Curvature, train: Examples) -> str:
    """The type that the store has the gradients of these examples in; float32 if they are computed."""
    store = factors.trained.store
    run = ModelPass(factors.trained, train, factors.sites, "loss")
    return "float32" if store is None else stored_dtype(run, store) or "float32"


def gradients_in(inputs: Mapping[str, Any]) -> str:
    """The type of the gradients that a result with these inputs is computed from."""
    return str(inputs.get("gradients", "float32"))


def check_rows(values: np.ndarray, ids: np.ndarray) -> None:
    """Raise NumericalError naming the examples whose values [b ...] are not finite."""
    bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
    if bad.any():
        raise NumericalError(
            f"The gradients of the examples with ids {ids[bad][:5].tolist()} are not finite.",
            "Look at these examples, or leave them out: attrib.finite.finite_examples(...) finds and drops all such.",
        )


def shard_rows(count: int) -> int:
    """Rows per partition: so few that workers share small data too, and so many that a partition is worth its start."""
    return min(count, max(FEWEST_ROWS, min(SHARD_ROWS, -(-count // SHARDS))))


def row_inputs(factors: Curvature, train: Examples, **more: Any) -> dict[str, Any]:
    """What values of training examples under these factors are computed from, as in their key."""
    dtype = gradients_at_hand(factors, train)
    return {
        "factors": dict(factors.inputs),
        "method": factors.method,
        "damping": asdict(factors.damping),
        "task": task_settings(factors.trained.task),
        "train": train.fingerprint,
        "sites": list(factors.sites.names),
        **({} if dtype == "float32" else {"gradients": dtype}),
        **more,
    }
