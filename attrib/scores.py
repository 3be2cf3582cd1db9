"""Scores: what each training example did to each query's measurement, in nats.

influence[q, n] = (1/N) grad f_q^T (G + damping I)^-1 (-grad L_n): the predicted change of query q's measurement
when training example n is added once more to the N examples the model was trained on (Grosse et al. 2023, Eq. 5;
Koh and Liang 2017). Positive: the example pushes the measurement up.

Queries are preconditioned once; the training data are passed over once for all queries together, and nothing on
their side is ever rotated.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from torch import nn

from cache import ArraySpec, DataError, Examples, ModelError, ResourceError, Store, Task, model_fingerprint
from cache.build import Frame, Run, memory_limit

from . import kernels
from .factors import Factors
from .method import FitOptions, make_run

if TYPE_CHECKING:
    import xarray

TILE_BYTES = 2 << 20  # of formed gradients: stays in a core's cache
SHARD_ROWS = 2048


def score(
    factors: Factors,
    model: nn.Module,
    task: Task,
    queries: Examples,
    train: Examples,
    *,
    store: Store | None = None,
    per_site: bool = False,
    train_size: int | None = None,
    options: FitOptions = FitOptions(),
) -> "xarray.DataArray":
    """Influence of every training example on every query's measurement.

    Returns a DataArray [query, train] in nats, with ids as coordinates; with `per_site`, [query, train, site], whose
    sum over sites is the influence. train_size: N, the examples the model was trained on, by default as many as the
    factors were fitted on. With a store, scores are kept there shard by shard, resumed after a kill and read when
    asked for again.

    Raises ModelError when the factors were fitted on other weights; DataError for a query without a position
    that counts; NumericalError for a loss that is not finite; ResourceError when the queries' gradients do not fit.
    """
    check_model(factors, model)
    size = factors.count if train_size is None else train_size
    columns = len(factors.sites) if per_site else 1
    inputs = {
        **score_inputs(factors, task, train),
        "queries": queries.fingerprint,
        "per_site": per_site,
        "what": "pairwise",
    }

    def prepare(run: Run) -> Callable[[Frame], np.ndarray]:
        prepared = prepared_queries(factors, model, task, queries, options)

        def each(frame: Frame) -> np.ndarray:
            parts = [site_products(prepared[s.name], frame, s.name) for s in run.sites]
            stacked = jnp.stack(parts, -1) if per_site else sum(parts[1:], parts[0])[..., None]
            return -np.asarray(stacked, np.float32).swapaxes(0, 1)[: len(frame.rows)]

        return each

    values = over_rows(factors, model, task, train, inputs, (len(queries), columns), prepare, store, options, "scores")
    array = label(values.transpose(1, 0, 2) / np.float32(size), queries, train, factors, task)
    return array.assign_coords(site=list(factors.sites.names)) if per_site else array[..., 0]


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
    """
    import xarray

    check_model(factors, model)
    size = factors.count if train_size is None else train_size
    inputs = {**score_inputs(factors, task, train), "what": "self"}

    def prepare(run: Run) -> Callable[[Frame], np.ndarray]:
        weights = {site.name: factors.inverse(site.name) for site in run.sites}

        def each(frame: Frame) -> np.ndarray:
            parts = [site_squares(factors, weights[s.name], frame, s.name) for s in run.sites]
            return np.asarray(sum(parts[1:], parts[0]), np.float32)[: len(frame.rows)]

        return each

    values = over_rows(factors, model, task, train, inputs, (), prepare, store, options, "self-influence")
    return xarray.DataArray(
        values / np.float32(size),
        dims=("train",),
        coords={"train": train.ids},
        name="self_influence",
        attrs={"units": "nats", "method": factors.method, "damping": factors.damping.value},
    )


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


