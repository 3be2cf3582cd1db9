"""Time to accuracy: a fixed small set against a new random subset of the same size every epoch.

Source: Okanovic et al. 2023, "Repeated random sampling for minimizing the time-to-accuracy of learning" (RS2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from whence.cache.retrain.scan import Run, descend

from .axes import each
from .condensed import Condensed
from .layers import Params
from .matching import cross_entropy
from .networks import Network
from .pool import Pool, Reals, draw
from .training import Training, accuracy


class Curve(NamedTuple):
    """Test accuracy in percent [e moment] after `seen` [moment] examples (repeats counted)."""

    seen: np.ndarray
    accuracy: Float[np.ndarray, "e t"]

    def reached(self, percent: float) -> int | None:
        """Examples seen when the mean accuracy is first at `percent`; None where it never is."""
        there = np.flatnonzero(self.accuracy.mean(0) >= percent)
        return int(self.seen[there[0]]) if len(there) else None


def repeated_sampling(
    pool: Pool,
    test: Pool,
    network: Network,
    per_class: int,
    training: Training = Training(),
    moments: int = 20,
    networks: int = 5,
    seed: int = 0,
) -> Curve:
    """Train on a new random `per_class` examples per class every step."""
    reals = pool.reals()
    count = per_class * pool.classes

    def subset(key: Array, reals: Reals) -> tuple[Array, Array, Array]:
        rows, weights = draw(key, reals.rows, reals.counts, per_class)
        labels = jnp.repeat(jnp.eye(pool.classes), rows.shape[1], 0)
        return reals.x[rows.reshape(-1)], labels, weights.reshape(-1) / pool.classes

    return _curve(subset, reals, count, test, network, training, moments, networks, seed)


def fixed_set(
    given: "Condensed | Pool",
    test: Pool,
    network: Network,
    training: Training = Training(),
    moments: int = 20,
    networks: int = 5,
    seed: int = 0,
) -> Curve:
    """Train on the same set every step."""
    x, labels = jnp.asarray(given.x), jnp.asarray(given.labels)

    def whole(key: Array, data: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        return *data, jnp.full(len(x), 1.0 / len(x))

    return _curve(whole, (x, labels), len(x), test, network, training, moments, networks, seed)


def _curve(batch_of, data, count, test, network, training, moments, networks, seed) -> Curve:  # type: ignore[no-untyped-def]
    """The shared loop: one batch a step, the test accuracy at `moments` equal distances."""
    apart = max(1, training.epochs // moments)
    optimiser = training.optimiser(min(count, training.batch))

    def one(key: Array, data, test_x: Array, test_y: Array) -> Array:  # type: ignore[no-untyped-def]
        fresh, inside = jax.random.split(key)
        params = network.init(fresh, test.shape, test.classes)

        def gradient_of(params: Params, _: None, number: Array) -> tuple[Params, None]:
            batch = batch_of(jax.random.fold_in(inside, number), data)
            return jax.grad(cross_entropy, argnums=1)(network, params, *batch), None

        def stretch(run: Run, first: Array) -> tuple[Run, Array]:
            run = descend(optimiser, gradient_of, run, first + jnp.arange(apart))
            return run, accuracy(network, run.parameters, test_x, test_y)

        return jax.lax.scan(stretch, Run(params, optimiser.init(params)), apart * jnp.arange(moments))[1]

    keys = jax.random.split(jax.random.key(seed), networks)
    run = jax.jit(lambda keys, *rest: each(lambda key: one(key, *rest))(keys))
    values = run(keys, data, jnp.asarray(test.x), jnp.asarray(test.y))
    return Curve(count * apart * np.arange(1, moments + 1), 100.0 * np.asarray(values))
