"""Which real examples shaped a synthetic one: the matching loss, taken apart exactly.

The distance of two gradients is, up to a constant, minus a sum of cosines over outputs, and each cosine's numerator
is bilinear in the real and the synthetic examples' gradients. So

    Σ_outputs cos(g_real, g_syn) = Σ_r Σ_s  w_r w_s Σ_outputs <g_r, g_s> / (‖g_real‖ ‖g_syn‖)

and the contribution of real example r to synthetic example s is its term: positive if it pulls the synthetic
gradient its way. Contributions are averaged over networks that are trained on the synthetic set for a while.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from whence.cache.errors import UsageError

from .condensed import Condensed
from .layers import Params
from .matching import cross_entropy
from .networks import Network
from .pool import Pool
from .training import Training, fit

if TYPE_CHECKING:
    import xarray


def contributions(
    condensed: Condensed,
    pool: Pool,
    network: Network,
    *,
    contrast: bool = True,
    networks: int = 8,
    training: Training | None = None,
    seed: int = 0,
    block: int = 256,
) -> "xarray.DataArray":
    """Contribution of every real example [n] to the alignment of every synthetic one [k], in units of the sum of
    cosines over outputs; all of them add up to that sum.

    contrast: as DCC compares (all classes in one gradient), else as DC (within the class; other pairs are zero).
    training: what the networks have seen of the synthetic set before the contributions are taken (10 epochs at 0.01).
    """
    import xarray as xr

    if networks < 1:
        raise UsageError("No network, no contribution.", "Use one or more networks.")
    training = training or Training(epochs=10, lr=0.01, momentum=0.0, weight_decay=0.0, drop=False)
    x, labels = jnp.asarray(condensed.x), jnp.asarray(condensed.labels)

    @jax.jit
    def trained(key: Array) -> Params:
        fresh, inside = jax.random.split(key)
        return fit(network, network.init(fresh, pool.shape, pool.classes), inside, x, labels, training)

    total = np.zeros((len(condensed), len(pool)))
    for key in jax.random.split(jax.random.key(seed), networks):
        total += _of_network(condensed, pool, network, trained(key), contrast, block)
    return xr.DataArray(
        total / networks,
        dims=("synthetic", "real"),
        coords={"synthetic": np.arange(len(condensed)), "real": pool.ids},
        name="contribution",
        attrs={"unit": "cosines of output gradients", "contrast": int(contrast), "networks": networks},
    )


def _of_network(
    condensed: Condensed, pool: Pool, network: Network, params: Params, contrast: bool, block: int
) -> Float[np.ndarray, "k n"]:
    one_hot = np.eye(pool.classes, dtype=np.float32)
    real_labels, synthetic_labels = one_hot[pool.y], condensed.labels
    synthetic = _gradients(network, params, condensed.x, synthetic_labels, block)
    real_weight, synthetic_weight = 1.0 / pool.counts[pool.y], np.full(len(condensed), pool.classes / len(condensed))
    out = np.zeros((len(condensed), len(pool)))
    parts = [np.arange(pool.classes)] if contrast else [np.array([c]) for c in range(pool.classes)]
    for part in parts:
        r, s = np.flatnonzero(np.isin(pool.y, part)), np.flatnonzero(np.isin(condensed.y, part))
        u, v = real_weight[r] / len(part), synthetic_weight[s] / len(part)
        real = _gradients(network, params, pool.x[r], real_labels[r], block)
        for name, g in synthetic.items():  # [k i o]; every output has its own norm
            mine = g[s]
            sum_real, sum_synthetic = np.einsum("r,rio->io", u, real[name]), np.einsum("s,sio->io", v, mine)
            norms = _norm(sum_real) * _norm(sum_synthetic) + 1e-6
            flat = (mine / norms).reshape(len(s), -1) @ real[name].reshape(len(r), -1).T
            out[np.ix_(s, r)] += v[:, None] * flat * u
    return out


def _norm(gradient: Float[np.ndarray, "i o"]) -> Float[np.ndarray, " o"]:
    return np.sqrt(np.square(gradient).sum(0) + 1e-12)


def _gradients(
    network: Network, params: Params, x: np.ndarray, labels: np.ndarray, block: int
) -> dict[str, Float[np.ndarray, "n i o"]]:
    """Gradient of every example's own loss, for the weights that matching compares."""
    run = _per_example(network)
    parts = [
        run(params, jnp.asarray(x[at : at + block]), jnp.asarray(labels[at : at + block]))
        for at in range(0, len(x), block)
    ]
    return {name: np.concatenate([np.asarray(p[name]) for p in parts]) for name in params if params[name].ndim > 1}


def _per_example(network: Network) -> Any:
    def one(params: Params, x: Array, labels: Array) -> Params:
        return jax.grad(cross_entropy, argnums=1)(network, params, x[None], labels[None], jnp.ones(1))

    return jax.jit(lambda params, x, labels: jax.lax.map(lambda row: one(params, *row), (x, labels)))
