"""Training a network from scratch or further: used inside the outer loop and by every evaluation."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from whence.cache.errors import UsageError
from whence.cache.retrain.scan import Run, descend

from .augment import augment, check_operations
from .layers import Params
from .matching import cross_entropy
from .networks import Network


@dataclass(frozen=True)
class Training:
    """SGD for `epochs` passes in batches of `batch`; the rate falls to a tenth at half when `drop`.

    The defaults are the published evaluation (Zhao et al. 2021; the same in Lee et al. 2022).
    augment: operations drawn for every batch, with own parameters for each image.
    """

    epochs: int = 300
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    drop: bool = True
    augment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_operations(self.augment)
        if self.batch < 1 or self.epochs < 0 or not self.lr > 0:
            raise UsageError(
                f"Training for {self.epochs} epochs in batches of {self.batch} with rate {self.lr} cannot be.",
                "Use a rate above 0 and batches of 1 or more.",
            )

    def steps(self, count: int) -> int:
        """Steps for `count` examples."""
        return self.epochs * -(-count // self.batch)

    def optimiser(self, count: int) -> optax.GradientTransformation:
        steps = self.steps(count)
        rate: Any = self.lr
        if self.drop:
            rate = optax.piecewise_constant_schedule(self.lr, {steps // 2 + 1: 0.1})
        chain = [optax.add_decayed_weights(self.weight_decay)] if self.weight_decay else []
        return optax.chain(*chain, optax.sgd(rate, self.momentum or None))


SHORT = Training(epochs=10, lr=0.01, momentum=0.0, weight_decay=0.0, drop=False)  # for analyses of a set


def fit(
    network: Network,
    params: Params,
    key: Array,
    x: Float[Array, "n ..."],
    labels: Float[Array, "n c"],
    training: Training,
) -> Params:
    """The parameters after training on (x, labels); labels are distributions over classes.

    The whole set is one batch where it fits; else every epoch is a new order cut into batches, the last one with
    what is left (its mean is over what it has).
    """
    count = len(x)
    optimiser = training.optimiser(count)
    batches = -(-count // training.batch)
    size = min(training.batch, count)
    orders, draws = jax.random.split(key)

    def gradient_of(params: Params, _: None, number: Array) -> tuple[Params, None]:
        batch, targets, weight = x, labels, jnp.full(count, 1.0 / count)
        if batches > 1:
            order = jax.random.permutation(jax.random.fold_in(orders, number // batches), count)
            order = jnp.concatenate([order, jnp.full(batches * size - count, -1)])
            rows = jax.lax.dynamic_slice(order, [(number % batches) * size], [size])
            weight = (rows >= 0) / jnp.sum(rows >= 0)
            batch, targets = x[rows], labels[rows]
        if training.augment:
            batch = augment(jax.random.fold_in(draws, number), batch, training.augment, siamese=False)
        return jax.grad(cross_entropy, argnums=1)(network, params, batch, targets, weight), None

    start = Run(params, optimiser.init(params))
    return descend(optimiser, gradient_of, start, jnp.arange(training.steps(count))).parameters


def trained(
    network: Network, key: Array, x: Float[Array, "n ..."], labels: Float[Array, "n c"], training: Training
) -> Params:
    """The parameters of a new network after training on (x, labels)."""
    fresh, inside = jax.random.split(key)
    return fit(network, network.init(fresh, x.shape[1:], labels.shape[1]), inside, x, labels, training)


def accuracy(network: Network, params: Params, x: Float[Array, "n ..."], y: Any, block: int = 1000) -> Float[Array, ""]:
    """Share of examples whose largest logit is their class; `block` examples at a time."""
    count = len(x)
    block = min(block, count)
    pad = -count % block
    x = jnp.concatenate([x, jnp.zeros((pad, *x.shape[1:]), x.dtype)]).reshape(-1, block, *x.shape[1:])
    best = jax.lax.map(lambda part: jnp.argmax(network(params, part), -1), x).reshape(-1)[:count]
    return jnp.mean(best == y)
