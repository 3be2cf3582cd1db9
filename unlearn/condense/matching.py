"""How far apart two gradients are, and the matching loss of a part of the classes.

A part is some classes taken together: one class (DC), all of them (DCC), or a group. Its gradient is the mean
over its classes of each class's mean gradient, so a part is one weighted batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .axes import accelerated
from .layers import Params
from .networks import Network

MOST_AT_ONCE = 256  # real examples whose gradient is taken at once
PIXELS_AT_ONCE = 1 << 14  # of them, on a CPU: activations stay in its caches


def real_block(shape: tuple[int, ...]) -> int:
    """How many examples of this shape have their gradient taken at once; the sum is the same for every number."""
    pixels = shape[0] * shape[1] if len(shape) == 3 else 1
    return MOST_AT_ONCE if accelerated() else max(16, min(MOST_AT_ONCE, PIXELS_AT_ONCE // pixels))


class Part(NamedTuple):
    """m classes of the synthetic set, with soft labels, and a draw of real examples of each.

    Weights add up to one over a part; padding and missing examples weigh zero.
    """

    x: Float[Array, "m i ..."]
    labels: Float[Array, "m i c"]
    weight: Float[Array, "m i"]
    real_x: Float[Array, "m b ..."]
    real_y: Int[Array, " m"]
    real_weight: Float[Array, "m b"]


def cross_entropy(
    network: Network, params: Params, x: Float[Array, "n ..."], labels: Float[Array, "n c"], weight: Float[Array, " n"]
) -> Float[Array, ""]:
    """Σ w · cross-entropy of the labels (distributions), in nats."""
    return -jnp.sum(weight[:, None] * labels * jax.nn.log_softmax(network(params, x)))


def example_gradient(network: Network, params: Params, x: Float[Array, "..."], labels: Float[Array, " c"]) -> Params:
    """Gradient of one example's cross-entropy."""
    return jax.grad(cross_entropy, argnums=1)(network, params, x[None], labels[None], jnp.ones(1))


def distance(a: Params, b: Params) -> Float[Array, ""]:
    """Σ over weights, Σ over their outputs, of 1 - cosine of the gradients that belong to one output.

    One-dimensional parameters (biases, scales) count nothing. Zhao, Mopuri and Bilen 2021; the same in Lee et al. 2022.
    This differs from the published code in the norm, sqrt(Σ² + 1e-12): an output that is dead on both sides has
    gradient zero, where the plain norm has no derivative.
    """
    total = jnp.zeros(())
    for name in a:
        if a[name].ndim > 1:
            dot = jnp.sum(a[name] * b[name], 0)
            total += jnp.sum(1.0 - dot / (output_norm(a[name]) * output_norm(b[name]) + 1e-6))
    return total


def output_norm(weight: Float[Array, "i o"]) -> Float[Array, " o"]:
    return jnp.sqrt(jnp.sum(jnp.square(weight), 0) + 1e-12)


def weighted_gradient(
    network: Network,
    params: Params,
    x: Float[Array, "n ..."],
    labels: Float[Array, "n c"],
    weight: Float[Array, " n"],
    block: int | None = None,
) -> Params:
    """Gradient of the weighted cross-entropy; summed over blocks of `block` examples, which bounds the memory."""
    gradient = jax.grad(cross_entropy, argnums=1)
    count = len(x)
    if block is None or count <= block:
        return gradient(network, params, x, labels, weight)
    blocks = -(-count // block)
    block = -(-count // blocks)  # equal blocks, little padding

    def cut(a: Array) -> Array:
        a = jnp.concatenate([a, jnp.zeros((blocks * block - count, *a.shape[1:]), a.dtype)])
        return a.reshape(blocks, block, *a.shape[1:])

    def add(total: Params, part: tuple[Array, Array, Array]) -> tuple[Params, None]:
        return jax.tree.map(jnp.add, total, gradient(network, params, *part)), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, (cut(x), cut(labels), cut(weight)))[0]


def gradient_matching(network: Network, params: Params, part: Part) -> Float[Array, ""]:
    """Distance between the part's gradient on real and on synthetic examples, at these parameters."""
    count, per_class = part.real_weight.shape
    real_labels = jax.nn.one_hot(part.real_y, part.labels.shape[-1])
    real = weighted_gradient(
        network,
        params,
        part.real_x.reshape(count * per_class, *part.real_x.shape[2:]),
        jnp.repeat(real_labels, per_class, 0),
        part.real_weight.reshape(-1),
        real_block(part.x.shape[2:]),
    )
    synthetic = weighted_gradient(
        network,
        params,
        part.x.reshape(-1, *part.x.shape[2:]),
        part.labels.reshape(-1, part.labels.shape[-1]),
        part.weight.reshape(-1),
    )
    return distance(jax.lax.stop_gradient(real), synthetic)
