"""Scores: what each training example did to each query's measurement, in nats.

influence[q, n] = (1/N) grad f_q^T (G + damping I)^-1 (-grad L_n): the predicted change of query q's measurement
when training example n is added once more to the N examples the model was trained on (Grosse et al. 2023, Eq. 5;
Koh and Liang 2017). Positive: the example pushes the measurement up.

Queries are preconditioned once; the training data are passed over once for all queries together, and nothing on
their side is ever rotated.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from torch import nn

from whence.cache import (
    ArraySpec,
    Examples,
    ModelError,
    NotCached,
    NumericalError,
    Shard,
    Store,
    Task,
    key_of,
    model_fingerprint,
    open_gradients,
    run_job,
)
from whence.cache.model.batches import Frame, FrameSource

from . import kernels
from .contraction import group_size
from .factors import Factors
from .method import FitOptions, make_run
from .precision import Precision, products_in
from .queries import Rank, hold_queries, prepared_queries, settled_rank

if TYPE_CHECKING:
    import xarray

SHARD_ROWS = 2048
FEWEST_ROWS = 512
SHARDS = 16


def score(
    factors: Factors,
    model: nn.Module,
    task: Task,
    queries: Examples,
    train: Examples,
    *,
    store: Store | None = None,
    per_site: bool = False,
    rank: Rank = "auto",
    precision: Precision = "float32",
    train_size: int | None = None,
    options: FitOptions = FitOptions(),
) -> "xarray.DataArray":
    """Influence of every training example on every query's measurement.

    Returns a DataArray [query, train] in nats, with ids as coordinates; with `per_site`, [query, train, site], whose
    sum over sites is the influence. rank: queries are held at this rank (see lowrank.py), whole with None; "auto" holds
    them whole where they fit half the memory limit, and at rank 32 where they do not. precision: of the products with
    the training examples' gradients. train_size: N, the examples the model was trained on, by default as many as the
    factors were fitted on. With a store, scores are kept there shard by shard, resumed after a kill and read when
    asked for again.

    Raises ModelError when the factors were fitted on other weights; DataError for a query without a position
    that counts; NumericalError for a loss or gradient that is not finite, with the example's id; ResourceError, saying
    what would fit, when the queries' gradients do not; UsageError for a rank below 1.

    >>> scores = score(factors, model, task, queries, train)
    >>> scores.dims, scores.shape
    (('query', 'train'), (3, 12))
    """
    check_model(factors, model)
    size = factors.count if train_size is None else train_size
    columns = len(factors.sites) if per_site else 1
    rank = settled_rank(factors, len(queries), rank, precision, options)
    inputs = {**pair_inputs(factors, task, queries, train, rank, precision), "per_site": per_site, "what": "pairwise"}
    prepare = Pairwise(factors, model, task, queries, rank, precision, per_site, options)
    values = over_rows(factors, model, task, train, inputs, (len(queries), columns), prepare, store, options, "scores")
    array = label(values.transpose(1, 0, 2) / np.float32(size), queries, train, factors, task)
    return array.assign_coords(site=list(factors.sites.names)) if per_site else array[..., 0]


@dataclass(frozen=True)
class Pairwise:
    """Scores (times -N) of a frame's examples, [b q 1], or [b q m] by site."""

    factors: Factors
    model: nn.Module
    task: Task
    queries: Examples
    rank: int | None
    precision: Precision
    per_site: bool
    options: FitOptions

    def __call__(self, source: FrameSource) -> Callable[[Frame], np.ndarray]:
        ready = hold_queries(
            self.factors, self.model, self.task, self.queries, source.examples.lengths,
            rank=self.rank, precision=self.precision, options=self.options,
        )  # fmt: skip

        def each(frame: Frame) -> np.ndarray:
            with products_in(self.precision):
                if not self.per_site:
                    return -ready.total(frame).T[..., None]
                parts = [np.asarray(ready.products(frame, s.name), np.float32) for s in source.sites]
            return -np.stack(parts, -1).swapaxes(0, 1)[: len(frame.rows)]

        return each


def self_influence(
    factors: Factors,
    model: nn.Module,
    task: Task,
    train: Examples,
    *,
    store: Store | None = None,
    train_size: int | None = None,
    options: FitOptions = FitOptions(),
) -> "xarray.DataArray":
    """(1/N) grad L_n^T (G + damping I)^-1 grad L_n, [train], in nats: how much an example changes its own loss.

    One rotation and a weighted sum of squares: nothing is rotated back. Raises as `score`.

    >>> bool((self_influence(factors, model, task, train) > 0).all())
    True
    """
    import xarray

    size = factors.count if train_size is None else train_size
    return xarray.DataArray(
        squared_norms(factors, model, task, train, 1, store=store, options=options) / np.float32(size),
        dims=("train",),
        coords={"train": train.ids},
        name="self_influence",
        attrs={"units": "nats", "method": factors.method, "damping": factors.damping.value},
    )


