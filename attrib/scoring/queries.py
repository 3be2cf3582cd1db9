"""Prepared queries: (G + damping)^-1 grad f of each, whole or at low rank, in the cheapest form, on the device."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

from whence.cache import Classification, DataError, Examples, NumericalError, ResourceError, UsageError
from whence.cache.jobs.progress import say
from whence.cache.model.batches import BATCH_POSITIONS, CapturedBatch
from whence.cache.model.bridge import to_numpy

from .. import kernels
from ..curvature import Curvature
from . import contraction
from .contraction import Form
from .lowrank import LowRank, truncated
from .precision import Precision, itemsize, narrowed

RANK = 32  # Grosse et al. 2023, Figure 3: Pearson 0.995 with full rank
Rank = int | None | Literal["auto"]


@dataclass(frozen=True)
class PreparedQueries:
    """values: site -> the queries, as its form needs them. forms: site -> how its products are computed."""

    values: Mapping[str, LowRank | Float[Array, "q o i"]]
    forms: Mapping[str, Form]
    precision: Precision

    def products(self, batch: CapturedBatch, site: str) -> Float[Array, "q b"]:
        """<P_q, G_b> of every query and example at one site; the batch's rows of zeros give zeros."""
        a, g = (narrowed(x[site], self.precision) for x in (batch.inputs, batch.grads))
        own = self.values[site]
        if not isinstance(own, LowRank):
            return kernels.pair_products(own, a, g)
        if self.forms[site] == "positions":
            return kernels.rank_products(own.left, own.right, a, g)
        return kernels.rebuilt_products(own.left, own.right, a, g)


def resolved_rank(factors: Curvature, queries: int, rank: Rank, precision: Precision) -> int | None:
    """The rank of the queries: as given; for "auto" None (exact) if they fit, else RANK. Raises UsageError below 1."""
    if rank == "auto":
        needed = queries * gradient_bytes(factors, itemsize(precision))
        if needed <= factors.trained.memory_limit() // 2:
            return None
        if not factors.trained.quiet:
            say(f"{queries} exact queries take {needed / 1e9:.1f} GB, over half the limit: rank {RANK} is used")
        return RANK
    if isinstance(rank, int) and rank < 1:
        raise UsageError(f"rank = {rank}.", "Give a rank of at least 1, None for exact queries, or 'auto'.")
    return rank


def gradient_bytes(factors: Curvature, size: int = 4) -> int:
    """Bytes of one gradient at all sites."""
    return size * sum(site.size for site in factors.sites)


