"""EK-FAC: eigenvalue-corrected Kronecker-factored curvature (George et al. 2018; Grosse et al. 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from torch import nn

from whence.cache import Examples, Sites, Store, Task, connect, gradients
from whence.cache.jobs.cluster import INLINE
from whence.cache.model.batches import FrameSource, Replay, Run, memory_limit
from whence.cache.model.gradients import stored_bytes

from .. import kernels
from ..factors import Damping, Factors, SiteFactors, from_entry, sites_to_json
from ..fit import Moments, eigenbases, first_frame, fold_sites, moments
from ..method import FitOptions, inputs_of, make_run
from ..precision import products_in

REDRAW = 30  # positions for each dimension, below which a basis follows its own labels
FRESH = 1 << 20  # how far the seeds of redrawn labels lie from the basis's


@dataclass(frozen=True)
class EKFAC:
    """The eigenbasis of K-FAC with the Fisher's own second moments in it.

    Pass one: A = E[a a^T], S = E[g g^T] over positions, as if they were independent, and their eigenvectors.
    Pass two: lambda = E over examples of (Q_S^T G Q_A)^2 with G summed over the example's positions, which puts the
    dependence between positions back on the diagonal. The frames of pass one serve pass two as far as memory goes.

    An eigenbasis turns towards the noise of the labels it was fitted on; lambda measured on those same labels is then
    too large along the first directions, as variances along principal components are in the sample that chose them.
    With many positions for each dimension that is nothing; with few it costs accuracy. So lambda's labels are drawn
    anew, at the price of one more forward and backward, where the data have fewer than REDRAW positions for each
    dimension of the widest site.

    labels: "sampled" from the model (the Fisher matrix, equal to the Gauss-Newton matrix), or "true" (the empirical
    Fisher, which the paper advises against). seed: of the draws. eigen: precision of the eigenvectors; float32 is
    checked for orthogonality and done again in float64 where it falls short. basis_examples: how many examples, evenly
    spaced, make A and S (default: all). Any orthogonal basis is valid and lambda is measured on every example, so a
    part of the data saves most of pass one and changes scores little. redraw: whether lambda's labels are drawn anew
    (default: by the rule above). products: in whole float32, or on a GPU that has
    it in TF32, which is faster by several times.

    >>> sites = find_sites(model, quiet=True)
    >>> factors = EKFAC().fit(model, task, train, sites=sites, store=store)
    >>> factors.per_site["2"].eigenvalues.shape  # [o, i]
    (3, 9)
    """

    damping: Damping = Damping()
    labels: Literal["sampled", "true"] = "sampled"
    seed: int = 0
    eigen: Literal["float32", "float64"] = "float32"
    basis_examples: int | None = None
    redraw: bool | None = None
    products: Literal["float32", "tf32"] = "float32"
    name = "ekfac"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> Factors:
        """Fit, resume, or read from the store.

        Raises ModelError where no site is called, DataError for no data, NumericalError where a loss or a sum is
        not finite, ResourceError where one example does not fit the memory limit.
        """
        objective = "sampled" if self.labels == "sampled" else "loss"
        run = make_run(model, task, examples, sites, objective, self.seed, options)
        anew = self._anew(run)
        inputs = {**inputs_of(run), "method": self.name, **self._basis} | ({"redraw": True} if anew else {})
        if store is not None and store.has("factors", inputs):
            return from_entry(store.open("factors", inputs), self.damping, store.root)
        with connect(options.cluster) as workers, products_in(self.products):
            together = replace(options, cluster=workers)
            source = Replay(run, 0) if anew else frames_twice(run, store, together)
            second = replace(run, seed=run.seed + FRESH) if anew else source
            per_site = self._per_site(source, second, store, inputs_of(run), together)
        if store is None:
            return Factors(self.name, run.sites, per_site, len(examples), self.damping, inputs)
        arrays = {f"{name}/{part}": value for name, f in per_site.items() for part, value in f._asdict().items()}
        about = {"sites": sites_to_json(run.sites), "count": len(examples), "coverage": run.sites.coverage}
        return from_entry(store.put("factors", inputs, arrays, about=about), self.damping, store.root)

    @property
    def _basis(self) -> dict[str, Any]:
        """What the eigenbasis depends on, beside the run."""
        part = {"basis_examples": self.basis_examples} if self.basis_examples else {}
        return {"eigen": self.eigen} | part | ({"products": self.products} if self.products != "float32" else {})

    def _anew(self, run: Run) -> bool:
        """Whether lambda's labels are drawn anew."""
        if self.labels == "true" or self.redraw is not None:
            return bool(self.redraw) and self.labels == "sampled"
        widest = max(max(site.shape) for site in run.sites)
        return int(run.examples.lengths.sum()) < REDRAW * widest

    def _per_site(
        self,
        source: FrameSource,
        second: FrameSource,
        store: Store | None,
        inputs: Mapping[str, Any],
        options: FitOptions,
    ) -> dict[str, SiteFactors]:
        found, _ = moments(source, store, inputs, options, self.basis_examples)
        frame = first_frame(source)
        dtype = str(next(iter(frame.inputs.values())).dtype)
        bases = Bases.of(found, self.eigen, store, {**inputs, **self._basis})
        order = {s.name: kernels.rotation_order(frame.inputs[s.name].shape[1], *s.shape) for s in source.sites}
        stage = {**inputs, **self._basis, "stage": "eigenvalues"} | ({} if second is source else {"redraw": True})
        add = RotatedSquares(bases, order, dtype)
        values, _ = fold_sites(second, store, stage, add, "eigenvalues", options)
        return {name: SiteFactors(*bases.at(name), value) for name, value in values.items()}


