"""Curvature factors: per site an eigenbasis and eigenvalues, whatever method fitted them.

Every method of the Kronecker family is a basis and a grid of eigenvalues, G ~ (Q_A x Q_S) diag(lambda) (Q_A x Q_S)^T:
identity and diagonal in the weights' own basis, K-FAC with an outer product of eigenvalues, EK-FAC with the measured
ones. What is done with them is the same for all: (G + damping I)^-1 times gradients.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from whence.cache import DataError, Entry, Examples, Sites, UsageError
from whence.cache.display import facts, table
from whence.cache.model.bridge import to_accelerator
from whence.cache.model.sites import Site

from . import kernels
from .fitted import Fitted

if TYPE_CHECKING:
    import xarray


C = TypeVar("C", bound="Curvature")


class SiteFactors(NamedTuple):
    """One site's curvature: columns of qa [i i] and qs [o o] are eigenvectors (None: the weights' own basis);
    eigenvalues [o i] are means over examples."""

    qa: np.ndarray | None
    qs: np.ndarray | None
    eigenvalues: np.ndarray

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self if array is not None)


@dataclass(frozen=True)
class StoredSite:
    """`SiteFactors` that are not kept in memory: each array is read from the entry whenever it is used."""

    entry: Entry
    site: str

    def read(self) -> SiteFactors:
        return SiteFactors(self.qa, self.qs, self.eigenvalues)

    @property
    def qa(self) -> np.ndarray:
        return self.entry.read(f"{self.site}/qa")

    @property
    def qs(self) -> np.ndarray:
        return self.entry.read(f"{self.site}/qs")

    @property
    def eigenvalues(self) -> np.ndarray:
        return self.entry.read(f"{self.site}/eigenvalues")

    @property
    def nbytes(self) -> int:
        return sum(self.entry.arrays[f"{self.site}/{part}"].nbytes for part in SiteFactors._fields)


PerSite: TypeAlias = Mapping[str, SiteFactors | StoredSite]
Rule = Literal["relative", "absolute", "steps"]


@dataclass(frozen=True)
class Damping:
    """How eigenvalues are inverted: 1 / (eigenvalue + damping), or as far as the steps of training went.

    By rule "steps", a direction of eigenvalue s is inverted to (1 - exp(-m c s)) / (m s), where c is the sum of the
    site's effective learning rates: what gradient descent does on a quadratic (SOURCE with one segment, Bae et al.
    2024) whose curvature is m times what the factors say. It is 1 / (m s) where training went far, and c where it
    hardly moved; 1 / (m s + 1/c) is close to it everywhere. `attrib.training.damping_of` finds c and m of a recorded
    run.

    Args:
        value: a factor of the site's mean eigenvalue ("relative"; the paper uses 0.1), the number itself ("absolute"),
            or m ("steps").
        rule: "relative", "absolute" or "steps".
        per_site: site name -> value, for sites that differ; for "steps" c of every site.

    >>> Damping(1e-3, "absolute", per_site={"head": 1e-2}).value
    0.001
    """

    value: float = 0.1
    rule: Rule = "relative"
    per_site: Mapping[str, float] = field(default_factory=dict)

    def at(self, site: str, eigenvalues: np.ndarray) -> float:
        """What is added to the eigenvalues; for "steps" 1/c, as the exact matrix couples the sites by itself."""
        if self.rule == "steps":
            return 1.0 / self._time(site)
        value = float(self.per_site.get(site, self.value))
        return value * float(eigenvalues.mean()) if self.rule == "relative" else value

    def inverse(self, site: str, eigenvalues: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The inverted eigenvalues; zero where eigenvalue and damping are zero (directions no example has)."""
        if self.rule == "steps":
            reached = self.value * self._time(site) * eigenvalues
            return self._time(site) * np.divide(
                -np.expm1(-reached), reached, out=np.ones_like(reached), where=reached > 0
            )
        damped = eigenvalues + self.at(site, eigenvalues)
        return np.divide(1.0, damped, out=np.zeros_like(damped), where=damped > 0)

    def _time(self, site: str) -> float:
        if site not in self.per_site:
            raise UsageError(f"This damping has no learning rate of {site}.", "Take it from a run that trained it.")
        return float(self.per_site[site])

    def __str__(self) -> str:
        if self.rule != "steps":
            return f"{self.value:g} {self.rule}"
        times = self.per_site.values()
        return f"steps of training, c from {min(times):.2g} to {max(times):.2g}, curvature times {self.value:g}"


