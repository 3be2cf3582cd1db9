"""The local Bayesian influence function: covariances over weights sampled around the trained model (Kreer et al. 2025,
arXiv 2509.26544)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import grad

from whence.cache import NumericalError, Sites, TrainedModel, UsageError
from whence.cache.jobs.progress import progress
from whence.cache.model.borrowing import borrowed
from whence.cache.model.checkpoints import with_weights
from whence.cache.model.stateless import named_parameters, stateless
from whence.cache.model.trained import ModelPass

from ..method import Method, in_key
from .daunce import Covariances


class SampledCovariances(Covariances):
    units = "nats"


@dataclass(frozen=True)
class BIF(Method):
    """-beta Cov(f_q, L_n) over weights drawn by stochastic-gradient Langevin dynamics (Welling and Teh 2011) from
    exp(-beta sum_n L_n(w) - locality / 2 |w - w*|^2) around the trained weights w*. No curvature is inverted. Where
    losses are quadratic it is influence with the damping locality / (beta N), in nats.

    Args:
        draws: of weights that are kept.
        every: steps between them. burn_in: steps before the first.
        rate: step size; the largest that is stable is 2 / (beta times the largest curvature of the summed losses).
        locality: strength of the pull back to the trained weights.
        beta: inverse temperature; by default 1 / log N, the paper's.
        batch: examples per step; None takes all.
        seed: of the noise and the batches.
    """

    draws: int = in_key(64)
    every: int = in_key(4)
    burn_in: int = in_key(50)
    rate: float = in_key(1e-5)
    locality: float = in_key(1000.0)
    beta: float | None = in_key(None)
    batch: int | None = in_key(64)
    seed: int = in_key(0)
    name = "bif"
    at_sites = False

    def fit_at(self, trained: TrainedModel, sites: Sites) -> SampledCovariances:
        if self.draws < 2 or self.every < 1 or self.rate <= 0:
            raise UsageError(
                f"{self.draws} draws, every {self.every} steps of size {self.rate}.",
                "Give at least two draws, one step between them, and a positive rate.",
            )
        inputs = self.inputs(ModelPass(trained, trained.train, sites))
        drawn = list(self._sampled(trained))
        models = tuple(trained.replace(model=with_weights(trained.model, weights)) for weights in drawn)
        return SampledCovariances(trained, self.name, inputs, models, self._beta(trained))

    def _beta(self, trained: TrainedModel) -> float:
        return 1 / math.log(max(len(trained.train), 3)) if self.beta is None else self.beta

    def _sampled(self, trained: TrainedModel) -> Iterator[dict[str, Tensor]]:
        """Draws of the parameters that require a gradient."""
        count, size = len(trained.train), min(self.batch or len(trained.train), len(trained.train))
        rng, noise = np.random.default_rng(self.seed), torch.Generator().manual_seed(self.seed)
        centre = {n: p.detach().clone() for n, p in named_parameters(trained.model).items() if p.requires_grad}
        loss = stateless(lambda model, batch: trained.task.loss(model, batch).mean(), trained.model)
        weights, scale = dict(centre), self._beta(trained) * count
        steps = range(self.burn_in + self.draws * self.every)
        with borrowed(trained.model):
            for step in progress(steps, desc="sampling weights", unit="step", quiet=trained.quiet):
                rows = np.sort(rng.choice(count, size, replace=False))
                slope = grad(loss)(weights, trained.batch(trained.train, rows))
                for name, value in weights.items():
                    drift = scale * slope[name] + self.locality * (value - centre[name])
                    drawn = torch.randn(value.shape, generator=noise, dtype=torch.float64).to(value)
                    weights[name] = value - 0.5 * self.rate * drift + self.rate**0.5 * drawn
                if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
                    raise NumericalError(
                        f"Sampling diverged at step {step + 1} with steps of {self.rate:g}.", "Give a smaller rate."
                    )
                if step >= self.burn_in and (step - self.burn_in + 1) % self.every == 0:
                    yield dict(weights)
