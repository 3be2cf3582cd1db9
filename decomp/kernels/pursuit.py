"""The loop that every greedy pursuit shares: choose the atom that correlates best, let the rule use it, repeat.

A pursuit differs from another in what it does with the chosen atom (matching: take its correlation;
orthogonal: project on all chosen so far; gradient: one line search along the support), so that is all a rule
says. The loop keeps the squared norm of the residual exactly, as each rule knows what its step removes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from .code import Code, decode
from .forms import Basis, Form, form_of
from .orthogonal_basis import least_squares

CHUNK = 64  # signals whose correlations stay in a core's cache; see benchmarks/decomposition.py
DEVICE_CHUNK = 8192  # signals that an accelerator encodes at once
TINY = 1e-12


class Step(NamedTuple):
    """What a rule is given and returns.

    signal: the form's state; values: [b k]; removed: [b] squared norm taken off the residual by this step;
    memory: whatever the rule carries (factors of the support).
    """

    signal: Any
    values: Float[Array, "b k"]
    removed: Float[Array, " b"]
    memory: Any


class Rule(NamedTuple):
    """score(c) -> [b a] what is maximised; init(b, k) -> memory; update(...) -> Step.

    update(form, signal, indices, values, memory, step, live): indices [b k] already hold the chosen atom in column
    `step`; rows where `live` is False must not change.
    """

    score: Callable[[Array], Array]
    init: Callable[[int, int], Any]
    update: Callable[..., Step]


class Pursuit(NamedTuple):
    """A rule with its static choices.

    k: most steps; target: stop a signal when this share of its squared norm is left (0: take all k);
    refit: solve least squares on the support at the end.
    """

    rule: Rule
    k: int
    target: float = 0.0
    refit: bool = False


class Progress(NamedTuple):
    """The loop's state."""

    step: Int[Array, ""]
    signal: Any
    indices: Int[Array, "b k"]
    values: Float[Array, "b k"]
    residual: Float[Array, " b"]
    live: Array
    memory: Any


def pursue(pursuit: Pursuit, form: Form, x: Float[Array, "b d"]) -> Code:
    """Runs the loop for one chunk of signals until every signal is done or k steps are taken."""
    b, k = x.shape[0], pursuit.k
    energy = jnp.sum(x * x, axis=1)
    enough = jnp.maximum(pursuit.target, TINY) * energy

    def advance(now: Progress) -> Progress:
        j, score = form.best(now.signal, pursuit.rule.score)
        live = now.live & (score > 0)
        indices = now.indices.at[:, now.step].set(jnp.where(live, j, 0))
        after = pursuit.rule.update(form, now.signal, indices, now.values, now.memory, now.step, live)
        residual = jnp.maximum(now.residual - after.removed, 0.0)
        live = live & (residual > enough)
        return Progress(now.step + 1, after.signal, indices, after.values, residual, live, after.memory)

    end = jax.lax.while_loop(
        lambda now: (now.step < k) & jnp.any(now.live),
        advance,
        Progress(
            step=jnp.int32(0),
            signal=form.start(x),
            indices=jnp.zeros((b, k), jnp.int32),
            values=jnp.zeros((b, k), jnp.float32),
            residual=energy,
            live=energy > 0,
            memory=pursuit.rule.init(b, k),
        ),
    )
    return Code(end.indices, end.values, end.residual, energy)


def chunk_rows() -> int:
    """Signals that are encoded at once on the default device."""
    return CHUNK if jax.default_backend() == "cpu" else DEVICE_CHUNK


@partial(jax.jit, static_argnames=("pursuit", "chunk"))
def encode(pursuit: Pursuit, x: Float[Array, "b d"], basis: Basis, chunk: int = CHUNK) -> Code:
    """The code of every signal, `chunk` at a time.

    Small chunks keep the correlations [chunk a] in cache, where the Gram form's step reads and writes them; an
    accelerator wants the whole batch in one.
    """
    b = x.shape[0]
    chunk = max(1, min(chunk, b))
    count = -(-b // chunk)
    padded = jnp.zeros((count * chunk, x.shape[1]), jnp.float32).at[:b].set(x.astype(jnp.float32))
    form = form_of(basis)

    rounded = basis.gram is not None and basis.gram.dtype != jnp.float32

    def one(signals: Float[Array, "c d"]) -> Code:
        code = pursue(pursuit, form, signals)
        if pursuit.refit:
            return least_squares(code, signals, basis)
        if rounded:  # what was carried along is off by the Gram matrix's rounding: measure it
            return code._replace(residual=jnp.sum((signals - decode(code, basis.atoms)) ** 2, axis=1))
        return code

    codes = jax.lax.map(one, padded.reshape(count, chunk, -1))
    return Code(*(leaf.reshape(count * chunk, *leaf.shape[2:])[:b] for leaf in codes))