def prepare_queries(
    factors: Curvature,
    queries: Examples,
    lengths: Int64[np.ndarray, " n"],
    *,
    rank: int | None = None,
    precision: Precision = "float32",
) -> PreparedQueries:
    """Queries ready for the batches of training examples of these lengths.

    Args:
        rank: of the queries; None keeps them exact.
        precision: of the products with the training examples' gradients.

    Raises DataError for a query whose gradient is zero, ResourceError if they do not fit the memory limit.
    """
    chosen = forms_of(factors, len(queries), lengths, rank, precision)
    needed = sum(work.nbytes for work in chosen.values())
    check_fits(len(queries), rank, needed, factors.trained.memory_limit() // 2)
    reduced = {site.name: contraction.worth_it(rank, *site.shape) for site in factors.sites}

    def keep(name: str, value: jax.Array) -> tuple[jax.Array, ...]:
        if not reduced[name]:
            return (narrowed(value, precision),)
        low = truncated(value, factors.per_site[name], rank or RANK)
        if chosen[name].form == "tiles":
            return (narrowed(low.dense(), precision),)
        return tuple(narrowed(part, precision) for part in low)

    parts = gather(factors, queries, keep)
    values = {name: LowRank(*arrays) if len(arrays) == 2 else arrays[0] for name, arrays in parts.items()}
    return PreparedQueries(values, {name: work.form for name, work in chosen.items()}, precision)


def forms_of(
    factors: Curvature, queries: int, lengths: Int64[np.ndarray, " n"], rank: int | None, precision: Precision
) -> dict[str, contraction.Work]:
    """The form of this many queries at every site, within half of the memory limit if that is possible."""
    width = int(lengths.max())
    batch = max(1, (factors.trained.positions or BATCH_POSITIONS) // width)
    limit = factors.trained.memory_limit() // 2
    return contraction.choose(factors.sites, queries, width, batch, rank, limit, itemsize(precision))


def check_fits(queries: int, rank: int | None, needed: int, limit: int) -> None:
    """Raise ResourceError, with what would fit, if the queries' gradients need more bytes than the limit."""
    if needed <= limit:
        return
    per_query = needed / queries
    lower = "" if rank is not None and rank <= RANK else f"keep them at rank={RANK}, "
    raise ResourceError(
        f"The preconditioned gradients of {queries} queries take {needed / 1e9:.2f} GB"
        f"{'' if rank is None else f' at rank {rank}'}, over their limit of {limit / 1e9:.2f} GB.",
        f"To fit, {lower}score at most {int(limit // per_query)} queries at a time, choose fewer sites, "
        f"or raise the memory limit to {2 * needed / 1e9:.2f} GB.",
    )


def exact_queries(factors: Curvature, queries: Examples) -> dict[str, jax.Array]:
    """(G + damping I)^-1 grad f of every query, exact: site -> [q o i]. Raises the errors of `prepare_queries`."""
    check_fits(len(queries), None, len(queries) * gradient_bytes(factors), factors.trained.memory_limit())
    parts = gather(factors, queries, lambda _, value: (value,))
    return {name: arrays[0] for name, arrays in parts.items()}


def gather(
    factors: Curvature, queries: Examples, keep: Callable[[str, jax.Array], tuple[jax.Array, ...]]
) -> dict[str, tuple[jax.Array, ...]]:
    """What `keep` returns for the preconditioned gradients [b o i], a few queries at a time, in the queries' order."""
    kept: dict[str, list[tuple[jax.Array, ...]]] = {}
    order: list[np.ndarray] = []
    sizes: dict[str, list[jax.Array]] = {}
    for batch in query_batches(factors, queries):
        count = len(batch.rows)
        order.append(batch.rows)
        for name, value in factors.inverse_gradients(batch.inputs, batch.grads).items():
            kept.setdefault(name, []).append(tuple(part[:count] for part in keep(name, value)))
            sizes.setdefault(name, []).append(kernels.absolute_sums(value)[:count])
    back = np.argsort(np.concatenate(order))
    total = sum(np.asarray(jnp.concatenate(each), np.float32) for each in sizes.values())
    check_gradients(factors, queries, np.asarray(total)[back])
    out = {}
    for name in list(kept):
        parts = zip(*kept.pop(name))
        out[name] = tuple(jnp.concatenate(part)[back] if len(part) > 1 else part[0] for part in parts)
    return out


def query_batches(factors: Curvature, queries: Examples) -> Iterator[CapturedBatch]:
    """Batches of the queries' measurement, each of as many queries as fit an eighth of the memory limit."""
    run = factors.trained.run("measurement", factors.sites, queries)
    width = int(queries.lengths.max())
    at_once = max(1, factors.trained.memory_limit() // 8 // gradient_bytes(factors))
    run = replace(run, positions=min(run.positions or width, at_once * width))
    return run.batches(desc="queries")


def check_gradients(factors: Curvature, queries: Examples, sizes: Float[np.ndarray, " q"]) -> None:
    """Raise DataError if no token of a query is counted, NumericalError if its gradient is not finite. A gradient of
    zero for another reason (a probability of one) gives scores of zero."""
    silent, task = np.flatnonzero(sizes == 0), factors.trained.task
    if len(silent) and hasattr(task, "targets"):
        batch = factors.trained.batch(queries, silent)
        silent = silent[~to_numpy(task.targets(batch)[1].any(1))]
    elif isinstance(task, Classification) or len(silent) < len(queries):
        silent = silent[:0]
    if len(silent):
        why = "no token of theirs is counted", "at least one labelled token after its first (labels other than -100)"
        if "reward" in queries.columns and not np.asarray(queries.columns["reward"]).any():
            why = "each earned what the other samples of its prompt did, or nothing", "samples with different rewards"
        raise DataError(
            f"Queries with ids {queries.ids[silent][:5].tolist()} have a zero gradient: {why[0]}.",
            f"Give each query {why[1]}.",
        )
    bad = np.flatnonzero(~np.isfinite(sizes))
    if len(bad):
        raise NumericalError(
            f"Queries with ids {queries.ids[bad][:5].tolist()} have a gradient that is not finite.",
            "Leave them out, or look at what their loss overflows on.",
        )