def prepared_queries(
    factors: Factors, model: nn.Module, task: Task, queries: Examples, options: FitOptions = FitOptions()
) -> dict[str, jax.Array]:
    """(G + damping I)^-1 grad f of every query: site -> [q o i].

    Raises DataError where a query counts no position (its gradient would be zero).
    """
    run = make_run(model, task, queries, factors.sites, "measurement", 0, options)
    needed = len(queries) * sum(o * i for o, i in (s.shape for s in run.sites)) * 4
    if needed > memory_limit(options.memory):
        raise ResourceError(
            f"The preconditioned gradients of {len(queries)} queries take {needed / 1e9:.1f} GB.",
            "Score fewer queries at a time, choose fewer sites, or raise the memory limit.",
        )
    parts: dict[str, list[np.ndarray]] = {site.name: [] for site in run.sites}
    order: list[np.ndarray] = []
    for frame in run.frames(desc="queries", quiet=options.quiet):
        raw = {s.name: kernels.gradients(frame.inputs[s.name], frame.grads[s.name]) for s in run.sites}
        for name, value in factors.inverse_product(raw).items():
            parts[name].append(np.asarray(value)[: len(frame.rows)])
        order.append(frame.rows)
    back = np.argsort(np.concatenate(order))
    whole = {name: np.concatenate(blocks)[back] for name, blocks in parts.items()}
    silent = np.flatnonzero(sum(np.abs(v).sum((1, 2)) for v in whole.values()) == 0)
    if len(silent):
        raise DataError(
            f"Queries with ids {queries.ids[silent][:5].tolist()} have a zero gradient: no token of theirs is counted.",
            "Give each query at least one labelled token after its first (labels other than -100).",
        )
    return {name: jnp.asarray(value) for name, value in whole.items()}


def site_products(prepared: jax.Array, frame: Frame, site: str) -> jax.Array:
    """<prepared_q, gradient_b> at one site, [q b]."""
    a, g = frame.inputs[site], frame.grads[site]
    rows = TILE_BYTES // (a.dtype.itemsize * a.shape[0] * a.shape[2])
    tile = int(min(g.shape[2], max(16, rows)))
    return kernels.pair_products(prepared, a, g, tile=tile)


def site_squares(factors: Factors, weight: np.ndarray, frame: Frame, site: str) -> jax.Array:
    """Weighted squares of the rotated gradients at one site, [b]."""
    a, g = frame.inputs[site], frame.grads[site]
    state = factors.per_site[site]
    scale = jnp.asarray(weight, a.dtype)
    if state.qa is None or state.qs is None:
        return kernels.weighted_squares_unrotated(a, g, scale)
    order = kernels.rotation_order(a.shape[1], g.shape[2], a.shape[2])
    return kernels.weighted_squares(a, g, jnp.asarray(state.qa, a.dtype), jnp.asarray(state.qs, a.dtype), scale, order)


def over_rows(
    factors: Factors,
    model: nn.Module,
    task: Task,
    train: Examples,
    inputs: Mapping[str, Any],
    shape: tuple[int, ...],
    prepare: Callable[[Run], Callable[[Frame], np.ndarray]],
    store: Store | None,
    options: FitOptions,
    desc: str,
) -> np.ndarray:
    """Float32 values [n, *shape] of every training example, from one pass of frames of its loss: read from the store,
    resumed, or made. `prepare` is called only when there is something to make."""
    if store is not None and store.has("scores", inputs):
        return store.open("scores", inputs).read("values")

    def ready() -> tuple[Run, Callable[[Frame], np.ndarray]]:
        run = make_run(model, task, train, factors.sites, "loss", 0, options)
        return run, prepare(run)

    def fill(run: Run, each: Callable[[Frame], np.ndarray], rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *shape), np.float32)
        for frame in run.frames(rows, desc=desc, quiet=options.quiet):
            out[frame.rows - rows[0]] = each(frame)
        return out

    if store is None:
        run, each = ready()
        return fill(run, each, np.arange(len(train)))
    spec = {"values": ArraySpec((len(train), *shape), "float32")}
    about = {"train": train.ids.tolist()}
    with store.writer("scores", inputs, spec, shard_rows=min(SHARD_ROWS, len(train)), about=about) as writer:
        if not writer.complete:
            run, each = ready()
            for shard in writer.todo():
                writer.write(shard, {"values": fill(run, each, np.arange(shard.start, shard.stop))})
        return writer.seal().read("values")


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
            "units": "nats",
            "meaning": "predicted change of the query's measurement when the example is added once more",
            "method": factors.method,
            "damping": f"{factors.damping.value:g} {factors.damping.rule}",
            "measurement": str(task.settings.get("measure", "")),
        },
    )
