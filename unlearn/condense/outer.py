"""The outer loop, shared by all methods: one compiled program from fresh network to changed synthetic set.

Every outer step samples a network, and for each inner step samples real examples, takes the gradient of the method's
loss with respect to the synthetic examples (part of the classes by part), moves them, and trains the network on
them. Differentiation of second order goes through the small synthetic set only. Random numbers are keyed by
(seed, outer, inner), so a run that was stopped resumes as if it had not been.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from .axes import each
from .layers import Params
from .methods.method import Step, class_by_class, labels_of
from .pool import Pool, Reals
from .settings import Settings
from .training import fit

# root mean square of the synthetic set, in units of the scaled data, above which it is taken to have diverged
LARGEST = 100.0


class State(NamedTuple):
    """The synthetic set of one seed while it is computed.

    synthetic: {"x": [c i ...]} and, where labels are learned, {"labels": [c i c]} (logits), and what the method learns
    beside. moments: of the optimiser.
    """

    synthetic: dict[str, Array]
    moments: Any


class Done(NamedTuple):
    """After some outer steps: the state, loss of each step, and the step that diverged (-1: none did)."""

    state: State
    losses: Float[Array, "..."]
    bad: Int[Array, "..."]


class Rates(NamedTuple):
    """Settings that a compiled program takes as arguments, so that a sweep compiles once."""

    lr: Array
    lr_labels: Array
    warm_outer: Array
    warm_inner: Array

    @staticmethod
    def of(settings: Settings) -> "Rates":
        return Rates(*(jnp.asarray(getattr(settings, name)) for name in Rates._fields))

    def apply(self, synthetic: dict[str, Array], direction: dict[str, Array]) -> dict[str, Array]:
        return {
            name: a - (self.lr if name == "x" else self.lr_labels) * direction[name] for name, a in synthetic.items()
        }


def momentum(settings: Settings) -> optax.GradientTransformation:
    return optax.trace(settings.momentum)


def start(settings: Settings, pool: Pool, seed: int) -> tuple[State, Int[np.ndarray, "c i"] | None]:
    """The state before the first step, and the ids of the examples it was copied from."""
    rng = np.random.default_rng([seed, 0])
    count, ids = settings.per_class, None
    rows = [rng.permutation(np.flatnonzero(pool.y == c)) for c in range(pool.classes)]
    if settings.init == "real":
        chosen = np.stack([r[:count] for r in rows])
        x, ids = pool.x[chosen], pool.ids[chosen]
    elif settings.init == "means":
        x = np.stack([[pool.x[part].mean(0) for part in np.array_split(r, count)] for r in rows])
    else:
        x = rng.normal(size=(pool.classes, count, *pool.shape))
    synthetic = {"x": jnp.asarray(x, jnp.float32), **settings.rule.begins()}
    if settings.soft_labels:
        hard = np.repeat(np.eye(pool.classes)[:, None], count, 1)
        synthetic["labels"] = jnp.asarray(np.log(0.9 * hard + 0.1 / pool.classes), jnp.float32)
    return State(synthetic, momentum(settings).init(synthetic)), ids


def step_of(settings: Settings, params: Params, reals: Reals, key: Array) -> Step:
    """What a matching step with these weights looks at; vectors are not augmented."""
    names = settings.augment if settings.rule.augmented and reals.x.ndim == 4 else ()
    return Step(settings.network, params, reals, key, names, settings.real_batch)


def outer_step(
    settings: Settings, rates: Rates, parts: Int[Array, "g m"], reals: Reals, state: State, key: Array, outer: Array
) -> tuple[State, Float[Array, ""]]:
    """One fresh network and its inner steps. Returns the mean loss of the inner steps beside the state."""
    classes, shape = state.synthetic["x"].shape[0], state.synthetic["x"].shape[2:]
    fresh, inside = jax.random.split(jax.random.fold_in(key, outer))
    alone = jnp.asarray(class_by_class(classes))
    warmed_at_once = not settings.warms_up or parts.shape == alone.shape
    network, steps, average, rule = settings.network, settings.inner_steps, momentum(settings), settings.rule

    def inner_step(carry: tuple[State, Params], inner: Array) -> tuple[tuple[State, Params], Array]:
        state, params = carry
        matching, training, again = jax.random.split(jax.random.fold_in(inside, inner), 3)
        if not rule.trains:
            params = network.init(again, shape, classes)
        step = step_of(settings, params, reals, matching)
        if warmed_at_once:
            loss, gradient = rule.loss_and_gradient(parts, state.synthetic, step)
        else:
            loss, gradient = jax.lax.cond(
                (outer >= rates.warm_outer) | (inner >= rates.warm_inner),
                lambda: rule.loss_and_gradient(parts, state.synthetic, step),
                lambda: rule.loss_and_gradient(alone, state.synthetic, step),
            )
        direction, moments = average.update(gradient, state.moments)
        synthetic = rates.apply(state.synthetic, direction)
        if rule.trains and settings.training.epochs:
            x, labels = synthetic["x"].reshape(-1, *shape), labels_of(synthetic, classes).reshape(-1, classes)
            params = jax.lax.cond(
                inner < steps - 1,
                lambda: fit(network, params, training, x, labels, settings.training),
                lambda: params,
            )
        return (State(synthetic, moments), params), loss

    params = network.init(fresh, shape, classes)
    (state, _), losses = jax.lax.scan(inner_step, (state, params), jnp.arange(steps))
    return state, losses.mean()


def program(settings: Settings, most: int) -> Any:
    """The compiled outer loop: (rates, parts, reals, states, keys [e], first outer step, how many <= most) -> Done.

    A seed whose step becomes non-finite keeps the state before it, and the number of that step is returned.
    """
    warm = 1 if settings.warms_up else 0
    return _program(replace(settings, outer=1, lr=1.0, lr_labels=1.0, warm_outer=warm, warm_inner=warm), most)


@lru_cache(maxsize=32)
def _program(settings: Settings, most: int) -> Any:

    def one_seed(
        rates: Rates, parts: Array, reals: Reals, state: State, key: Array, first: Array, count: Array
    ) -> Done:
        def body(number: Array, done: Done) -> Done:
            after, loss = outer_step(settings, rates, parts, reals, done.state, key, first + number)
            size = jnp.sqrt(jnp.mean(jnp.square(after.synthetic["x"])))
            sound = jnp.isfinite(loss) & (size < LARGEST) & (done.bad < 0)
            state = jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, done.state)
            bad = jnp.where((done.bad < 0) & ~sound, first + number, done.bad)
            return Done(state, done.losses.at[number].set(loss), bad)

        return jax.lax.fori_loop(0, count, body, Done(state, jnp.zeros(most), jnp.asarray(-1)))

    @jax.jit
    def run(rates: Rates, parts: Array, reals: Reals, states: State, keys: Array, first: Array, count: Array) -> Done:
        return each(lambda state, key: one_seed(rates, parts, reals, state, key, first, count))(states, keys)

    return run
