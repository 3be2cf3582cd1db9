"""Features of examples: a row of numbers of each, whose products are scores (TRAK, LoGra, representations)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from whence.cache import Classification, LanguageModelling, ResourceError, Task, UsageError
from whence.cache.model.batches import CapturedBatch
from whence.cache.model.sites import Site
from whence.cache.model.trained import ModelPass

from ..kernels import gradients
from ..scoring.scores import site_products

Feature = Callable[[CapturedBatch], Float[Array, "b k"]]
Sides = dict[str, tuple[Any, Any]]  # site -> projections of its inputs [i k] and of its output gradients [o l]


def features(run: ModelPass, feature: Feature, desc: str, rows: np.ndarray | None = None) -> Float[np.ndarray, "n k"]:
    """The feature of every example of a pass, or of these rows of them, in their order."""
    rows = np.arange(len(run.examples)) if rows is None else rows
    place = np.zeros(len(run.examples), np.int64)
    place[rows] = np.arange(len(rows))
    out: np.ndarray | None = None
    for batch in run.batches(rows, desc=desc):
        found = np.asarray(feature(batch), np.float32)[: len(batch.rows)]
        if out is None:
            out = np.empty((len(rows), found.shape[1]), np.float32)
        out[place[batch.rows]] = found
    assert out is not None  # a pass over no data is refused
    return out


# --- random projections of gradients ---


def random_projection(site: Site, place: int, width: int, seed: int) -> Float[Array, "k o i"]:
    """`width` random directions of a site's gradient, entries normal with variance 1 / width."""
    key = jax.random.fold_in(jax.random.key(seed), place)
    return jax.random.normal(key, (width, *site.shape), jnp.float32) / jnp.sqrt(jnp.float32(width))


def dense_projection(run: ModelPass, width: int, seed: int) -> Feature:
    """Gradients under one random projection of all sites together, [b width].

    Raises ResourceError if the projection itself is over the memory limit.
    """
    needed = width * sum(site.size for site in run.sites) * 4
    if needed > run.trained.memory_limit():
        raise ResourceError(
            f"A dense projection of {len(run.sites)} sites to {width} numbers takes {needed / 1e9:.1f} GB.",
            "Use fewer dimensions, fewer sites, or LoGra, whose projections are two small ones per site.",
        )
    return products_with({s.name: random_projection(s, place, width, seed) for place, s in enumerate(run.sites)})


def products_with(vectors: Mapping[str, Float[Array, "k _o _i"]]) -> Feature:
    """<v_k, G_b> over all sites, [b k]."""

    def feature(batch: CapturedBatch) -> jax.Array:
        parts = [site_products(v.astype(batch.inputs[n].dtype), batch, n) for n, v in vectors.items()]
        return sum(parts[1:], parts[0]).T

    return feature


def two_sided_projection(sides: Sides) -> Feature:
    """Gradients projected on both sides at every site, flattened and joined, [b sum of k l]."""

    def feature(batch: CapturedBatch) -> jax.Array:
        parts = []
        for name, pair in sides.items():
            a, g = batch.inputs[name], batch.grads[name]
            pa, ps = (jnp.asarray(side, a.dtype) for side in pair)
            parts.append(gradients(a @ pa, g @ ps).reshape(len(a), -1))
        return jnp.concatenate(parts, 1)

    return feature


def margin_task(task: Task) -> Task:
    """The same task measured by its margin. Raises UsageError if it has none."""
    if isinstance(task, (Classification, LanguageModelling)):
        return replace(task, measure="margin")
    raise UsageError(
        f"{type(task).__name__} has no margin log p / (1 - p), which TRAK linearises.",
        "Use it for classification or language modelling; LoGra and EK-FAC take any task.",
    )
