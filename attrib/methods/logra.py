"""LoGra: gradients projected on both sides of every layer (Choe et al. 2024, arXiv 2405.13954)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from torch import nn

from whence.cache import ArraySpec, Examples, Sites, Store, Task, UsageError
from whence.cache.model.batches import CapturedBatch, ModelPass

from .. import kernels
from ..factors import Damping
from ..features import features
from ..fit import eigenbases, moments
from ..method import FitOptions, inputs_of, make_run
from ..states import NATS, check_fitted, kept, labelled

if TYPE_CHECKING:
    import xarray


class TwoSided(NamedTuple):
    """A site's projections pa [i k], ps [o l], and the inverse of the damped Fisher of the projected gradients
    [k l, k l]."""

    pa: np.ndarray
    ps: np.ndarray
    inverse: np.ndarray


@dataclass(frozen=True)
class ProjectedFactors:
    method: str
    inputs: Mapping[str, Any]
    sites: Sites
    per_site: Mapping[str, TwoSided]
    count: int

    def scores(
        self,
        model: nn.Module,
        task: Task,
        queries: Examples,
        train: Examples,
        *,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> "xarray.DataArray":
        """(1/N) sum over sites of p_q^T (F + damping)^-1 (-p_n), p the projected gradients. With a store the training
        examples' p are kept there, k l numbers a site, and serve every later query without the model."""
        check_fitted(self.inputs, model)

        def make() -> np.ndarray:
            asked = self._rows(model, task, queries, "measurement", None, options)
            rows = self._rows(model, task, train, "loss", store, options)
            total, start = np.zeros((len(queries), len(train))), 0
            for site in self.sites:
                inverse = self.per_site[site.name].inverse
                part = slice(start, start + len(inverse))
                total -= asked[:, part] @ inverse @ rows[:, part].T
                start += len(inverse)
            return total / self.count

        values = kept(store, {**self.inputs, "task": task.settings}, queries, train, make)
        return labelled(values, queries, train, self.method, NATS, task)

    def _rows(
        self, model: nn.Module, task: Task, examples: Examples, objective: str, store: Store | None, options: FitOptions
    ) -> np.ndarray:
        run = make_run(model, task, examples, self.sites, objective, 0, options)
        sides = {name: (two.pa, two.ps) for name, two in self.per_site.items()}

        def make(rows: np.ndarray) -> np.ndarray:
            at = make_run(model, task, examples.select(rows), self.sites, objective, 0, options)
            return projected(at, sides, options.quiet)

        if store is None:
            return make(np.arange(len(examples)))
        inputs = {**self.inputs, "task": task.settings, "examples": run.examples.fingerprint, "what": "projected"}
        width = sum(len(two.inverse) for two in self.per_site.values())
        with store.writer(
            "gradients", inputs, {"g": ArraySpec((len(examples), width), "float32")},
            shard_rows=min(2048, len(examples)), about={"train": examples.ids.tolist()},
        ) as writer:  # fmt: skip
            for shard in writer.todo():
                writer.write(shard, {"g": make(np.arange(shard.start, shard.stop))})
            return writer.seal().read("g")


def projected(run: ModelPass, sides: Mapping[str, tuple[np.ndarray, np.ndarray]], quiet: bool) -> np.ndarray:
    """Gradients projected on both sides at every site, flattened and joined, [n sum of k l]."""

    def each(batch: CapturedBatch) -> jax.Array:
        parts = []
        for site in run.sites:
            a, g = batch.inputs[site.name], batch.grads[site.name]
            pa, ps = (jnp.asarray(side, a.dtype) for side in sides[site.name])
            parts.append(kernels.gradients(a @ pa, g @ ps).reshape(len(a), -1))
        return jnp.concatenate(parts, 1)

    return features(run, each, "projected gradients", quiet)


@dataclass(frozen=True)
class LoGra:
    """rank: numbers kept on either side of a site (all where it has fewer). start: "random" normal projections, or
    "pca", the leading eigenvectors of the input and output-gradient moments. damping: of the projected Fisher of the
    data's own losses, relative to its mean eigenvalue."""

    rank: int = 16
    start: Literal["random", "pca"] = "pca"
    damping: Damping = Damping()
    seed: int = 0
    name = "logra"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> ProjectedFactors:
        """Raises UsageError for a rank below 1, and as EKFAC.fit."""
        if self.rank < 1:
            raise UsageError(f"A rank of {self.rank}.", "Give a rank of at least 1.")
        run = make_run(model, task, examples, sites, "loss", 0, options)
        inputs = inputs_of(run, method=self.name, rank=self.rank, start=self.start, projection=self.seed,
                           damping=asdict(self.damping))  # fmt: skip
        sides = self._sides(run, store, options)
        rows = projected(run, sides, options.quiet).astype(np.float64)
        per_site, start = {}, 0
        for site in run.sites:
            pa, ps = sides[site.name]
            width = pa.shape[1] * ps.shape[1]
            own = rows[:, start : start + width]
            start += width
            fisher = own.T @ own / len(own)
            damped = fisher + self.damping.at(site.name, np.linalg.eigvalsh(fisher)) * np.eye(width)
            per_site[site.name] = TwoSided(pa, ps, np.linalg.inv(damped))
        return ProjectedFactors(self.name, inputs, run.sites, per_site, len(examples))

    def _sides(
        self, run: ModelPass, store: Store | None, options: FitOptions
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        if self.start == "pca":
            found, _ = moments(run, store, inputs_of(run), options)
            a = eigenbases({name: m.a for name, m in found.items()}, "float32")
            s = eigenbases({name: m.s for name, m in found.items()}, "float32")
            return {name: (a[name][1][:, -self.rank :], s[name][1][:, -self.rank :]) for name in found}
        rng = np.random.default_rng(self.seed)

        def side(width: int) -> np.ndarray:
            k = min(self.rank, width)
            return rng.normal(size=(width, k)).astype(np.float32) / np.float32(np.sqrt(k))

        return {site.name: (side(site.shape[1]), side(site.shape[0])) for site in run.sites}
