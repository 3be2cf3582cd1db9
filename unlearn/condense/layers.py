"""Layers as plain functions on images [n h w c] and vectors [n d]; weights have their outputs last.

A convolution's own gradients are written out here, because the ones that XLA derives for a CPU are convolutions
with a kernel as large as the image. The gradient of the weights is one product per row of the kernel instead, with
the image unfolded along its rows only (a third of the memory of whole patches), and the gradient of the input is a
convolution of the same kind. Both can be differentiated again, which is how the gradient of a matching distance
reaches the pixels. An image of few channels is convolved as one product with its patches: XLA's convolution leaves
the vector units empty there.
"""

from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Params: TypeAlias = dict[str, Array]
FEW_CHANNELS = 4  # up to which a product with patches is faster than XLA's convolution


def patches(x: Float[Array, "n h w i"], k: int, pad: int) -> Float[Array, "n y x kki"]:
    """Every k-by-k window of the zero-padded image, flattened in the order (row, column, channel)."""
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = x.shape[1] - k + 1, x.shape[2] - k + 1
    windows = [x[:, i : i + height, j : j + width] for i in range(k) for j in range(k)]
    return windows[0] if k == 1 else jnp.concatenate(windows, -1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: Float[Array, "n h w i"], weight: Float[Array, "kki o"], k: int, pad: int) -> Float[Array, "n y x o"]:
    """Cross-correlation with a k-by-k kernel, stride 1. weight: rows in the order of `patches`."""
    if k == 1:
        return x @ weight
    if x.shape[-1] <= FEW_CHANNELS:
        return patches(x, k, pad) @ weight
    kernel = weight.reshape(k, k, x.shape[-1], weight.shape[-1])
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _forward(x: Array, weight: Array, k: int, pad: int) -> tuple[Array, tuple[Array, Array]]:
    return conv(x, weight, k, pad), (x, weight)


def _backward(k: int, pad: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, weight = saved
    turned = weight.reshape(k * k, x.shape[-1], -1)[::-1].swapaxes(1, 2).reshape(-1, x.shape[-1])
    flat, (_, height, width, _) = g.reshape(-1, g.shape[-1]), g.shape
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows = jnp.concatenate([padded[:, :, j : j + width] for j in range(k)], -1)
    by_row = [rows[:, i : i + height].reshape(len(flat), -1).T @ flat for i in range(k)]
    return conv(g, turned, k, k - 1 - pad), jnp.concatenate(by_row)


conv.defvjp(_forward, _backward)


def normalise(
    x: Float[Array, "n h w c"], scale: Float[Array, " c"], shift: Float[Array, " c"], groups: int
) -> Float[Array, "n h w c"]:
    """Group normalisation over positions and the channels of a group; `groups` = c is instance normalisation."""
    n, h, w, c = x.shape

    def mean(values: Float[Array, "n p c"]) -> Float[Array, "n 1 c"]:
        found = values.mean(1)
        if groups < c:
            found = jnp.repeat(found.reshape(n, groups, c // groups).mean(-1), c // groups, 1)
        return found[:, None]

    flat = x.reshape(n, h * w, c)
    flat = flat - mean(flat)
    spread = mean(jnp.square(flat))
    return (flat * jax.lax.rsqrt(spread + 1e-5)).reshape(x.shape) * scale + shift


def pool(x: Float[Array, "n h w c"], kind: str) -> Float[Array, "n y x c"]:
    """Mean or maximum of every 2-by-2 block; an odd last row or column is dropped."""
    n, h, w, c = x.shape
    blocks = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return blocks.mean((2, 4)) if kind == "average" else blocks.max((2, 4))


def dense_params(key: Array, inputs: int, outputs: int, name: str) -> Params:
    """Weight [i o] and bias [o], uniform within 1/sqrt(i): what torch gives a new layer."""
    bound, (first, second) = inputs**-0.5, jax.random.split(key)
    return {
        f"{name}.weight": jax.random.uniform(first, (inputs, outputs), minval=-bound, maxval=bound),
        f"{name}.bias": jax.random.uniform(second, (outputs,), minval=-bound, maxval=bound),
    }


def dense(params: Params, name: str, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def conv_layer(params: Params, name: str, x: Float[Array, "n h w i"], k: int, pad: int) -> Float[Array, "n y x o"]:
    return conv(x, params[f"{name}.weight"], k, pad) + params[f"{name}.bias"]
