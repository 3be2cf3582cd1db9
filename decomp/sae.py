"""Sparse autoencoders, the baseline: trained on the same activations, judged by the same code.

TopK (Gao et al. 2024, arXiv 2406.04093): the k largest of the pre-activations, decoder rows of unit norm, an
auxiliary loss that lets latents that have been silent explain the residual. BatchTopK (Bussmann et al. 2024,
arXiv 2412.06410): the b·k largest of a whole batch, so signals share their budget; at inference a fixed threshold.

Inputs are centred and scaled to mean squared norm d before training; the scale is folded back at the end.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float

from whence.cache.errors import DataError, UsageError
from whence.cache.retrain.scan import Run, descend

from .activations import Activations, Origin, finite
from .kernels import Code
from .kernels import decode as decode_steps
from .kernels.forms import BLOCK, first_largest

KINDS = ("topk", "batchtopk")
ROWS = 4096  # signals in one compiled call
SCAN = 8  # steps in one compiled call
SILENT = 32768  # tokens after which a latent that has not fired counts as dead in training
THRESHOLDS = 0.9  # weight of the past in the running mean of BatchTopK's thresholds, which move as it trains


class Weights(NamedTuple):
    """encoder [d a], bias [a], decoder [a d] with unit rows."""

    encoder: Float[Array, "d a"]
    bias: Float[Array, " a"]
    decoder: Float[Array, "a d"]


class Seen(NamedTuple):
    """What training carries beside the weights: [a] tokens since a latent fired; mean of BatchTopK's thresholds."""

    silent: Array
    cut: Array


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """Trained or imported. encode: z = keep((x − centre) W + bias) ≥ 0; decode: z D + centre.

    keep is the k largest for "topk"; all that reach `threshold`, one number or one a latent [a], for "batchtopk" and
    "jumprelu" (Rajamanoharan et al. 2024, arXiv 2407.14435; a plain ReLU is one with threshold 0).
    """

    encoder: Float[np.ndarray, "d a"]
    bias: Float[np.ndarray, " a"]
    atoms: Float[np.ndarray, "a d"]
    centre: Float[np.ndarray, " d"]
    k: int
    kind: str = "topk"
    threshold: float | Float[np.ndarray, " a"] = 0.0
    origin: Origin = field(default_factory=Origin)

    def __len__(self) -> int:
        return len(self.atoms)

    def __repr__(self) -> str:
        where = f" at {self.origin.site}" if self.origin.site else ""
        return f"SparseAutoencoder({len(self)} latents of width {self.width}{where}, {self.kind} k={self.k})"

    @property
    def W_dec(self) -> np.ndarray:
        return self.atoms

    @property
    def width(self) -> int:
        return int(self.atoms.shape[1])

    def encode(self, x: Any, k: int | None = None) -> Code:
        """The latents of every signal [b d], largest first, at most k of them (by default the k of "topk", and as many
        as reach their threshold for the others). Raises DataError for another width."""
        x = np.asarray(x, np.float32)
        if x.ndim != 2 or x.shape[1] != self.width:
            raise DataError(f"Signals of shape {x.shape}.", f"This autoencoder encodes [b, {self.width}].")
        weights = jnp.asarray(self.encoder), jnp.asarray(self.bias), jnp.asarray(self.threshold, jnp.float32)
        centred = x - self.centre
        chunks = [jnp.asarray(centred[i : i + ROWS]) for i in range(0, max(len(x), 1), ROWS)]
        if k is None and self.kind != "topk":
            most = max(int(_most_active(chunk, *weights)) for chunk in chunks)
            k = 1 << max(most - 1, 0).bit_length()  # a power of two, so that few numbers are compiled
        steps = min(self.k if k is None else k, len(self))
        parts = [_largest(chunk, *weights, steps) for chunk in chunks]
        indices, values = (np.concatenate(column) for column in zip(*parts))
        code = Code(indices, values, np.zeros(len(x)), np.zeros(len(x)))  # type: ignore[arg-type]
        residual = np.sum((centred - (self.decode(code) - self.centre)) ** 2, axis=1)
        return code._replace(residual=residual, energy=np.sum(centred**2, axis=1))  # type: ignore[arg-type]

    def decode(self, code: Code) -> Float[np.ndarray, "b d"]:
        steps = jax.tree.map(jnp.asarray, code)
        return np.asarray(decode_steps(steps, jnp.asarray(self.atoms))) + self.centre

    def reconstruct(self, x: Any, k: int | None = None) -> Float[np.ndarray, "b d"]:
        """decode(encode(x))."""
        return self.decode(self.encode(x, k))


