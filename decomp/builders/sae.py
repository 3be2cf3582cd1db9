"""Sparse autoencoders, the baseline: trained on the same activations, judged by the same code.

TopK (Gao et al. 2024, arXiv 2406.04093): the k largest of the pre-activations, decoder rows of unit norm, an
auxiliary loss that lets latents that have been silent explain the residual. BatchTopK (Bussmann et al. 2024,
arXiv 2412.06410): the b·k largest of a whole batch, so signals share their budget; at inference a fixed threshold.

Inputs are centred and scaled to mean squared norm d before training; the scale is folded back at the end.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from whence.cache.errors import DataError, UsageError, check_known
from whence.cache.retrain.scan import Run

from ..activations import Activations, Origin
from ..autoencoder import SparseAutoencoder
from ..kernels.autoencoder import Weights, training_loss, unit_rows
from .training import Plan, TrainedBuilder

KINDS = ("topk", "batchtopk")
THRESHOLDS = 0.9  # weight of the past in the running mean of BatchTopK's thresholds, which move as it trains


class Seen(NamedTuple):
    """What training carries beside the weights: [a] tokens since a latent fired; mean of BatchTopK's thresholds."""

    silent: Array
    cut: Array


@dataclass(frozen=True)
class SAE(TrainedBuilder[SparseAutoencoder]):
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
    resumes: ClassVar[bool] = True

    size: int
    k: int = 16
    kind: str = "topk"
    batch: int = 1024
    rate: float | None = None
    auxiliary: float = 1 / 32
    seed: int = 0
    tokens: int | None = None

    def __post_init__(self) -> None:
        check_known("autoencoder", self.kind, KINDS)
        if not 1 <= self.k <= self.size:
            raise UsageError(f"{self.k} of {self.size} latents.", f"Choose k from 1 to {self.size}.")

    def plan(self, acts: Activations, usable: Activations, quiet: bool) -> Plan[SparseAutoencoder]:
        """Raises DataError for activations that are all the same."""
        centre = usable.mean().astype(np.float32)
        squares = np.zeros(2)
        for batch in usable:
            squares += [np.sum(part**2, dtype=np.float64) / len(usable) for part in (batch.x - centre, batch.x)]
        if squares[0] <= 1e-12 * squares[1]:
            raise DataError("All activations are the same.", "Check the hook point; give activations that differ.")
        scale = float(np.sqrt(squares[0] / usable.width))
        decoder = jax.random.normal(jax.random.key(self.seed), (self.size, usable.width))
        decoder = decoder / jnp.linalg.norm(decoder, axis=1, keepdims=True)
        weights = Weights(decoder.T.copy(), jnp.zeros(self.size), decoder)
        rate = 2e-4 / np.sqrt(self.size / 2**14) if self.rate is None else self.rate
        optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b1=0.9, b2=0.999, eps=6.25e-10))
        start = Run(weights, optimiser.init(weights), Seen(jnp.zeros(self.size), jnp.zeros(())))
        finished = partial(self._finished, centre, scale, acts.origin)
        return Plan(start, optimiser, partial(_gradient, self), _unit_rows, finished, centre, scale)

    def _finished(self, centre: np.ndarray, scale: float, origin: Origin, run: Run, steps: int) -> SparseAutoencoder:
        """In the units of the activations: pre-activations of x are `scale` times those of the scaled x. The mean of
        the thresholds began at 0, and is divided by the weight that it has gathered."""
        encoder, bias, decoder = (np.array(leaf) for leaf in run.parameters)
        cut = float(run.carried.cut) * scale / (1 - THRESHOLDS**steps)
        threshold = cut if self.kind == "batchtopk" else 0.0
        return SparseAutoencoder(encoder, bias * scale, decoder, centre, self.k, self.kind, threshold, origin)


def _gradient(settings: SAE, weights: Weights, seen: Seen, x: Array) -> tuple[Weights, Seen]:
    loss = partial(training_loss, kind=settings.kind, k=settings.k, auxiliary=settings.auxiliary)
    gradient, (fired, cut) = jax.grad(loss, has_aux=True)(weights, x, seen.silent)
    silent = jnp.where(fired, 0.0, seen.silent + x.shape[0])
    return gradient, Seen(silent, THRESHOLDS * seen.cut + (1 - THRESHOLDS) * cut)


def _unit_rows(weights: Weights) -> Weights:
    return weights._replace(decoder=unit_rows(weights.decoder))
