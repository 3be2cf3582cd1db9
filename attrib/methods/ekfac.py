"""EK-FAC: eigenvalue-corrected Kronecker-factored curvature (George et al. 2018; Grosse et al. 2023)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from whence.cache import Entry, Sites, Store, TrainedModel, gradients
from whence.cache.jobs.cluster import connect
from whence.cache.jobs.progress import say
from whence.cache.model.batches import BatchSource
from whence.cache.model.bridge import to_accelerator
from whence.cache.model.gradients import stored_bytes
from whence.cache.model.trained import KeptBatches, ModelPass

from .. import host_products, kernels
from ..curvature import SiteFactors, sites_to_json
from ..factors import Factors, factors_of_entry
from ..fit import Moments, bases_of, first_batch, fold_sites, moments
from ..memory import check_factors_fit, factor_limit, fit_groups, kept_limit, store_for_batches
from ..method import CurvatureMethod, Eigen, in_key, not_in_key
from ..scoring.precision import Precision, products_in

REDRAW = 30  # positions per dimension, below which a basis follows its own labels
SHARED = ("model", "data", "task", "sites", "objective", "seed")  # of a pass's inputs, and so of its sums
FRESH = 1 << 20  # distance of the redrawn labels' seeds from the basis's seeds


@dataclass(frozen=True)
class EKFAC(CurvatureMethod):
    """The eigenbasis of K-FAC with the Fisher's own second moments in it.

    Pass one: A = E[a a^T], S = E[g g^T] over positions, as if they were independent, and their eigenvectors.
    Pass two: lambda = E over examples of (Q_S^T G Q_A)^2 with G summed over the example's positions, which puts the
    dependence between positions back on the diagonal. The batches of pass one serve pass two as far as memory allows.

    A basis that was fitted to few sampled labels adapts to their noise. Lambda measured with the same labels is then
    too large along it, as the variances along principal components are too large in the sample that determined them.
    With many positions per dimension this is negligible; with few it costs accuracy.

    Sites whose sums do not fit the memory limit together are fitted in groups, each with its own passes; the result is
    the same. A store then has one entry a group, and factors that memory cannot hold are read when they are used.

    Args:
        damping, labels, seed: as for CurvatureMethod.
        eigen: precision of the eigenvectors. float32 is checked for orthogonality and computed again in float64 if it
            falls short.
        basis_examples: how many examples, evenly spaced, give A and S; None means all. Any orthogonal basis is valid
            and lambda is measured on every example, so a part of the data saves most of pass one.
        redraw: whether lambda's labels are drawn again, for one more forward and backward pass; None means only if
            the data have fewer than REDRAW positions per dimension of the widest site.
        products: precision of matrix products. "tf32" differs on GPUs only. "bfloat16" rounds the inputs of products on
            a CPU to 8 bits: several times the speed where the CPU has such products; on a GPU it is "tf32".
            Eigenvectors and sums over examples stay as they are.
    """

    eigen: Eigen = in_key("float32")
    basis_examples: int | None = in_key(None, unless=None)
    redraw: bool | None = not_in_key(None, "enters as decided for these data")
    products: Precision = in_key("float32", unless="float32")
    name = "ekfac"

    def fit_at(self, trained: TrainedModel, sites: Sites) -> Factors:
        run = self.run(trained, sites)
        inputs = self.inputs(run)
        run = replace(run, trained=trained.replace(memory=trained.memory_limit()))  # of free memory: as it is now
        if trained.store is not None:
            return factors_of_entry(trained, self._entry(run, inputs), self.damping_for(run))
        groups = fit_groups(sites, factor_limit(run.trained))
        check_factors_fit(sites, run.trained.memory_limit())
        per_site: dict[str, SiteFactors] = {}
        for part in in_groups(run, groups):
            per_site |= self.curvature(part, {**inputs, "sites": part.sites.settings})[0]
        return Factors(trained, self.name, inputs, sites, per_site, len(run.examples), self.damping_for(run))

    def _entry(self, run: ModelPass, inputs: dict[str, Any]) -> Entry:
        """The stored factors of a pass's sites, fitted now if they are not there: at once, or group by group."""
        store, sites = run.trained.store, run.sites
        assert store is not None
        about: dict[str, Any] = {"sites": sites_to_json(sites), "count": len(run.examples), "coverage": sites.coverage}
        if store.has("factors", inputs):
            entry = store.open("factors", inputs)
            groups = [sites.only(names) for names in entry.about.get("groups", ())]
            if not groups:
                return entry
        elif len(groups := fit_groups(sites, factor_limit(run.trained))) == 1:
            per_site, _ = self.curvature(run, inputs)
            arrays = {f"{name}/{part}": value for name, f in per_site.items() for part, value in f._asdict().items()}
            return store.put("factors", inputs, arrays, about=about)
        for part in in_groups(run, groups):
            self._entry(part, {**inputs, "sites": part.sites.settings})
        arrays = {"sites in a group": np.array([len(group) for group in groups])}
        return store.put("factors", inputs, arrays, about={**about, "groups": [list(group.names) for group in groups]})

    def inputs(self, run: ModelPass) -> dict[str, Any]:
        return {**super().inputs(run), **({"redraw": True} if self._redraws(run) else {})}

    def curvature(self, run: ModelPass, inputs: dict[str, Any]) -> tuple[dict[str, SiteFactors], str]:
        anew, shared = bool(inputs.get("redraw")), {name: inputs[name] for name in SHARED}
        with connect(run.trained.cluster) as workers, products_in(self.products):
            run = replace(run, trained=run.trained.replace(cluster=workers))
            first = KeptBatches(run, 0) if anew else batches_twice(run, self.products == "float32")
            second = replace(run, seed=run.seed + FRESH) if anew else first
            precise = {} if self.products == "float32" else {"products": self.products}
            found, _ = moments(first, {**shared, **precise}, self.basis_examples, half=self.products == "bfloat16")
            bases = Bases.of(found, self.eigen, run.trained.store, {**shared, **self.settings()})
            stage = {**shared, **self.settings(), "stage": "eigenvalues"} | ({"redraw": True} if anew else {})
            values, _ = fold_sites(second, stage, RotatedSquares.of(bases, first, self.products), "eigenvalues")
        return {name: SiteFactors(*bases.at(name), value) for name, value in values.items()}, ""

    def _redraws(self, run: ModelPass) -> bool:
        """Whether lambda's labels are drawn again."""
        if self.labels == "true" or self.redraw is not None:
            return bool(self.redraw) and self.labels == "sampled"
        widest = max(max(site.shape) for site in run.sites)
        return int(run.examples.lengths.sum()) < REDRAW * widest


