"""Trajectory matching: networks that train on the synthetic set are to move as experts move on the real data.

Experts are trained on all real examples first, and their parameters are kept after every epoch. In every step a
student starts where some expert was after t epochs, trains `steps` times on the synthetic set at a learned rate, and
its distance from where the expert was after t + span epochs is the loss, in units of the way the expert went.

Sources: Cazenavette et al. 2022, "Dataset distillation by matching training trajectories" (MTT); Shen, Yang and Lam
2023, arXiv 2310.10541 (AST: smooth, high-quality experts), its numbers as in the authors' code.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from whence.cache.errors import UsageError
from whence.cache.retrain.scan import Run, descend

from ..augment import augment
from ..axes import each
from ..layers import Params
from ..matching import cross_entropy
from ..networks import Network
from ..pool import Pool
from .method import SetMethod


@dataclass(frozen=True)
class MTT(SetMethod):
    """‖student - expert after t + span epochs‖² / ‖expert's way from t to t + span‖².

    Args:
        experts: networks trained on the real data.
        epochs: of their training.
        rate, momentum, batch: of their SGD.
        latest: the last epoch at which a student starts.
        span: epochs of an expert that the student's steps stand for.
        steps: of the student.
        student_rate: initial; its logarithm is learned at the settings' `lr_labels`.
        student_batch: synthetic examples per step of the student; all if there are fewer.
    """

    name, augmented = "mtt", True
    experts: int = 10
    epochs: int = 20
    rate: float = 0.01
    momentum: float = 0.0
    batch: int = 256
    latest: int = 10
    span: int = 2
    steps: int = 20
    student_rate: float = 0.01
    student_batch: int = 256

    def __post_init__(self) -> None:
        if min(self.experts, self.epochs, self.span, self.steps, self.batch, self.student_batch) < 1 or self.latest < 0:
            raise UsageError("A number of experts, epochs or steps below 1.", "Use 1 or more.")
        if self.latest + self.span > self.epochs:
            raise UsageError(
                f"A student that starts after {self.latest} epochs is compared with an expert after "
                f"{self.latest + self.span}; experts have {self.epochs}.",
                "Train experts for more epochs, or start earlier.",
            )
        if not (self.rate > 0 and self.student_rate > 0):
            raise UsageError("A learning rate of zero or less changes nothing.", "Use a rate above 0.")

    def begins(self) -> dict[str, Array]:
        return {"log_rate": jnp.log(jnp.asarray(self.student_rate, jnp.float32))}

    def prepare(self, pool: Pool, network: Network, seed: int) -> Params:
        """Parameters of every expert after 0, 1, ... `epochs` epochs: [experts, epochs + 1, ...] by name."""
        x, labels, count = jnp.asarray(pool.x), jnp.asarray(pool.labels), len(pool)
        size = min(self.batch, count)
        optimiser = optax.sgd(self.rate, self.momentum or None)

        def expert(key: Array) -> Params:
            fresh, orders = jax.random.split(key)
            params = network.init(fresh, pool.shape, pool.classes)

            def epoch(run: Run, number: Array) -> tuple[Run, Params]:
                order = jax.random.permutation(jax.random.fold_in(orders, number), count)
                rows = order[: count // size * size].reshape(-1, size)

                def gradient_of(params: Params, _: None, rows: Array) -> tuple[Params, None]:
                    return jax.grad(self.expert_loss, argnums=1)(network, params, x[rows], labels[rows], number), None

                return descend(optimiser, gradient_of, run, rows), run.parameters

            last, before = jax.lax.scan(epoch, Run(params, optimiser.init(params)), jnp.arange(self.epochs))
            return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), before, last.parameters)

        return jax.jit(lambda keys: each(expert)(keys))(jax.random.split(jax.random.key(seed), self.experts))

    def expert_loss(
        self, network: Network, params: Params, x: Float[Array, "n ..."], labels: Float[Array, "n c"], epoch: Array
    ) -> Float[Array, ""]:
        """What an expert minimises in this epoch."""
        return cross_entropy(network, params, x, labels, jnp.full(len(x), 1.0 / len(x)))

    def start_of(self, key: Array, expert: Params) -> Params:
        """Where the student starts."""
        return expert

    def balance(self, epoch: Array) -> Array:
        """Factor of the student's loss."""
        return jnp.ones(())

    def loss_of_set(
        self, network: Network, synthetic: dict[str, Array], labels: Array, prepared: Any, names: Any, key: Array
    ) -> Float[Array, ""]:
        which, when, noise, inside = jax.random.split(key, 4)
        expert = jax.random.randint(which, (), 0, self.experts)
        epoch = jax.random.randint(when, (), 0, self.latest + 1)
        begin = self.start_of(noise, jax.tree.map(lambda a: a[expert, epoch], prepared))
        target = jax.tree.map(lambda a: a[expert, epoch + self.span], prepared)
        x, rate, factor = synthetic["x"], jnp.exp(synthetic["log_rate"]), self.balance(epoch)
        size = min(self.student_batch, len(x))

        @jax.checkpoint
        def step(params: Params, number: Array) -> tuple[Params, None]:
            order, shake = jax.random.split(jax.random.fold_in(inside, number))
            rows = jax.random.permutation(order, len(x))[:size] if size < len(x) else jnp.arange(size)
            batch = augment(shake, x[rows], names, siamese=False) if names else x[rows]
            weight = jnp.full(size, factor / size)
            slope = jax.grad(cross_entropy, argnums=1)(network, params, batch, labels[rows], weight)
            return jax.tree.map(lambda p, g: p - rate * g, params, slope), None

        student = jax.lax.scan(step, begin, jnp.arange(self.steps))[0]
        return _apart(student, target) / _apart(begin, target)