@dataclass(frozen=True, repr=False)
class Curvature(Fitted):
    """The fitted curvature of a model on data, and how it is damped.

    trained, method, inputs: as for `Fitted`.
    sites: the layers it covers. per_site: site -> SiteFactors. count: examples it was fitted on. damping: added to
    the eigenvalues. key: of its entry in the store, or "". size: N, the examples that the model was trained on, if
    other than `count`.
    """

    sites: Sites
    per_site: PerSite
    count: int
    damping: Damping
    key: str = ""
    size: int | None = None

    @property
    def train_size(self) -> int:
        """N in every score: the number of examples that the model was trained on."""
        return self.count if self.size is None else self.size

    def eigenvalues(self, site: str) -> np.ndarray:
        """The eigenvalues of a site, [o i]."""
        return self.per_site[site].eigenvalues

    def inverse(self, site: str) -> np.ndarray:
        """The inverted eigenvalues, [o i], as the damping says."""
        return self.damping.inverse(site, self.eigenvalues(site))

    def inverse_product(self, gradients: Mapping[str, Float[Array, "q o i"]]) -> dict[str, Float[Array, "q o i"]]:
        """(G + damping I)^-1 applied to gradients, site by site (Grosse et al. 2023, Eq. 21, with column
        eigenvectors: Q_S ((Q_S^T V Q_A) / (lambda + damping)) Q_A^T)."""
        return {site: scaled(value, self._at(site), self.inverse(site)) for site, value in gradients.items()}

    def inverse_gradients(
        self, inputs: Mapping[str, Float[Array, "b _s _i"]], grads: Mapping[str, Float[Array, "b _s _o"]]
    ) -> dict[str, Float[Array, "b _o _i"]]:
        """(G + damping I)^-1 applied to every example's gradient, from a batch's layer inputs and output gradients.
        The examples' positions are rotated if that costs less than rotating the formed gradients."""
        found = {}
        for site, a in inputs.items():
            g, own = grads[site], (self.per_site[site].qa, self.per_site[site].qs)
            scale = to_accelerator(self.inverse(site).astype(a.dtype))
            qa, qs = (None if q is None else to_accelerator(q.astype(a.dtype, copy=False)) for q in own)
            order = kernels.rotation_order(a.shape[1], g.shape[2], a.shape[2])
            found[site] = kernels.preconditioned(a, g, qa, qs, scale, order)
        return found

    def _at(self, site: str) -> SiteFactors | StoredSite:
        if site not in self.per_site:
            raise DataError(f"These factors have no site {site!r}.", f"They have {', '.join(self.per_site)}.")
        return self.per_site[site]

    def labelled(
        self, values: Float[np.ndarray, "q n *_"], queries: Examples, train: Examples, last: str = "site"
    ) -> "xarray.DataArray":
        """As in `Fitted`, with the damping."""
        attrs = {
            "meaning": "predicted change of the query's measurement when the example is added once more",
            "damping": str(self.damping),
        }
        return super().labelled(values, queries, train, last).assign_attrs(attrs)

    @cached_property
    def effective_directions(self) -> float:
        """Sum of eigenvalue / (eigenvalue + damping): about how many directions the data determine; the damping
        determines the others. Sites whose eigenvalues are all the same, which no data gave, count none."""
        total = 0.0
        for site in self.sites:
            values = self.eigenvalues(site.name)
            if np.ptp(values) > 0:
                total += float((values / (values + self.damping.at(site.name, values)).clip(1e-300)).sum())
        return total

    @property
    def caution(self) -> str:
        """A sum of n rows (examples times positions) has at most n directions with curvature. If the eigenvalues above
        the damping say that there are more, they are noise."""
        rows = self.count * float(self.trained.train.lengths.mean())
        if self.effective_directions <= rows:
            return ""
        total = sum(s.size for s in self.sites)
        below = sum(
            int((values <= self.damping.at(s.name, values)).sum())
            for s in self.sites
            for values in [self.eigenvalues(s.name)]
        )
        return (
            f"{self.count} examples ({rows:.0f} positions) are too few for {total} directions: {below / total:.0%} of "
            "them are left to the damping, and so few rows cannot determine the eigenvalues of "
            f"{self.effective_directions:.0f}. Scores can be too large by orders of magnitude. Fit on more data, with "
            "a larger damping or at fewer sites."
        )

    def with_damping(self: C, value: float | Damping, rule: Rule = "relative") -> C:
        """The same curvature with another damping, a number under this rule or a Damping; nothing is refitted."""
        return replace(self, damping=value if isinstance(value, Damping) else Damping(value, rule))

    @property
    def nbytes(self) -> int:
        return sum(factors.nbytes for factors in self.per_site.values())

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.method}, {len(self.per_site)} sites, {self.count} examples, "
            f"damping {self.damping}, {self.nbytes / 1e6:.1f} MB)"
            + (f"\nwarning: {self.caution}" if self.caution else "")
        )

    def _repr_html_(self) -> str:
        rows = [
            (s.name, f"{s.shape[0]} × {s.shape[1]}", float(self.eigenvalues(s.name).mean()))
            for s in self.sites
            if s.name in self.per_site
        ]
        pairs = [("inputs", self.key[:12] or "not stored"), ("sites", self.sites.summary)]
        return (facts(repr(self), pairs) + table(("site", "out × in", "mean eigenvalue"), rows)).html


def scaled(
    value: Float[Array, "q o i"], factors: SiteFactors | StoredSite, weight: Float[np.ndarray, "o i"]
) -> Float[Array, "q o i"]:
    """Gradients with their coordinates in the site's eigenbasis multiplied by these numbers."""
    qa, qs = (None if q is None else jnp.asarray(q, value.dtype) for q in (factors.qa, factors.qs))
    return kernels.rotate_back(kernels.rotate(value, qa, qs) * jnp.asarray(weight, value.dtype), qa, qs)


def sites_to_json(sites: Sites) -> dict[str, Any]:
    return {"sites": [asdict(s) for s in sites], "total": sites.total, "left_out": [list(x) for x in sites.left_out]}


def sites_from_json(data: Mapping[str, Any]) -> Sites:
    def site(d: Mapping[str, Any]) -> Site:
        return Site(
            **{
                **d,
                "shape": tuple(d["shape"]),
                "modules": tuple(d["modules"]),
                "parameters": tuple((a, n) for a, n in d["parameters"]),
            }
        )

    return Sites(tuple(site(d) for d in data["sites"]), data["total"], tuple((n, c) for n, c in data["left_out"]))
