"""Values of every training example: one pass of captured batches of the training loss, in shards that are stored,
resumed after a kill and shared among workers."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from whence.cache import ArraySpec, Examples, NumericalError
from whence.cache.errors import NotCached
from whence.cache.jobs.partitions import run_job
from whence.cache.model.batches import BatchSource, CapturedBatch
from whence.cache.model.gradients import open_gradients, stored_dtype
from whence.cache.model.task_key import task_settings
from whence.cache.model.trained import ModelPass
from whence.cache.store.layout import Shard

from ..curvature import Curvature
from .precision import Precision, products_in

SHARD_ROWS = 2048
FEWEST_ROWS = 512
SHARDS = 16

Values = Callable[[CapturedBatch], np.ndarray]
Prepare = Callable[[BatchSource], Values]


@dataclass(frozen=True)
class RowWork:
    """Values of one shard of training examples, float32.

    shape: of one example's values. prepare: takes the batches' source and returns a function of one batch; it is called
    once per process, so a worker prepares once for all its shards. desc: for the progress bar. gradients: see
    `gradients_in`. precision: of matrix products, the model's on a GPU too.
    """

    factors: Curvature
    train: Examples
    shape: tuple[int, ...]
    prepare: Prepare
    desc: str
    gradients: str = "float32"
    precision: Precision = "float32"

    @cached_property
    def _ready(self) -> tuple[BatchSource, Values]:
        source = row_source(self.factors, self.train, self.gradients)
        return source, self.prepare(source)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_ready"}

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        with products_in(self.precision):
            source, values_of = self._ready
        rows = np.arange(shard.start, shard.stop)
        out = np.empty((len(rows), *self.shape), np.float32)
        with products_in(self.precision):
            for batch in source.batches(rows, desc=self.desc):
                values = values_of(batch)
                check_rows(values, self.train.ids[batch.rows])
                out[batch.rows - rows[0]] = values
        return {"values": out}


def over_rows(
    factors: Curvature,
    train: Examples,
    inputs: Mapping[str, Any],
    shape: tuple[int, ...],
    prepare: Prepare,
    desc: str,
    precision: Precision = "float32",
) -> np.ndarray:
    """Values [n, *shape] of every training example: read from the store, resumed, or computed on the trained model's
    cluster. Arguments as in `RowWork`; `prepare` is called only if there is something to compute."""
    store, trained = factors.trained.store, factors.trained
    if store is not None and store.has("scores", inputs):
        return store.open("scores", inputs).read("values")
    work = RowWork(factors, train, shape, prepare, desc, gradients_in(inputs), precision)
    if store is None:
        return work(Shard(0, 0, len(train)))["values"]
    entry = run_job(
        store, "scores", inputs, {"values": ArraySpec((len(train), *shape), "float32")}, work,
        shard_rows=shard_rows(len(train)), about={"train": train.ids.tolist()}, cluster=trained.cluster,
        log=trained.log, desc=desc, quiet=trained.quiet,
    )  # fmt: skip
    return entry.read("values")


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
