"""Queries made ready: (G + damping)^-1 grad f of each, held whole or at low rank, in the form that costs least."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64
from torch import nn

from whence.cache import DataError, Examples, NumericalError, ResourceError, Task, UsageError, say
from whence.cache.model.batches import BATCH_POSITIONS, Frame, memory_limit

from . import contraction
from .contraction import Form, Held
from .factors import Factors
from .lowrank import LowRank, truncated
from .method import FitOptions, make_run
from .precision import Precision, itemsize, narrowed

RANK = 32  # Grosse et al. 2023, Figure 3: Pearson 0.995 with full rank
Rank = int | None | Literal["auto"]


@dataclass(frozen=True)
class Queries:
    """values: site -> queries as its form wants them. count: how many. rank: None where they are exact."""

    values: Mapping[str, Held]
    forms: Mapping[str, Form]
    count: int
    rank: int | None
    precision: Precision

    def products(self, frame: Frame, site: str) -> jax.Array:
        """<P_q, G_b> at one site, [q full]."""
        a, g = (narrowed(x[site], self.precision) for x in (frame.inputs, frame.grads))
        return contraction.products(self.values[site], a, g, self.forms[site])

    def total(self, frame: Frame) -> Float[np.ndarray, "q b"]:
        """<P_q, G_b> over all sites, for the frame's real examples."""
        parts = [self.products(frame, site) for site in self.values]
        return np.asarray(sum(parts[1:], parts[0]), np.float32)[:, : len(frame.rows)]


def settled_rank(factors: Factors, queries: int, rank: Rank, precision: Precision, options: FitOptions) -> int | None:
    """The rank queries are held at: as asked; for "auto" exact where they fit, else 32. Raises UsageError below 1."""
    if rank == "auto":
        needed = queries * gradient_bytes(factors, itemsize(precision))
        if needed <= memory_limit(options.memory) // 2:
            return None
        say(f"{queries} queries held whole take {needed / 1e9:.1f} GB, over half the limit: held at rank {RANK}")
        return RANK
    if isinstance(rank, int) and rank < 1:
        raise UsageError(f"A rank of {rank}.", "Give a rank of at least 1, None for exact queries, or 'auto'.")
    return rank


def gradient_bytes(factors: Factors, size: int = 4) -> int:
    """Bytes of one gradient at all sites."""
    return size * sum(o * i for o, i in (site.shape for site in factors.sites))


