"""Sparse autoencoders, the baseline: trained on the same activations, judged by the same code.

TopK (Gao et al. 2024, arXiv 2406.04093): the k largest of the pre-activations, decoder rows of unit norm, an
auxiliary loss that lets latents that have been silent explain the residual. BatchTopK (Bussmann et al. 2024,
arXiv 2412.06410): the b·k largest of a whole batch, so signals share their budget; at inference a fixed threshold.

Inputs are centred and scaled to mean squared norm d before training; the scale is folded back at the end.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from whence.cache.errors import DataError, UsageError
from whence.cache.retrain.scan import Run, descend

from ..activations import Activations, Origin, finite
from ..autoencoder import SparseAutoencoder
from ..kernels.autoencoder import Weights, training_loss
from .builder import Builder, Source

KINDS = ("topk", "batchtopk")
SCAN = 8  # steps in one compiled call
THRESHOLDS = 0.9  # weight of the past in the running mean of BatchTopK's thresholds, which move as it trains


class Seen(NamedTuple):
    """What training carries beside the weights: [a] tokens since a latent fired; mean of BatchTopK's thresholds."""

    silent: Array
    cut: Array


class Mark(NamedTuple):
    """The autoencoder after some training: tokens seen and seconds spent (compilation not counted), and the mark that
    was passed, `unit` ("tokens" or "seconds") and `goal`."""

    tokens: int
    seconds: float
    autoencoder: SparseAutoencoder
    unit: str
    goal: float


@dataclass(frozen=True)
class SAE(Builder[SparseAutoencoder]):
    """Train a sparse autoencoder.

    Args:
        size: latents.
        k: active latents per signal.
        kind: "topk" or "batchtopk".
        batch: signals per step.
        rate: Adam's; by default 2e-4 / sqrt(size / 2^14), as in the paper.
        auxiliary: weight of the loss through dead latents.
        seed: of the first weights and of the order of signals.
        tokens: activations that `build` trains on, shuffled and repeated; by default as many as there are.

    Raises UsageError for settings that cannot be right.
    """

    name: ClassVar[str] = "sae"

    size: int
    k: int = 16
    kind: str = "topk"
    batch: int = 1024
    rate: float | None = None
    auxiliary: float = 1 / 32
    seed: int = 0
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"There is no autoencoder {self.kind!r}.", f"Choose one of {', '.join(KINDS)}.")
        if not 1 <= self.k <= self.size:
            raise UsageError(f"{self.k} of {self.size} latents.", f"Choose k from 1 to {self.size}.")

    def construct(self, source: Source) -> SparseAutoencoder:
        acts = source.whole("SAE")
        return list(self.train(acts, at_tokens=[self.tokens or len(acts)]))[-1].autoencoder

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
        if scale**2 * x.shape[1] <= 1e-12 * float(np.mean(np.sum(x**2, axis=1))):
            raise DataError("All activations are the same.", "Check the hook point; give activations that differ.")
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
                autoencoder = self._finished(state, centre, scale, acts.origin, tokens // self.batch)
                yield Mark(tokens, spent, autoencoder, unit, goal)

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
    loss = partial(training_loss, kind=settings.kind, k=settings.k, auxiliary=settings.auxiliary)

    def gradient_of(weights: Weights, seen: Seen, x: Array) -> tuple[Weights, Seen]:
        gradient, (fired, cut) = jax.grad(loss, has_aux=True)(weights, x, seen.silent)
        silent = jnp.where(fired, 0.0, seen.silent + x.shape[0])
        return gradient, Seen(silent, THRESHOLDS * seen.cut + (1 - THRESHOLDS) * cut)

    def unit_rows(weights: Weights) -> Weights:
        norm = jnp.linalg.norm(weights.decoder, axis=1, keepdims=True)
        return weights._replace(decoder=weights.decoder / jnp.maximum(norm, 1e-8))

    run = jax.jit(lambda state, xs: descend(optimiser, gradient_of, state, xs, unit_rows))
    return run.lower(state, jnp.zeros(shape)).compile()
