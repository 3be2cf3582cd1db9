"""Representation similarity: the cosine of hidden states, which sees what examples look like to the model and nothing
of what they taught it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from whence.cache import Examples, Sites, TrainedModel
from whence.cache.model.batches import CapturedBatch
from whence.cache.model.trained import ModelPass

from ..fitted import Fitted
from ..method import Method, not_in_key
from .features import features


@dataclass(frozen=True)
class Hidden(Fitted):
    """sites: the one whose input is compared. mean: of the fitted examples' states, subtracted before the cosine."""

    sites: Sites
    mean: Float[np.ndarray, " i"]

    units = "cosine"

    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        """Cosine of the centred mean states, -1 to 1."""
        found = [states(self.trained.run("loss", self.sites, e)) - self.mean for e in (queries, train)]
        unit = [h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12) for h in found]
        return unit[0] @ unit[1].T


def states(run: ModelPass) -> Float[np.ndarray, "n i"]:
    """The input of the pass's one site, averaged over counted positions."""
    (name,) = run.sites.names

    def mean(batch: CapturedBatch) -> jax.Array:
        a, weight = batch.inputs[name], batch.weights[name]
        return jnp.einsum("bsi,bs->bi", a, weight) / jnp.maximum(weight.sum(1, keepdims=True), 1)

    return features(run, mean, "states")


@dataclass(frozen=True)
class Representation(Method):
    """The cosine of hidden states.

    Args:
        at: the site whose input is compared; by default the last linear one. `fit` raises ModelError if there is none
            of this name.
    """

    at: str | None = not_in_key(None, "enters as the site")
    name = "representation"

    def fit_at(self, trained: TrainedModel, sites: Sites) -> Hidden:
        if self.at is not None:
            found = trained.replace(quiet=True).find(self.at)
            one = found.only(found.names[:1])
        else:
            one = sites.only(([site.name for site in sites if site.kind == "linear"] or sites.names)[-1:])
        run = trained.run("loss", one)
        return Hidden(trained, self.name, self.inputs(run), one, states(run).mean(0))
