"""How hard examples are early in training: GraNd and EL2N, for networks of this package.

Source: Paul, Ganguli and Dziugaite 2021, "Deep learning on a data diet", Definitions 2.1 and 3.1. For torch models see
`attrib.GraNd` and `attrib.EL2N`.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from whence.cache.errors import UsageError

from .layers import Params
from .matching import example_gradient
from .networks import Network
from .pool import Pool
from .pretrained import logits_of, train_on
from .training import SHORT, Training

if TYPE_CHECKING:
    import xarray

RULES = ("grand", "el2n")


def difficulty(
    pool: Pool, network: Network, rule: str = "el2n", *, training: Training = SHORT, networks: int = 3, seed: int = 0
) -> "xarray.DataArray":
    """Score of every example [train], averaged over networks that were trained on the pool for a short time.

    Args:
        rule: el2n, the norm of the prediction's error p - y, or grand, the norm of the loss gradient.
        training: how the networks are trained before.
        networks: how many.
        seed: of the first.

    Raises UsageError for another rule, or no network.
    """
    import xarray as xr

    if rule not in RULES or networks < 1:
        raise UsageError(
            f"{rule!r} with {networks} networks.", f"Use one of {', '.join(RULES)}, and a network or more."
        )
    score = _errors if rule == "el2n" else _slopes
    found = [score(network, train_on(pool, network, training, seed + n), pool) for n in range(networks)]
    return xr.DataArray(np.mean(found, 0), {"train": pool.ids}, ("train",), rule)


def _errors(network: Network, params: Params, pool: Pool) -> Float[np.ndarray, " n"]:
    predicted = np.asarray(jax.nn.softmax(logits_of(network, params, pool.x)))
    return np.linalg.norm(predicted - pool.labels, axis=1)


def _slopes(network: Network, params: Params, pool: Pool) -> Float[np.ndarray, " n"]:
    def norm(row: tuple[Array, Array]) -> Array:
        slope = example_gradient(network, params, *row)
        return jnp.sqrt(sum(jnp.sum(jnp.square(a)) for a in slope.values()))

    return np.asarray(jax.jit(lambda *rows: jax.lax.map(norm, rows))(jnp.asarray(pool.x), jnp.asarray(pool.labels)))
