"""Distribution matching: Σ over classes of the squared distance of mean features under random networks.

No gradient of a network is matched and none is trained, so there is nothing of second order.
Source: Zhao and Bilen 2023, "Dataset condensation with distribution matching".
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..layers import Params
from ..matching import Part
from ..networks import Network
from .method import CondensationMethod


class DM(CondensationMethod):
    """Every class is its own part; its loss is ‖Σ w f(real) - Σ w f(synthetic)‖²."""

    name, trains = "dm", False

    def loss(self, network: Network, params: Params, part: Part) -> Float[Array, ""]:
        def mean(x: Array, weight: Array) -> Array:
            return weight.reshape(-1) @ network.features(params, x.reshape(-1, *x.shape[2:]))

        real = jax.lax.stop_gradient(mean(part.real_x, part.real_weight))
        return jnp.sum(jnp.square(real - mean(part.x, part.weight)))
