"""How training on a small set goes: time to accuracy, and how fast the tangent kernel drifts."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from whence.cache.errors import UsageError
from whence.cache.retrain.scan import Run, descend

from .axes import each
from .condensed import Condensed
from .layers import Params
from .matching import cross_entropy
from .networks import Network, check_network
from .pool import Pool, draw
from .training import SHORT, Training, accuracy, fit

if TYPE_CHECKING:
    import xarray


class Curve(NamedTuple):
    """Test accuracy in percent [e moment] after `seen` [moment] examples (repeats counted)."""

    seen: np.ndarray
    accuracy: Float[np.ndarray, "e t"]

    def reached(self, percent: float) -> int | None:
        """Examples seen when the mean accuracy is first at `percent`; None where it never is."""
        there = np.flatnonzero(self.accuracy.mean(0) >= percent)
        return int(self.seen[there[0]]) if len(there) else None


def accuracy_curve(
    given: "Condensed | Pool",
    test: Pool,
    network: Network,
    training: Training = Training(),
    *,
    per_class: int | None = None,
    moments: int = 20,
    networks: int = 5,
    seed: int = 0,
) -> Curve:
    """Test accuracy against examples seen, one batch a step for `training.epochs` steps.

    Args:
        given: trained on as a whole at every step; with `per_class`, a pool.
        test: scaled as the training data were.
        network, training: what is trained, and how.
        per_class: if it is given, every step has a new random subset of so many examples of each class.
        moments: at which accuracy is measured, equally far apart.
        networks: trained side by side.
        seed: of their initial weights and of the subsets.

    Source: Okanovic et al. 2023, "Repeated random sampling for minimizing the time-to-accuracy of learning" (RS2).
    """
    check_network(network, test.shape, test.classes)
    count, batch_of = _batches(given, per_class)
    apart = max(1, training.epochs // moments)
    optimiser = training.optimiser(min(count, training.batch))
    test_x, test_y = jnp.asarray(test.x), jnp.asarray(test.y)

    def one(key: Array) -> Array:
        fresh, inside = jax.random.split(key)
        params = network.init(fresh, test.shape, test.classes)

        def gradient_of(params: Params, _: None, number: Array) -> tuple[Params, None]:
            batch = batch_of(jax.random.fold_in(inside, number))
            return jax.grad(cross_entropy, argnums=1)(network, params, *batch), None

        def stretch(run: Run, first: Array) -> tuple[Run, Array]:
            run = descend(optimiser, gradient_of, run, first + jnp.arange(apart))
            return run, accuracy(network, run.parameters, test_x, test_y)

        return jax.lax.scan(stretch, Run(params, optimiser.init(params)), apart * jnp.arange(moments))[1]

    values = jax.jit(each(one))(jax.random.split(jax.random.key(seed), networks))
    return Curve(count * apart * np.arange(1, moments + 1), 100.0 * np.asarray(values))


def _batches(given: "Condensed | Pool", per_class: int | None) -> tuple[int, Callable[[Array], tuple[Array, ...]]]:
    """Examples of a step, and from a key to a step's examples, labels and weights."""
    x, labels = jnp.asarray(given.x), jnp.asarray(given.labels)
    if per_class is None:
        return len(given), lambda key: (x, labels, jnp.full(len(given), 1.0 / len(given)))
    if not isinstance(given, Pool):
        raise UsageError("A condensed set is not sampled from.", "Give a pool, or leave per_class out.")
    given.check(1)
    reals = given.reals()

    def sampled(key: Array) -> tuple[Array, ...]:
        rows, weights = draw(key, reals.rows, reals.counts, per_class)
        return x[rows.reshape(-1)], labels[rows.reshape(-1)], weights.reshape(-1) / given.classes

    return per_class * given.classes, sampled


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
    *,
    training: Training | None = None,
    seed: int = 0,
) -> "xarray.DataArray":
    """How fast a network's tangent kernel drifts while it is trained on a set: velocity [moment], without unit.

    K_t[a, b] = Σ_θ ∂s(x_a)/∂θ ∂s(x_b)/∂θ with s the sum of the logits; velocity is ‖K_{t+1} - K_t‖_F / ‖K_t‖_F.
    `np.log10(velocity).plot()` draws it. Lee et al. 2022 analyse the training dynamics of DCC with it.

    Args:
        given: the set.
        points: scaled examples at which the kernel is taken; 100 or 200 are enough.
        network: what is trained.
        steps: moments.
        training: between two moments; 5 epochs at rate 0.01 by default.
        seed: of the network.
    """
    import xarray as xr

    training = training or replace(SHORT, epochs=5)
    check_network(network, given.x.shape[1:], given.labels.shape[1])
    x, labels = jnp.asarray(given.x), jnp.asarray(given.labels)
    fresh, inside = jax.random.split(jax.random.key(seed))

    @jax.jit
    def run(points: Array) -> Array:
        params = network.init(fresh, x.shape[1:], labels.shape[1])
        kernel_of = partial(tangent_kernel, network, x=points)

        def advance(carry: tuple[Params, Array], number: Array) -> tuple[tuple[Params, Array], Array]:
            params, kernel = carry
            params = fit(network, params, jax.random.fold_in(inside, number), x, labels, training)
            after = kernel_of(params)
            return (params, after), jnp.linalg.norm(after - kernel) / jnp.linalg.norm(kernel)

        return jax.lax.scan(advance, (params, kernel_of(params)), jnp.arange(steps))[1]

    moments = np.arange(1, steps + 1)
    return xr.DataArray(np.asarray(run(jnp.asarray(points))), {"moment": moments}, ("moment",), "kernel velocity")
