"""Features of examples: one row of numbers each, whose products are scores (TRAK, LoGra, representations)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float
from torch import Tensor, nn

from whence.cache import (
    Classification,
    Examples,
    LanguageModelling,
    ResourceError,
    Site,
    Sites,
    Task,
    UsageError,
    borrowed,
)
from whence.cache.model.batches import CapturedBatch, ModelPass, memory_limit, plan_batches

from .method import FitOptions, make_run
from .scores import site_products


def features(
    run: ModelPass, each: Callable[[CapturedBatch], Float[Array, "b k"]], desc: str, quiet: bool
) -> np.ndarray:
    """each(batch) for every example of a run, in the examples' order, [n k]."""
    out: np.ndarray | None = None
    for batch in run.batches(desc=desc, quiet=quiet):
        rows = np.asarray(each(batch), np.float32)[: len(batch.rows)]
        if out is None:
            out = np.empty((len(run.examples), rows.shape[1]), np.float32)
        out[batch.rows] = rows
    assert out is not None  # make_run refuses an empty data set
    return out


def random_projection(site: Site, place: int, width: int, seed: int) -> Float[Array, "k o i"]:
    """`width` random directions of a site's gradient, entries normal with variance 1 / width."""
    key = jax.random.fold_in(jax.random.key(seed), place)
    return jax.random.normal(key, (width, *site.shape), jnp.float32) / jnp.sqrt(jnp.float32(width))


def projected_gradients(
    model: nn.Module, task: Task, examples: Examples, sites: Sites, objective: str, width: int, seed: int,
    options: FitOptions,
) -> Float[np.ndarray, "n k"]:  # fmt: skip
    """Every example's gradient under one random projection of all sites, [n width].

    Raises ResourceError where the projection itself does not fit."""
    needed = width * sum(o * i for o, i in (s.shape for s in sites)) * 4
    if needed > memory_limit(options.memory):
        raise ResourceError(
            f"A dense projection of {len(sites)} sites to {width} numbers takes {needed / 1e9:.1f} GB.",
            "Use fewer dimensions, fewer sites, or LoGra, whose projections are two small ones a site.",
        )
    run = make_run(model, task, examples, sites, objective, 0, options)
    made: dict[str, Any] = {s.name: random_projection(s, place, width, seed) for place, s in enumerate(sites)}

    def each(batch: CapturedBatch) -> jax.Array:
        parts = [site_products(made[s.name].astype(batch.inputs[s.name].dtype), batch, s.name) for s in run.sites]
        return sum(parts[1:], parts[0]).T

    return features(run, each, "projected gradients", options.quiet)


def values_of(
    model: nn.Module, examples: Examples, of: Callable[[nn.Module, dict[str, Tensor]], Tensor], options: FitOptions
) -> Float[np.ndarray, " n"]:
    """of(model, batch) -> [b] of every example, without gradients, in the examples' order."""
    device = options.device or next((p.device for p in model.parameters()), torch.device("cpu"))
    out = np.empty(len(examples), np.float64)
    with borrowed(model), torch.no_grad():
        for batch in plan_batches(examples.lengths, np.arange(len(examples)), options.positions or 8192):
            tensors = examples.batch(batch.rows, pad_to=batch.width, device=device)
            out[batch.rows] = of(model, tensors).double().cpu().numpy()
    return out


def margin_task(task: Task) -> Task:
    """The same task measured by its margin. Raises UsageError where it has none."""
    if isinstance(task, (Classification, LanguageModelling)):
        return replace(task, measure="margin")
    raise UsageError(
        f"{type(task).__name__} has no margin log p / (1 - p), which TRAK linearises.",
        "Use it for classification or language modelling; LoGra and EK-FAC take any task.",
    )
