"""Kernel velocity: how fast a network's tangent kernel drifts while it is trained on a synthetic set.

K_t[a, b] = Σ_θ ∂s(x_a)/∂θ ∂s(x_b)/∂θ with s the sum of the logits; velocity is ‖K_{t+1} - K_t‖_F / ‖K_t‖_F.
Lee et al. 2022 track it to analyse the training dynamics of the contrastive loss.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from whence.cache.display import axes_or_new

from .condensed import Condensed
from .layers import Params
from .networks import Network
from .pool import Pool
from .training import Training, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def tangent_kernel(network: Network, params: Params, x: Float[Array, "p ..."]) -> Float[Array, "p p"]:
    """The kernel of the summed logits at these points."""
    rows = jax.lax.map(lambda point: jax.grad(lambda p: network(p, point[None]).sum())(params), x)
    flat = jnp.concatenate([leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(rows)], 1)
    return flat @ flat.T


def kernel_velocity(
    given: "Condensed | Pool",
    points: Float[np.ndarray, "p ..."],
    network: Network,
    steps: int = 20,
    training: Training | None = None,
    seed: int = 0,
) -> Float[np.ndarray, " t"]:
    """Velocity at each of `steps` moments of training on the set, `training.epochs` passes apart (5 unless given).

    points: scaled examples at which the kernel is taken (100 or 200 tell enough).
    """

    training = training or Training(epochs=5, lr=0.01, momentum=0.0, weight_decay=0.0, drop=False)
    x, labels = jnp.asarray(given.x), jnp.asarray(given.labels)
    fresh, inside = jax.random.split(jax.random.key(seed))

    @jax.jit
    def run(points: Array) -> Array:
        params = network.init(fresh, x.shape[1:], labels.shape[1])

        def advance(carry: tuple[Params, Array], number: Array) -> tuple[tuple[Params, Array], Array]:
            params, kernel = carry
            params = fit(network, params, jax.random.fold_in(inside, number), x, labels, training)
            after = tangent_kernel(network, params, points)
            return (params, after), jnp.linalg.norm(after - kernel) / jnp.linalg.norm(kernel)

        return jax.lax.scan(advance, (params, tangent_kernel(network, params, points)), jnp.arange(steps))[1]

    return np.asarray(run(jnp.asarray(points)))


def plot_velocity(curves: dict[str, Float[np.ndarray, "e t"]], ax: "Axes | None" = None) -> "Axes":
    """Logarithm of the velocity against training, one line a name with its spread over seeds. Returns the axes."""
    axes = axes_or_new(ax)
    for name, curve in curves.items():
        logs = np.log10(np.atleast_2d(curve) + 1e-12)
        mean, spread = logs.mean(0), logs.std(0)
        moments = np.arange(1, len(mean) + 1)
        axes.plot(moments, mean, label=name)
        axes.fill_between(moments, mean - spread, mean + spread, alpha=0.2)
    axes.set(xlabel="moment of training", ylabel="log10 kernel velocity")
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False)
    return axes