def squared_norms(
    factors: Factors,
    model: nn.Module,
    task: Task,
    train: Examples,
    power: int,
    *,
    store: Store | None = None,
    options: FitOptions = FitOptions(),
) -> np.ndarray:
    """grad L_n^T (G + damping I)^-power grad L_n of every training example, [n]. Raises as `score`."""
    check_model(factors, model)
    inputs = {**score_inputs(factors, task, train), "what": "self" if power == 1 else f"self, power {power}"}
    return over_rows(factors, model, task, train, inputs, (), Squares(factors, power), store, options, "self-influence")


@dataclass(frozen=True)
class Squares:
    """Squared norms of a frame's gradients in the metric (G + damping I)^-power, [b]."""

    factors: Factors
    power: int

    def __call__(self, source: FrameSource) -> Callable[[Frame], np.ndarray]:
        weights = {site.name: self.factors.inverse(site.name) ** self.power for site in source.sites}

        def each(frame: Frame) -> np.ndarray:
            parts = [site_squares(self.factors, weights[s.name], frame, s.name) for s in source.sites]
            return np.asarray(sum(parts[1:], parts[0]), np.float32)[: len(frame.rows)]

        return each


def token_scores(
    factors: Factors,
    model: nn.Module,
    task: Task,
    queries: Examples,
    train: Examples,
    *,
    train_size: int | None = None,
    options: FitOptions = FitOptions(),
) -> "xarray.DataArray":
    """Influence split over the training examples' positions: [query, train, position], in nats; NaN past an example's
    end. The sum over positions is the influence. Position t holds what the gradient at layer inputs t carried, which
    is mostly the prediction of token t + 1 (Grosse et al. 2023, Section 5.3). Meant for the few examples one reads.

    Raises ModelError for sites whose rows are not the sequence's positions.
    """
    check_model(factors, model)
    size = factors.count if train_size is None else train_size
    run = make_run(model, task, train, factors.sites, "loss", 0, options)
    prepared = prepared_queries(factors, model, task, queries, options)
    width = int(train.lengths.max())
    out = np.full((len(queries), len(train), width), np.nan, np.float32)
    for frame in run.frames(desc="token scores", quiet=options.quiet):
        total: Any = 0.0
        for site in run.sites:
            a, g = frame.inputs[site.name], frame.grads[site.name]
            each = kernels.position_products(prepared[site.name], a, g)
            padded = frame.weights[site.name].shape[1]
            if padded % width and padded > width:
                raise ModelError(
                    f"{site.name} has {padded} rows an example for sequences of {width} positions.",
                    "Leave it out of the factors to score tokens.",
                )
            total = total + each
        values = -np.asarray(total, np.float32)[:, : len(frame.rows)] / size
        for place, row in enumerate(frame.rows):
            length = int(train.lengths[row])
            out[:, row, :length] = values[:, place, :length]
    return label(out, queries, train, factors, task, last="position")


def check_model(factors: Factors, model: nn.Module) -> None:
    """Raise ModelError when these are not the weights the factors were fitted on."""
    found = model_fingerprint(model)
    if found.hex != factors.inputs.get("model"):
        raise ModelError(
            f"The factors were fitted on a model with fingerprint {str(factors.inputs.get('model'))[:12]}; "
            f"this one has {found.hex[:12]}.",
            "Score with the model that was fitted, or fit again on this one.",
        )


def score_inputs(factors: Factors, task: Task, train: Examples) -> dict[str, Any]:
    """What every score of these factors is computed from."""
    from dataclasses import asdict

    return {
        "factors": dict(factors.inputs),
        "method": factors.method,
        "damping": asdict(factors.damping),
        "task": task.settings,
        "train": train.fingerprint,
        "sites": list(factors.sites.names),
    }


def pair_inputs(
    factors: Factors, task: Task, queries: Examples, train: Examples, rank: int | None, precision: Precision
) -> dict[str, Any]:
    """What scores of queries are computed from."""
    inputs = {**score_inputs(factors, task, train), "queries": queries.fingerprint}
    changed = {"rank": rank} if rank is not None else {}
    return inputs | changed | ({"precision": precision} if precision != "float32" else {})


def site_products(prepared: jax.Array, frame: Frame, site: str) -> jax.Array:
    """<prepared_q, gradient_b> at one site, [q b]."""
    a, g = frame.inputs[site], frame.grads[site]
    return kernels.pair_products(prepared, a, g, group=group_size(a, g, len(prepared)))


