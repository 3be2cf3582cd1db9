"""Which real examples shaped a synthetic one: the matching loss, taken apart exactly.

The distance of two gradients is, up to a constant, minus a sum of cosines over outputs, and each cosine's numerator
is bilinear in the real and the synthetic examples' gradients. So

    Σ_outputs cos(g_real, g_syn) = Σ_r Σ_s  w_r w_s Σ_outputs <g_r, g_s> / (‖g_real‖ ‖g_syn‖)

and the contribution of real example r to synthetic example s is its term: positive if it pulls the synthetic
gradient its way. Contributions are averaged over networks that are trained on the synthetic set for a while.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from whence.cache.errors import UsageError

from .layers import Params
from .matching import example_gradient, output_norm
from .networks import Network
from .pool import Pool
from .training import SHORT, Training, trained

REAL_BLOCK = 256  # real examples whose gradients are taken by one call
Set = tuple[np.ndarray, np.ndarray, np.ndarray]  # x [n ...], labels [n c], classes [n]


def contributions(
    synthetic: Set,
    pool: Pool,
    network: Network,
    *,
    contrast: bool,
    networks: int,
    training: Training | None,
    seed: int,
) -> Float[np.ndarray, "k n"]:
    """See `Condensed.contributions`."""
    if networks < 1:
        raise UsageError("No network, no contribution.", "Use one or more networks.")
    x, labels = jnp.asarray(synthetic[0]), jnp.asarray(synthetic[1])

    fresh = jax.jit(lambda key: trained(network, key, x, labels, training or SHORT))

    @jax.jit
    def gradients(params: Params, x: Array, labels: Array) -> Params:
        """Of every example's own loss, for the weights that matching compares."""
        found = jax.lax.map(lambda row: example_gradient(network, params, *row), (x, labels))
        return {name: gradient for name, gradient in found.items() if gradient.ndim > 2}

    def of_network(params: Params) -> Float[np.ndarray, "k n"]:
        starts = range(0, len(pool), REAL_BLOCK)
        blocks = [gradients(params, pool.x[at : at + REAL_BLOCK], pool.labels[at : at + REAL_BLOCK]) for at in starts]
        real = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        mine = jax.tree.map(np.asarray, gradients(params, x, labels))
        out = np.zeros((len(x), len(pool)))
        for part in [np.arange(pool.classes)] if contrast else np.arange(pool.classes)[:, None]:
            r, s = np.flatnonzero(np.isin(pool.y, part)), np.flatnonzero(np.isin(synthetic[2], part))
            u, v = 1.0 / pool.counts[pool.y[r]] / len(part), np.full(len(s), 1.0 / len(s))
            for name in mine:  # [n i o]; every output has its own norm
                a, b = real[name][r], mine[name][s]
                sums = jnp.einsum("r,rio->io", u, a), jnp.einsum("s,sio->io", v, b)
                flat = (b / np.asarray(output_norm(sums[0]) * output_norm(sums[1]) + 1e-6)).reshape(
                    len(s), -1
                ) @ a.reshape(len(r), -1).T
                out[np.ix_(s, r)] += v[:, None] * flat * u
        return out

    return np.mean([of_network(fresh(key)) for key in jax.random.split(jax.random.key(seed), networks)], 0)
