"""Networks trained on all real examples: frozen feature extractors to match linear probes on, and teachers whose
predictions label a few examples."""

import hashlib
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from whence.cache.errors import UsageError

from .condensed import Condensed
from .layers import Params, dense_params
from .networks import Headed, Network, check_network
from .pool import Pool
from .training import Training, trained

BLOCK = 500  # examples whose logits are computed at once


def train_on(given: "Pool | Condensed", network: Network, training: Training = Training(), seed: int = 0) -> Params:
    """The parameters of a new network trained on a set alone."""
    check_network(network, given.x.shape[1:], given.labels.shape[1])
    x, labels = jnp.asarray(given.x), jnp.asarray(given.labels)
    return jax.jit(lambda key: trained(network, key, x, labels, training))(jax.random.key(seed))


@dataclass(frozen=True)
class Pretrained(Headed):
    """A network whose features are frozen; its only parameters are those of a linear classifier on them.

    body: the network. fingerprint: of its weights.
    """

    body: Network
    fingerprint: str
    weights: Params = field(compare=False, repr=False)

    def init(self, key: Array, shape: tuple[int, ...], classes: int) -> Params:
        width = jax.eval_shape(lambda x: self.features({}, x), jnp.zeros((1, *shape))).shape[-1]
        return dense_params(key, width, classes, "head")

    def features(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n f"]:
        return self.body.features(self.weights, x)


def pretrained(network: Network, pool: Pool, training: Training = Training(epochs=20), seed: int = 0) -> Pretrained:
    """The network trained on these examples and frozen. `freeze(network, weights)` takes weights from elsewhere."""
    return freeze(network, train_on(pool, network, training, seed))


def freeze(network: Network, weights: Params) -> Pretrained:
    """This network with these weights, frozen."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + np.asarray(weights[name], "<f4").tobytes())
    return Pretrained(network, digest.hexdigest()[:16], weights)


def logits_of(network: Network, params: Params, x: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n c"]:
    run = jax.jit(lambda part: network(params, part))
    return np.concatenate([np.asarray(run(jnp.asarray(x[at : at + BLOCK]))) for at in range(0, len(x), BLOCK)])


def with_teacher(
    given: "Pool | Condensed", network: Network, teacher: Params, *, share: float = 1.0, temperature: float = 1.0
) -> Condensed:
    """The same examples with a teacher's predictions in their labels: knowledge distillation on pruned data.

    Training on labels (1 - share) y + share p, p the teacher's softmax, has the gradient of (1 - share) times the
    cross-entropy and share times the divergence from the teacher.

    Args:
        given: chosen examples of every class, equally many.
        network, teacher: the network and its parameters (`train_on` all examples).
        share: of the teacher in the labels.
        temperature: that its logits are divided by.

    Raises UsageError for a share outside 0 to 1 or a temperature that is not above 0.

    Source: Ben-Baruch et al. 2024, "Distilling the knowledge in data pruning", arXiv 2403.07854.
    """
    if not 0 <= share <= 1 or not temperature > 0:
        raise UsageError(
            f"A share of {share} at temperature {temperature}.", "Use a share of 0 to 1, a temperature > 0."
        )
    predicted = np.asarray(jax.nn.softmax(logits_of(network, teacher, given.x) / temperature))
    labels = (1 - share) * np.asarray(given.labels) + share * predicted
    about = {"method": "chosen, labelled by a teacher", "share": share, "temperature": temperature}
    return Condensed(np.asarray(given.x), labels.astype(np.float32), given.scaling, np.zeros(0), _ids(given), about)


def _ids(given: "Pool | Condensed") -> np.ndarray:
    return given.ids if isinstance(given, Pool) else given.init_ids
