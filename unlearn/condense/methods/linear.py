"""Linear gradient matching: for probes on the features of a pretrained network.

Source: Cazenavette, Torralba and Sitzmann 2025, arXiv 2511.16674.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..layers import Params, dense
from ..matching import Part
from ..networks import Network
from ..pool import Pool
from .method import CondensationMethod, all_classes


class LGM(CondensationMethod):
    """One minus the cosine of the gradients, on real and on synthetic examples of all classes, of a random linear
    classifier on the network's features. Give it a frozen network: `pretrained.pretrained(network, pool)`. An
    operation is drawn per class and step as for dsa; the paper's image pyramid is left out."""

    name, trains, augmented = "lgm", False, True

    def parts(self, pool: Pool, groups: int = 1) -> Int[np.ndarray, "g m"]:
        return all_classes(pool.classes)

    def loss(self, network: Network, params: Params, part: Part) -> Float[Array, ""]:
        classes, size = part.labels.shape[-1], part.real_weight.shape[1]
        real_labels = jnp.repeat(jax.nn.one_hot(part.real_y, classes), size, 0)
        real = _slope(network, params, part.real_x, real_labels, part.real_weight)
        mine = _slope(network, params, part.x, part.labels.reshape(-1, classes), part.weight)
        real = jax.lax.stop_gradient(real)
        norms = jnp.sqrt(jnp.sum(jnp.square(real)) * jnp.sum(jnp.square(mine)) + 1e-12)
        return 1.0 - jnp.sum(real * mine) / norms


def _slope(
    network: Network, params: Params, x: Float[Array, "m i ..."], labels: Float[Array, "n c"], weight: Array
) -> Float[Array, "f c"]:
    """Gradient of the weighted cross-entropy by the classifier's weights."""
    features = network.features(params, x.reshape(-1, *x.shape[2:]))
    error = jax.nn.softmax(dense(params, "head", features)) - labels
    return features.T @ (weight.reshape(-1, 1) * error)