def frames_twice(run: Run, store: Store | None, options: FitOptions) -> FrameSource:
    """Frames for two passes: kept in memory where they fit, else in the store where they fit, else made again."""
    limit = memory_limit(options.memory) // 2
    if store is not None and options.spill > 0 and options.cluster == INLINE:
        needed = stored_bytes(run)
        if limit < needed <= options.spill:
            return gradients(run, store, log=options.log)
    return Replay(run, limit)


@dataclass(frozen=True)
class Bases:
    """Eigenbases of the sites: at hand, or by the key of their entry, which is what travels to a worker."""

    root: str
    key: str
    arrays: Mapping[str, np.ndarray]

    @staticmethod
    def of(found: Mapping[str, Moments], eigen: str, store: Store | None, inputs: Mapping[str, Any]) -> "Bases":
        stage = {**inputs, "stage": "bases"}
        if store is not None and store.has("factors", stage):
            entry = store.open("factors", stage)
            return Bases(store.root, entry.key, {name: entry.read(name) for name in entry.arrays})
        a = eigenbases({name: m.a for name, m in found.items()}, eigen)
        s = eigenbases({name: m.s for name, m in found.items()}, eigen)
        arrays = {f"{n}/A": a[n][1] for n in found} | {f"{n}/S": s[n][1] for n in found}
        if store is None:
            return Bases("", "", arrays)
        return Bases(store.root, store.put("factors", stage, arrays).key, arrays)

    def at(self, site: str) -> tuple[np.ndarray, np.ndarray]:
        return self.arrays[f"{site}/A"], self.arrays[f"{site}/S"]

    def __reduce__(self) -> Any:
        return _load_bases, (self.root, self.key)


def _load_bases(root: str, key: str) -> Bases:
    entry = Store(root).get(key)
    return Bases(root, key, {name: entry.read(name) for name in entry.arrays})


@dataclass(frozen=True)
class RotatedSquares:
    """Folds (Q_S^T G Q_A)^2 of a frame into a site's sum."""

    bases: Bases
    order: Mapping[str, kernels.Order]
    dtype: str

    @cached_property
    def _device(self) -> dict[str, tuple[Any, Any]]:
        return {n: tuple(jnp.asarray(q, self.dtype) for q in self.bases.at(n)) for n in self.order}  # type: ignore[misc]

    def __call__(self, site: str, total: kernels.Sum, a: Any, g: Any) -> kernels.Sum:
        return kernels.add_rotated_squares(total, a, g, *self._device[site], order=self.order[site])

    def __reduce__(self) -> Any:
        return RotatedSquares, (self.bases, self.order, self.dtype)