def hold_queries(
    factors: Factors,
    model: nn.Module,
    task: Task,
    queries: Examples,
    lengths: Int64[np.ndarray, " n"],
    *,
    rank: int | None = None,
    precision: Precision = "float32",
    options: FitOptions = FitOptions(),
) -> Queries:
    """Queries ready for the frames of training examples of these lengths.

    Raises DataError for a query whose gradient is zero, ResourceError where they do not fit the memory limit.
    """
    width = int(lengths.max())
    batch = max(1, (options.positions or BATCH_POSITIONS) // width)
    limit = memory_limit(options.memory) // 2
    chosen = contraction.choose(factors.sites, len(queries), width, batch, rank, limit, itemsize(precision))
    check_fits(len(queries), rank, contraction.total_bytes(chosen), limit)
    reduced = {site.name: contraction.worth_it(rank, *site.shape) for site in factors.sites}

    def keep(name: str, value: jax.Array) -> tuple[jax.Array, ...]:
        if not reduced[name]:
            return (narrowed(value, precision),)
        low = truncated(factors, name, value, rank or RANK)
        if chosen[name].form == "tiles":
            return (narrowed(low.dense(), precision),)
        return tuple(narrowed(part, precision) for part in low)

    parts = gather(factors, model, task, queries, keep, options)
    values = {name: LowRank(*arrays) if len(arrays) == 2 else arrays[0] for name, arrays in parts.items()}
    return Queries(values, {n: work.form for n, work in chosen.items()}, len(queries), rank, precision)


def check_fits(queries: int, rank: int | None, needed: int, limit: int) -> None:
    if needed <= limit:
        return
    per_query = needed / queries
    lower = "" if rank is not None and rank <= RANK else f"hold them at rank={RANK}, "
    raise ResourceError(
        f"The preconditioned gradients of {queries} queries take {needed / 1e9:.2f} GB"
        f"{'' if rank is None else f' at rank {rank}'}, over the limit of {limit / 1e9:.2f} GB for them.",
        f"To fit, {lower}score at most {int(limit // per_query)} queries at a time, choose fewer sites, "
        f"or raise the memory limit to {2 * needed / 1e9:.2f} GB.",
    )


def prepared_queries(
    factors: Factors, model: nn.Module, task: Task, queries: Examples, options: FitOptions = FitOptions()
) -> dict[str, jax.Array]:
    """(G + damping I)^-1 grad f of every query, whole: site -> [q o i]. Raises as `hold_queries`."""
    check_fits(len(queries), None, len(queries) * gradient_bytes(factors), memory_limit(options.memory))
    parts = gather(factors, model, task, queries, lambda _, value: (value,), options)
    return {name: arrays[0] for name, arrays in parts.items()}


def gather(
    factors: Factors,
    model: nn.Module,
    task: Task,
    queries: Examples,
    keep: Callable[[str, jax.Array], tuple[jax.Array, ...]],
    options: FitOptions,
) -> dict[str, tuple[jax.Array, ...]]:
    """What `keep` makes of the preconditioned gradients [b o i] of a few queries at a time, in the queries' order."""
    held: dict[str, list[np.ndarray]] = {}
    sizes = np.zeros(len(queries), np.float32)
    for frame in query_frames(factors, model, task, queries, options):
        rows = frame.rows
        for name, value in factors.inverse_gradients(frame.inputs, frame.grads).items():
            kept = [np.asarray(x) for x in keep(name, value)]
            if name not in held:
                held[name] = [np.empty((len(queries), *x.shape[1:]), x.dtype) for x in kept]
            for whole, part in zip(held[name], kept):
                whole[rows] = part[: len(rows)]
            sizes[rows] += np.asarray(_absolute_sums(value))[: len(rows)]
    check_gradients(queries, sizes)
    return {name: tuple(jnp.asarray(x) for x in held.pop(name)) for name in list(held)}


@jax.jit
def _absolute_sums(value: Float[Array, "b o i"]) -> Float[Array, " b"]:
    return jnp.abs(value).sum((1, 2))


def query_frames(
    factors: Factors, model: nn.Module, task: Task, queries: Examples, options: FitOptions
) -> Iterator[Frame]:
    """Frames of the queries' measurement, of as many queries as an eighth of the memory limit holds gradients of."""
    run = make_run(model, task, queries, factors.sites, "measurement", 0, options)
    width = int(queries.lengths.max())
    at_once = max(1, memory_limit(options.memory) // 8 // gradient_bytes(factors))
    run = replace(run, positions=min(run.positions or width, at_once * width))
    return run.frames(desc="queries", quiet=options.quiet)


def check_gradients(queries: Examples, sizes: Float[np.ndarray, " q"]) -> None:
    """Raise DataError where a query's gradient is zero, NumericalError where it is not finite."""
    silent = np.flatnonzero(sizes == 0)
    if len(silent):
        raise DataError(
            f"Queries with ids {queries.ids[silent][:5].tolist()} have a zero gradient: no token of theirs is counted.",
            "Give each query at least one labelled token after its first (labels other than -100).",
        )
    bad = np.flatnonzero(~np.isfinite(sizes))
    if len(bad):
        raise NumericalError(
            f"Queries with ids {queries.ids[bad][:5].tolist()} have a gradient that is not finite.",
            "Leave them out, or look at what their loss overflows on.",
        )
