"""Error against what it costs: steps, tokens, seconds; for plots of a dictionary beside trained autoencoders."""

from collections.abc import Sequence
from typing import Any

import xarray as xr

from .evaluate import evaluate
from .sae import SAE


def sparsity_curve(codec: Any, activations: Any, ks: Sequence[int]) -> xr.Dataset:
    """`evaluate` at every number of steps: value, low and high over (k, metric)."""
    return xr.concat([evaluate(codec, activations, k=k) for k in ks], xr.Variable("k", list(ks)), combine_attrs="drop")


def training_curve(
    settings: SAE,
    stream: Any,
    held_out: Any,
    at_tokens: Sequence[int] = (),
    at_seconds: Sequence[float] = (),
    k: int | None = None,
) -> xr.Dataset:
    """`evaluate` on held-out activations as an autoencoder trains: value, low and high over (mark, metric), with the
    tokens seen and the seconds spent at every mark."""
    marks = list(settings.train(stream, at_tokens, at_seconds))
    judged = [evaluate(mark.autoencoder, held_out, k=k) for mark in marks]
    return xr.concat(judged, "mark", combine_attrs="drop").assign_coords(
        tokens=("mark", [mark.tokens for mark in marks]), seconds=("mark", [mark.seconds for mark in marks])
    )