def site_squares(factors: Factors, weight: np.ndarray, frame: Frame, site: str) -> jax.Array:
    """Weighted squares of the rotated gradients at one site, [b]."""
    a, g = frame.inputs[site], frame.grads[site]
    state = factors.per_site[site]
    scale = jnp.asarray(weight, a.dtype)
    if state.qa is None or state.qs is None:
        return kernels.weighted_squares_unrotated(a, g, scale)
    order = kernels.rotation_order(a.shape[1], g.shape[2], a.shape[2])
    return kernels.weighted_squares(a, g, jnp.asarray(state.qa, a.dtype), jnp.asarray(state.qs, a.dtype), scale, order)


Prepare = Callable[[FrameSource], Callable[[Frame], np.ndarray]]


@dataclass(frozen=True)
class RowWork:
    """Values of one shard of training examples. What is prepared is kept for the process, so a worker that is sent
    many shards prepares once."""

    key: str
    factors: Factors
    model: nn.Module
    task: Task
    train: Examples
    shape: tuple[int, ...]
    prepare: Prepare
    root: str
    options: FitOptions
    desc: str

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        if _READY.get("key") != self.key:
            source = self.source()
            _READY.update(key=self.key, source=source, each=self.prepare(source))
        source, each = _READY["source"], _READY["each"]
        rows = np.arange(shard.start, shard.stop)
        out = np.empty((len(rows), *self.shape), np.float32)
        for frame in source.frames(rows, desc=self.desc, quiet=self.options.quiet):
            with products_in("float32"):  # unless the work asks for less
                values = each(frame)
            check_rows(values, self.train.ids[frame.rows])
            out[frame.rows - rows[0]] = values
        return {"values": out}

    def source(self) -> FrameSource:
        """Frames of the training loss: from the store when they are there, else from the model."""
        store = Store(self.root) if self.root else None
        return row_source(self.factors, self.model, self.task, self.train, store, self.options)


def row_source(
    factors: Factors, model: nn.Module, task: Task, train: Examples, store: Store | None, options: FitOptions
) -> FrameSource:
    """Frames of the training loss: from the store when they are there, else from the model."""
    run = make_run(model, task, train, factors.sites, "loss", 0, options)
    if store is not None:
        with suppress(NotCached):
            return open_gradients(run, store)
    return run


_READY: dict[str, Any] = {}


@contextmanager
def prepared_once() -> Iterator[None]:
    """Within it, a RowWork prepares once; on the way out what was prepared is let go of."""
    try:
        yield
    finally:
        _READY.clear()


def check_rows(values: np.ndarray, ids: np.ndarray) -> None:
    """Raise NumericalError naming the examples whose values [b ...] are not finite."""
    bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
    if bad.any():
        raise NumericalError(
            f"The gradients of the examples with ids {ids[bad][:5].tolist()} are not finite.",
            "Look at these examples, or leave them out: attrib.finite_examples(...) finds and drops all such.",
        )


def shard_rows(count: int) -> int:
    """Rows of a partition: so many that small data too is shared among workers, and no worker gets crumbs."""
    return min(count, max(FEWEST_ROWS, min(SHARD_ROWS, -(-count // SHARDS))))


def over_rows(
    factors: Factors,
    model: nn.Module,
    task: Task,
    train: Examples,
    inputs: Mapping[str, Any],
    shape: tuple[int, ...],
    prepare: Prepare,
    store: Store | None,
    options: FitOptions,
    desc: str,
) -> np.ndarray:
    """Float32 values [n, *shape] of every training example, from one pass of frames of its loss: read from the store,
    resumed, or made, on whatever cluster the options name. `prepare` is called only when there is something to make."""
    if store is not None and store.has("scores", inputs):
        return store.open("scores", inputs).read("values")
    root = "" if store is None else store.root
    work = RowWork(key_of("scores", inputs) + root, factors, model, task, train, shape, prepare, root, options, desc)
    with prepared_once():
        if store is None:
            return work(Shard(0, 0, len(train)))["values"]
        spec, rows = {"values": ArraySpec((len(train), *shape), "float32")}, shard_rows(len(train))
        about = {"train": train.ids.tolist()}
        entry = run_job(
            store, "scores", inputs, spec, work,
            shard_rows=rows, about=about, cluster=options.cluster, log=options.log, desc=desc,
            quiet=options.quiet,
        )  # fmt: skip
        return entry.read("values")


def label(
    values: np.ndarray, queries: Examples, train: Examples, factors: Factors, task: Task, last: str = "site"
) -> "xarray.DataArray":
    """Scores [q n x] as a DataArray with ids, what is measured, and how."""
    import xarray

    return xarray.DataArray(
        values,
        dims=("query", "train", last),
        coords={"query": queries.ids, "train": train.ids},
        name="influence",
        attrs={
            "units": getattr(task, "units", "nats"),
            "meaning": "predicted change of the query's measurement when the example is added once more",
            "method": factors.method,
            "damping": f"{factors.damping.value:g} {factors.damping.rule}",
            "measurement": str(task.settings.get("measure", "")),
        },
    )