def in_groups(run: ModelPass, groups: Sequence[Sites]) -> Iterator[ModelPass]:
    """The pass at each group of sites, with batches as large as fit there; the pass itself for one group."""
    if len(groups) == 1:
        yield run
        return
    for number, group in enumerate(groups, 1):
        if not run.trained.quiet:
            say(f"sites {group.names[0]} to {group.names[-1]}: group {number} of {len(groups)}")
        part = replace(run, sites=group, positions=run.trained.positions)
        yield replace(part, positions=part.batch_positions())


def batches_twice(run: ModelPass, storable: bool = True) -> BatchSource:
    """Batches for two passes: kept in memory if they fit, else in the store if they fit and may be stored, else
    captured again. A quarter of the memory limit is for the batch at hand, and the sums and bases come first."""
    store, limit = store_for_batches(run.trained) if storable else None, kept_limit(run.trained, run.sites)
    if store is not None and limit < stored_bytes(run) <= run.trained.spill:
        return gradients(run, store)
    return KeptBatches(run, limit)


@dataclass(frozen=True)
class Bases:
    """Eigenbases of the sites. Those of a store travel to a worker by the key of their entry."""

    root: str
    key: str
    arrays: Mapping[str, np.ndarray]

    @staticmethod
    def of(found: Mapping[str, Moments], eigen: str, store: Store | None, inputs: Mapping[str, Any]) -> "Bases":
        stage = {**inputs, "stage": "bases"}
        if store is not None and store.has("factors", stage):
            entry = store.open("factors", stage)
            return Bases(store.root, entry.key, {name: entry.read(name) for name in entry.arrays})
        a, s = bases_of(found, eigen)
        arrays = {f"{n}/A": a[n].vectors for n in found} | {f"{n}/S": s[n].vectors for n in found}
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
    """Adds (Q_S^T G Q_A)^2 of a batch to a site's sum."""

    bases: Bases
    order: Mapping[str, kernels.Order]
    dtype: str
    half: bool

    @staticmethod
    def of(bases: Bases, source: BatchSource, products: Precision = "float32") -> "RotatedSquares":
        batch = first_batch(source)
        order = {s.name: kernels.rotation_order(batch.inputs[s.name].shape[1], *s.shape) for s in source.sites}
        half = products == "bfloat16" and jax.default_backend() == "cpu"
        return RotatedSquares(bases, order, str(next(iter(batch.inputs.values())).dtype), half)

    @cached_property
    def _device(self) -> dict[str, tuple[Any, Any]]:
        """Bases on the device; sites that read the same input share one."""
        moved: dict[int, Any] = {}
        for q in self.bases.arrays.values():
            if id(q) not in moved:
                there = q.astype(self.dtype, copy=False)
                moved[id(q)] = host_products.narrow(there) if self.half else to_accelerator(there)
        return {n: (moved[id(a)], moved[id(s)]) for n in self.order for a, s in [self.bases.at(n)]}

    def __call__(self, site: str, total: kernels.Sum, a: Any, g: Any) -> kernels.Sum:
        add: Any = host_products.add_rotated_squares if self.half else kernels.add_rotated_squares
        return add(total, a, g, *self._device[site], order=self.order[site])

    def __reduce__(self) -> Any:
        return RotatedSquares, (self.bases, self.order, self.dtype, self.half)