@jax.jit
def _most_active(x: Array, encoder: Array, bias: Array, threshold: Array) -> Array:
    """The largest number of latents that one of the signals has."""
    pre = x @ encoder + bias
    return jnp.sum((pre > 0) & (pre >= threshold), axis=1).max(initial=0)


@partial(jax.jit, static_argnums=4)
def _largest(x: Array, encoder: Array, bias: Array, threshold: Array, k: int) -> tuple[Array, Array]:
    """One at a time: a processor's own top-k sorts every row, which takes far longer."""
    b, size = x.shape[0], encoder.shape[1]
    rows = jnp.arange(b)
    pre = x @ encoder + bias
    kept = jnp.where((pre > 0) & (pre >= threshold), pre, -jnp.inf)
    room = jnp.full((b, -(-size // BLOCK) * BLOCK), -jnp.inf).at[:, :size].set(kept)

    def take(step: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        left, indices, values = state
        j = first_largest(left)
        return left.at[rows, j].set(-jnp.inf), indices.at[:, step].set(j), values.at[:, step].set(left[rows, j])

    start = (room, jnp.zeros((b, k), jnp.int32), jnp.zeros((b, k)))
    _, indices, values = jax.lax.fori_loop(0, k, take, start)
    return jnp.where(values > 0, indices, 0), jnp.where(values > 0, values, 0.0)


class Mark(NamedTuple):
    """The autoencoder after some training: tokens seen and seconds spent (compilation not counted), and the mark that
    was passed, `unit` ("tokens" or "seconds") and `goal`."""

    tokens: int
    seconds: float
    autoencoder: SparseAutoencoder
    unit: str
    goal: float


@dataclass(frozen=True)
class SAE:
    """How to train. rate: Adam's (default 2e-4 / sqrt(size / 2^14), as in the paper); auxiliary: weight of the
    loss through dead latents; kind: "topk" or "batchtopk"."""

    size: int
    k: int = 16
    kind: str = "topk"
    batch: int = 1024
    rate: float | None = None
    auxiliary: float = 1 / 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"There is no autoencoder {self.kind!r}.", f"Choose one of {', '.join(KINDS)}.")
        if not 1 <= self.k <= self.size:
            raise UsageError(f"{self.k} of {self.size} latents.", f"Choose k from 1 to {self.size}.")

    def build(self, source: Any, tokens: int) -> SparseAutoencoder:
        """Trained for `tokens` activations (the stream is shuffled and repeated)."""
        return list(self.train(source, at_tokens=[tokens]))[-1].autoencoder

    def train(self, source: Any, at_tokens: Sequence[int] = (), at_seconds: Sequence[float] = ()) -> Iterator[Mark]:
        """Yields the autoencoder for every mark as it is passed, and ends with the last one.

        Raises UsageError without a mark, DataError for activations that are too few for a batch.
        """
        if not at_tokens and not at_seconds:
            raise UsageError("No mark to train to.", "Give at_tokens or at_seconds.")
        acts = Activations.of(source)
        x = finite(acts.whole())[0].x
        if len(x) < self.batch:
            raise DataError(f"{len(x)} activations for batches of {self.batch}.", "Use a smaller batch.")
        centre = x.mean(axis=0)
        scale = float(np.sqrt(np.mean(np.sum((x - centre) ** 2, axis=1)) / x.shape[1]))
        state, optimiser = self._start(x.shape[1])
        advance = _compiled(self, optimiser, state, (SCAN, self.batch, x.shape[1]))
        generator = np.random.default_rng(self.seed)
        marks = [(n, "tokens") for n in at_tokens] + [(s, "seconds") for s in at_seconds]
        tokens, spent = 0, 0.0
        while marks:
            began = time.perf_counter()
            rows = generator.integers(0, len(x), (SCAN, self.batch))
            state = jax.block_until_ready(advance(state, jnp.asarray((x[rows] - centre) / scale)))
            tokens, spent = tokens + rows.size, spent + time.perf_counter() - began
            passed = [m for m in marks if (tokens if m[1] == "tokens" else spent) >= m[0]]
            marks = [m for m in marks if m not in passed]
            for goal, unit in passed:
                made = self._finished(state, centre, scale, acts.origin, tokens // self.batch)
                yield Mark(tokens, spent, made, unit, goal)

    def _start(self, width: int) -> tuple[Run, optax.GradientTransformation]:
        decoder = jax.random.normal(jax.random.key(self.seed), (self.size, width))
        decoder = decoder / jnp.linalg.norm(decoder, axis=1, keepdims=True)
        weights = Weights(decoder.T.copy(), jnp.zeros(self.size), decoder)
        rate = 2e-4 / np.sqrt(self.size / 2**14) if self.rate is None else self.rate
        optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b1=0.9, b2=0.999, eps=6.25e-10))
        return Run(weights, optimiser.init(weights), Seen(jnp.zeros(self.size), jnp.zeros(()))), optimiser

    def _finished(self, state: Run, centre: np.ndarray, scale: float, origin: Origin, steps: int) -> SparseAutoencoder:
        """In the units of the activations: pre-activations of x are `scale` times those of the scaled x. The mean of
        the thresholds began at 0, and is divided by the weight that it has gathered."""
        encoder, bias, decoder = (np.array(leaf) for leaf in state.parameters)
        cut = float(state.carried.cut) * scale / (1 - THRESHOLDS**steps)
        threshold = cut if self.kind == "batchtopk" else 0.0
        return SparseAutoencoder(encoder, bias * scale, decoder, centre, self.k, self.kind, threshold, origin)


def _compiled(settings: SAE, optimiser: optax.GradientTransformation, state: Run, shape: tuple) -> Any:
    """`SCAN` steps as one program, compiled before the clock runs."""

    def gradient_of(weights: Weights, seen: Seen, x: Array) -> tuple[Weights, Seen]:
        gradient, (fired, cut) = jax.grad(_loss, has_aux=True)(weights, x, seen.silent, settings)
        silent = jnp.where(fired, 0.0, seen.silent + x.shape[0])
        return gradient, Seen(silent, THRESHOLDS * seen.cut + (1 - THRESHOLDS) * cut)

    def unit_rows(weights: Weights) -> Weights:
        norm = jnp.linalg.norm(weights.decoder, axis=1, keepdims=True)
        return weights._replace(decoder=weights.decoder / jnp.maximum(norm, 1e-8))

    run = jax.jit(lambda state, xs: descend(optimiser, gradient_of, state, xs, unit_rows))
    return run.lower(state, jnp.zeros(shape)).compile()


def _loss(weights: Weights, x: Array, silent: Array, settings: SAE) -> tuple[Array, tuple[Array, Array]]:
    """Mean squared error over the variance of the batch, plus the auxiliary loss of the dead latents."""
    pre = jnp.maximum(x @ weights.encoder + weights.bias, 0.0)
    z, cut = _keep(pre, settings)
    left = x - z @ weights.decoder
    error = jnp.sum(left**2) / jnp.sum(x**2)
    if settings.auxiliary:
        dead = silent > SILENT

        def through_dead(pre: Array, decoder: Array) -> Array:
            kept = jnp.where(dead, pre, 0.0)
            kept = kept * (kept >= _reached_by(jax.lax.stop_gradient(kept), min(settings.size, 2 * settings.k), 1))
            goal = jax.lax.stop_gradient(left)
            return jnp.sum((goal - kept @ decoder) ** 2) / jnp.maximum(jnp.sum(goal**2), 1e-12)

        other = jax.lax.cond(jnp.any(dead), through_dead, lambda *_: jnp.zeros(()), pre, weights.decoder)
        error = error + settings.auxiliary * other
    return error, (jnp.any(z > 0, axis=0), cut)


def _keep(pre: Array, settings: SAE) -> tuple[Array, Array]:
    """The largest of each row, or of the whole batch; and the smallest value kept."""
    fixed = jax.lax.stop_gradient(pre)
    if settings.kind == "topk":
        floor = _reached_by(fixed, settings.k, 1)
    else:
        floor = _reached_by(fixed, pre.shape[0] * settings.k, None)
    return jnp.where((pre >= floor) & (pre > 0), pre, 0.0), jnp.mean(floor)


def _reached_by(values: Float[Array, "b a"], count: int, axis: int | None) -> Array:
    """A value that `count` entries reach, of every row (axis 1) or of them all (None), by bisection: sorting takes far
    longer. values ≥ 0."""

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.sum(values >= middle, axis=axis, keepdims=True) >= count
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    highest = values.max(axis=axis, keepdims=True)
    return jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(highest), highest))[0]