@dataclass(frozen=True)
class AST(MTT):
    """MTT with smooth, high-quality experts: they train with momentum, their loss is held down in the first epochs
    (clipping loss) and a penalty keeps the slope of their outputs near 1; students start at perturbed weights, and
    their loss is balanced over the epochs at which they start. The paper's intermediate matching loss is left out.

    Args:
        clip: factors of the expert's loss in its first epochs; 1 after them.
        penalty: of (‖∂ Σ logits / ∂ x‖ - 1)², the norm taken over each example.
        perturb: size of the perturbation, relative to the weights.
    """

    name = "ast"
    momentum: float = 0.9
    clip: tuple[float, ...] = (0.5, 0.5, 0.55, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
    penalty: float = 0.1
    perturb: float = 0.5

    def expert_loss(
        self, network: Network, params: Params, x: Float[Array, "n ..."], labels: Float[Array, "n c"], epoch: Array
    ) -> Float[Array, ""]:
        loss = super().expert_loss(network, params, x, labels, epoch)
        scale = jnp.asarray((*self.clip, 1.0))[jnp.minimum(epoch, len(self.clip))]
        if not self.penalty:
            return scale * loss
        slopes = jax.grad(lambda x: network(params, x).sum())(x).reshape(len(x), -1)
        norms = jnp.sqrt(jnp.sum(jnp.square(slopes), 1) + 1e-12)
        return scale * loss + self.penalty * jnp.mean(jnp.square(norms - 1.0))

    def start_of(self, key: Array, expert: Params) -> Params:
        def perturbed(number: int, weight: Array) -> Array:
            normal, dropped = jax.random.split(jax.random.fold_in(key, number))
            noise = jax.random.normal(normal, weight.shape) * jax.random.bernoulli(dropped, 0.5, weight.shape)
            return weight * (1.0 + self.perturb * noise / (jnp.linalg.norm(noise) + 1e-12))

        return {name: perturbed(number, weight) for number, (name, weight) in enumerate(sorted(expert.items()))}

    def balance(self, epoch: Array) -> Array:
        """Above 1 for late starts, where a student's gradients are small, below 1 for early ones."""
        late = epoch - self.latest / 2
        factor = jnp.log(jnp.abs(late) + 8.0) / jnp.log(5.0)
        return jnp.where(late >= 0, factor, 1.0 / factor)


def _apart(a: Params, b: Params) -> Float[Array, ""]:
    return sum((jnp.sum(jnp.square(a[name] - b[name])) for name in a), jnp.zeros(()))
