"""What a condensation method is: the loss of a part of the classes and which classes make a part, or the loss of the
whole set."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..augment import augment
from ..axes import each
from ..layers import Params
from ..matching import Part
from ..networks import Network
from ..pool import Pool, Reals, draw


class Step(NamedTuple):
    """What one matching step looks at.

    params: weights of the network. key: of everything random. names: of the operations that augment. size: real
    examples of each class.
    """

    network: Network
    params: Params
    reals: Reals
    key: Array
    names: tuple[str, ...]
    size: int


def class_by_class(classes: int) -> Int[np.ndarray, "c 1"]:
    """Every class is a part of its own."""
    return np.arange(classes)[:, None]


def all_classes(classes: int) -> Int[np.ndarray, "1 c"]:
    """All classes are one part."""
    return np.arange(classes)[None]


def labels_of(synthetic: dict[str, Array], classes: int) -> Float[Array, "c i c"]:
    """Distributions over classes: one-hot, or what was learned."""
    if "labels" in synthetic:
        return jax.nn.softmax(synthetic["labels"])
    return jnp.repeat(jnp.eye(classes)[:, None], synthetic["x"].shape[1], 1)


@dataclass(frozen=True)
class CondensationRule(ABC):
    """What the synthetic set is moved by. `condense` runs it; the loop differs in the loss and its gradient only.

    name: in settings. augmented: steps are augmented. trains: the network is trained on the synthetic set between steps
    (else every step has a fresh network).
    """

    name: ClassVar[str]
    augmented: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    def begins(self) -> dict[str, Array]:
        """What is learned beside examples and labels, by name."""
        return {}

    def prepare(self, pool: Pool, network: Network, seed: int) -> Params | None:
        """What every step is given beside the examples: arrays by name, or None."""
        return None

    def parts(self, pool: Pool, groups: int = 1) -> Int[np.ndarray, "g m"]:
        """The classes of every part once warmed up (class by class before that), -1 if a part has fewer."""
        return class_by_class(pool.classes)

    @abstractmethod
    def loss_and_gradient(
        self, parts: Int[Array, "g m"], synthetic: dict[str, Array], step: Step
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The loss of a step, and its gradient with respect to the synthetic set."""


@dataclass(frozen=True)
class CondensationMethod(CondensationRule):
    """A method whose loss is a sum over parts of the classes.

    A new method is one file here with a subclass, and one line in the registry `METHODS`. It names itself, gives the
    loss of a part, and says which classes make one unless each does.
    """

    @abstractmethod
    def loss(self, network: Network, params: Params, part: Part) -> Float[Array, ""]:
        """What is compared on the real and the synthetic examples of a part of the classes."""

    def loss_and_gradient(
        self, parts: Int[Array, "g m"], synthetic: dict[str, Array], step: Step
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        classes = synthetic["x"].shape[0]
        drawn, shake = jax.random.split(step.key)
        rows, weights = draw(drawn, step.reals.rows, step.reals.counts, step.size)

        def of_part(members: Int[Array, " m"]) -> tuple[Array, dict[str, Array]]:
            live, here = members >= 0, jnp.maximum(members, 0)
            share = (live / live.sum())[:, None]
            real_x = step.reals.x[rows[here]]

            def loss(mine: dict[str, Array]) -> Array:
                x, real = mine["x"], real_x
                if step.names:  # one key per class, for its real and its synthetic examples
                    keys = jax.vmap(lambda c: jax.random.fold_in(shake, c))(here)
                    x, real = (each(lambda k, a: augment(k, a, step.names))(keys, images) for images in (x, real))
                hard = jnp.repeat(jax.nn.one_hot(here, classes)[:, None], x.shape[1], 1)
                labels = jax.nn.softmax(mine["labels"]) if "labels" in mine else hard
                weight = jnp.broadcast_to(share / x.shape[1], x.shape[:2])
                return self.loss(step.network, step.params, Part(x, labels, weight, real, here, share * weights[here]))

            return jax.value_and_grad(loss)({name: a[here] for name, a in synthetic.items()})

        values, gradients = each(of_part)(parts)
        members = jnp.maximum(parts, 0).reshape(-1)  # padding adds zeros
        return values.sum(), {
            name: jnp.zeros_like(synthetic[name]).at[members].add(g.reshape(-1, *g.shape[2:]))
            for name, g in gradients.items()
        }


@dataclass(frozen=True)
class SetMethod(CondensationRule):
    """A method whose loss is of the whole synthetic set at once; its network is not trained between steps."""

    trains: ClassVar[bool] = False

    @abstractmethod
    def loss_of_set(
        self, network: Network, synthetic: dict[str, Array], labels: Array, prepared: Any, names: Any, key: Array
    ) -> Float[Array, ""]:
        """The loss.

        Args:
            synthetic: "x" [n ...], and what `begins` gave.
            labels: [n c], distributions.
            prepared: what `prepare` gave.
            names: of the operations that augment.
            key: of everything random.
        """

    def loss_and_gradient(
        self, parts: Int[Array, "g m"], synthetic: dict[str, Array], step: Step
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        classes, shake = synthetic["x"].shape[0], jax.random.split(step.key)[1]

        def loss(synthetic: dict[str, Array]) -> Array:
            labels = labels_of(synthetic, classes).reshape(-1, classes)
            flat = {**synthetic, "x": synthetic["x"].reshape(-1, *synthetic["x"].shape[2:])}
            return self.loss_of_set(step.network, flat, labels, step.reals.prepared, step.names, shake)

        return jax.value_and_grad(loss)(synthetic)
