"""LoGra: gradients projected on both sides of every layer (Choe et al. 2024, arXiv 2405.13954)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from whence.cache import ArraySpec, Examples, Sites, TrainedModel, UsageError
from whence.cache.model.task_key import task_settings
from whence.cache.model.trained import ModelPass
from whence.cache.store.layout import Shard

from ..curvature import Damping
from ..fit import bases_of, moments
from ..fitted import Fitted
from ..method import Method, in_key
from .features import Sides, features, two_sided_projection

SHARD_ROWS = 2048


class TwoSided(NamedTuple):
    """A site's projections pa [i k], ps [o l], and the inverse of the damped Fisher of the projected gradients
    [k l, k l]."""

    pa: np.ndarray
    ps: np.ndarray
    inverse: np.ndarray


@dataclass(frozen=True)
class ProjectedFactors(Fitted):
    """per_site: site -> its projections and curvature. count: examples that were fitted.

    With a store the training examples' projected gradients are stored, k l numbers per site, and serve every later
    query without the model.
    """

    sites: Sites
    per_site: Mapping[str, TwoSided]
    count: int

    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        """(1/N) sum over sites of p_q^T (F + damping)^-1 (-p_n), p the projected gradients."""
        sides: Sides = {name: (two.pa, two.ps) for name, two in self.per_site.items()}
        projected = Projected(self.trained.run("measurement", self.sites, queries), sides).rows()
        rows = self._stored_rows(Projected(self.trained.run("loss", self.sites, train), sides))
        total, start = np.zeros((len(queries), len(train))), 0
        for two in self.per_site.values():
            part = slice(start, start := start + len(two.inverse))
            total -= projected[:, part] @ two.inverse @ rows[:, part].T
        return total / self.count

    def _stored_rows(self, work: "Projected") -> Float[np.ndarray, "n k"]:
        trained, train = self.trained, work.run.examples
        if trained.store is None:
            return work.rows()
        inputs = {
            **self.inputs,
            "task": task_settings(trained.task),
            "examples": train.fingerprint,
            "what": "projected",
        }
        width = sum(len(two.inverse) for two in self.per_site.values())
        return trained.job(
            "gradients", inputs, {"g": ArraySpec((len(train), width), "float32")}, work, desc="projected gradients",
            shard_rows=min(SHARD_ROWS, len(train)), about={"train": train.ids.tolist()},
        ).read("g")  # fmt: skip


@dataclass(frozen=True)
class Projected:
    """The projected gradients of a shard of a pass."""

    run: ModelPass
    sides: Sides

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        return {"g": self.rows(np.arange(shard.start, shard.stop))}

    def rows(self, rows: np.ndarray | None = None) -> Float[np.ndarray, "n k"]:
        return features(self.run, two_sided_projection(self.sides), "projected gradients", rows)


@dataclass(frozen=True)
class LoGra(Method):
    """The damped Fisher matrix of gradients that are projected on both sides of every site.

    Args:
        rank: of the projection on each side of a site (its width if that is less). `fit` raises UsageError below 1.
        start: "random" normal projections, or "pca", the leading eigenvectors of the moments of the inputs and of the
            output gradients.
        damping: of the projected Fisher matrix of the data's own losses.
        seed: of the random projections.
    """

    rank: int = in_key(16)
    start: Literal["random", "pca"] = in_key("pca")
    damping: Damping = in_key(Damping())
    seed: int = in_key(0, name="projection")
    name = "logra"

    def fit_at(self, trained: TrainedModel, sites: Sites) -> ProjectedFactors:
        if self.rank < 1:
            raise UsageError(f"A rank of {self.rank}.", "Give a rank of at least 1.")
        run = trained.run("loss", sites)
        sides = self._sides(run)
        rows = Projected(run, sides).rows().astype(np.float64)
        per_site, start = {}, 0
        for name, (pa, ps) in sides.items():
            width = pa.shape[1] * ps.shape[1]
            own = rows[:, start : (start := start + width)]
            fisher = own.T @ own / len(own)
            damped = fisher + self.damping.at(name, np.linalg.eigvalsh(fisher)) * np.eye(width)
            per_site[name] = TwoSided(pa, ps, np.linalg.inv(damped))
        return ProjectedFactors(trained, self.name, self.inputs(run), sites, per_site, len(run.examples))

    def _sides(self, run: ModelPass) -> Sides:
        if self.start == "pca":
            found, _ = moments(run, run.inputs())
            a, s = bases_of(found, "float32")
            return {name: (a[name].vectors[:, -self.rank :], s[name].vectors[:, -self.rank :]) for name in found}
        rng = np.random.default_rng(self.seed)

        def side(width: int) -> np.ndarray:
            k = min(self.rank, width)
            return rng.normal(size=(width, k)).astype(np.float32) / np.float32(np.sqrt(k))

        return {site.name: (side(site.shape[1]), side(site.shape[0])) for site in run.sites}
