"""Sketches: gradients compressed to a few numbers whose inner products approximate those of the gradients.

In the eigenbasis, whitened, H = (Q_S^T G Q_A) / sqrt(lambda + damping), influence is a plain inner product of the
query's H and the example's. Three ways to compress an example's H at every site:

- "rank": its leading singular pairs, of the rows and columns with the largest share of the curvature,
  lambda / (lambda + damping). Pairs adapt to each example, so c pairs of o + i numbers are more accurate than as many
  fixed coordinates. A query's H of these rows and columns is whole: u^T H_q v is exact for the example's pairs.
- "largest": the coordinates with the largest share; nothing is random, and the other coordinates are ignored.
- "random": S_O^T H S_I with normal S of k columns a side; inner products are right in expectation, with a spread that
  falls with k whatever the data (two-sided, as LoGra's of Choe et al. 2024, arXiv 2405.13954, but whitened first).

A fourth has a curvature of its own (woodbury.py), so its scores are not those of the factors:

- "lorif": the leading singular pairs of S_O^T G S_I, not whitened; a query's S_O^T G S_I is whole and solved with the
  curvature of these projected gradients (Li et al. 2026, arXiv 2601.21929).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

from whence.cache import DataError, UsageError

from .. import kernels
from ..curvature import Curvature

Kind = Literal["rank", "largest", "random", "lorif"]
REBUILT_BYTES = 64 << 20  # of rebuilt gradients, while rows are compared with queries
SIDES_PER_PAIR = 32  # rows, and columns, per singular pair


@dataclass(frozen=True)
class Sketch:
    """How a gradient is compressed.

    Args:
        kind: "rank", "largest", "random" or "lorif", as above.
        width: numbers per example over all sites, at most.
        seed: of "random" and "lorif".
        directions: of each site's curvature, for "lorif".
    """

    kind: Kind = "rank"
    width: int = 2048
    seed: int = 0
    directions: int = 256

    @property
    def settings(self) -> dict[str, Any]:
        """What fixes the rows, for keys."""
        return {"kind": self.kind, "width": self.width, "seed": self.seed}


class Cut(NamedTuple):
    """The eigendirections of a site that a sketch uses: H = scale * (qs^T G qa)."""

    qa: Float[np.ndarray, "i ri"]
    qs: Float[np.ndarray, "o ro"]
    scale: Float[np.ndarray, "ro ri"]

    @property
    def shape(self) -> tuple[int, int]:
        ro, ri = self.scale.shape
        return ro, ri

    def on_device(self) -> tuple[jax.Array, ...]:
        return tuple(jnp.asarray(x, jnp.float32) for x in self)


Numbers = Callable[[jax.Array, jax.Array], Float[Array, "b k"]]


@runtime_checkable
class SiteSketch(Protocol):
    """One site's part of a sketch. width: numbers per example. rows, for_queries: functions of a batch's a [b s i] and
    g [b s o] that return an example's sketch and what a query needs. scores: inner products of the two."""

    @property
    def width(self) -> int: ...
    def rows(self) -> Numbers: ...
    def for_queries(self) -> Numbers: ...
    def scores(self, queries: Float[np.ndarray, "q k"], rows: Float[np.ndarray, "n w"]) -> Float[np.ndarray, "q n"]: ...


@dataclass(frozen=True)
class Ranked:
    """`count` singular pairs of the cut."""

    cut: Cut
    count: int

    @property
    def width(self) -> int:
        return self.count * sum(self.cut.shape)

    def rows(self) -> Numbers:
        return partial(kernels.whitened_pairs, *self.cut.on_device(), count=self.count)

    def for_queries(self) -> Numbers:
        return partial(kernels.whitened, *self.cut.on_device())

    def scores(self, queries: Float[np.ndarray, "q k"], rows: Float[np.ndarray, "n w"]) -> Float[np.ndarray, "q n"]:
        out = np.empty((len(queries), len(rows)), np.float32)
        for part, h in self.rebuilt(rows):
            out[:, part] = queries @ h.T
        return out

    def rebuilt(self, rows: Float[np.ndarray, "n w"]) -> Iterator[tuple[slice, Float[np.ndarray, "t k"]]]:
        """The product of each row's pairs, flattened, a tile of rows at a time."""
        ro, ri = self.cut.shape
        left = rows[:, : ro * self.count].reshape(-1, ro, self.count)
        right = rows[:, ro * self.count :].reshape(-1, self.count, ri)
        tile = max(1, REBUILT_BYTES // (4 * ro * ri))
        for start in range(0, len(rows), tile):
            part = slice(start, start + tile)
            yield part, (left[part] @ right[part]).reshape(-1, ro * ri)


class Fixed(ABC):
    """The same numbers for an example and for a query."""

    @abstractmethod
    def rows(self) -> Numbers: ...

    def for_queries(self) -> Numbers:
        return self.rows()

    def scores(self, queries: Float[np.ndarray, "q k"], rows: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "q n"]:
        return queries @ rows.T


@dataclass(frozen=True)
class Coordinates(Fixed):
    """The numbers of the cut at `place`, counted along its rows."""

    cut: Cut
    place: Int64[np.ndarray, " k"]

    @property
    def width(self) -> int:
        return len(self.place)

    def rows(self) -> Numbers:
        return partial(kernels.whitened_coordinates, *self.cut.on_device(), jnp.asarray(self.place, jnp.int32))


@dataclass(frozen=True)
class Projected(Fixed):
    """Both sides of the whole of H multiplied with a matrix: left [o k], right [i k]."""

    cut: Cut
    left: Float[np.ndarray, "o k"]
    right: Float[np.ndarray, "i l"]

    @property
    def width(self) -> int:
        return self.left.shape[1] * self.right.shape[1]

    def rows(self) -> Numbers:
        sides = (jnp.asarray(x, jnp.float32) for x in (self.left, self.right))
        return partial(kernels.whitened_projection, *self.cut.on_device(), *sides)


def plan_sketch(factors: Curvature, sketch: Sketch) -> dict[str, SiteSketch]:
    """The sketch of every site that has a part in it. Raises UsageError for a width with too few numbers per site,
    DataError for factors without any curvature."""
    kinds = {"rank": _ranked, "largest": _largest, "random": _random, "lorif": _lorif}
    least = 2 if sketch.kind in ("rank", "lorif") else 1
    if sketch.width < least * len(factors.sites):
        raise UsageError(
            f"A width of {sketch.width} for {len(factors.sites)} sites.",
            f"Keep at least {least * len(factors.sites)}: "
            + ("a row and a column per site." if least == 2 else "one number per site."),
        )
    if not any(factors.per_site[site.name].eigenvalues.any() for site in factors.sites):
        raise DataError("These factors have no curvature in any direction.", "Fit on data with gradients.")
    return kinds[sketch.kind](factors, sketch)


def _ranked(factors: Curvature, sketch: Sketch) -> dict[str, SiteSketch]:
    """The width in equal parts, one per site. The number of pairs and the number of rows and columns both grow with the
    root of the part. A site that is no larger than its part is kept whole."""
    part, plans = sketch.width // len(factors.sites), dict[str, SiteSketch]()
    for site in factors.sites:
        o, i = site.shape
        if part >= o * i:
            plans[site.name] = Coordinates(_cut(factors, site.name), np.arange(o * i))
            continue
        count = max(1, round(np.sqrt(part / (2 * SIDES_PER_PAIR))), part // (o + i))
        plans[site.name] = Ranked(_cut(factors, site.name, *_sides(_shares(factors, site.name), part // count)), count)
    return plans


def _sides(share: Float[np.ndarray, "o i"], total: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns, `total` in all, whose block has most of the share."""
    o, i = share.shape
    total = min(total, o + i)
    rows, columns = np.argsort(-share.sum(1), kind="stable"), np.argsort(-share.sum(0), kind="stable")
    covered = share[np.ix_(rows, columns)].cumsum(0).cumsum(1)
    counts = np.arange(max(1, total - i), min(o, total - 1) + 1)
    best = int(counts[np.argmax(covered[counts - 1, total - counts - 1])])
    return np.sort(rows[:best]), np.sort(columns[: total - best])


def _random(factors: Curvature, sketch: Sketch) -> dict[str, SiteSketch]:
    rng, plans = np.random.default_rng(sketch.seed), dict[str, SiteSketch]()
    side = max(1, int(np.sqrt(sketch.width / len(factors.sites))))
    for site in factors.sites:
        sides = [rng.normal(size=(w, side)) / np.sqrt(side) if side < w else np.eye(w) for w in site.shape]
        plans[site.name] = Projected(_cut(factors, site.name), *sides)
    return plans


def _lorif(factors: Curvature, sketch: Sketch) -> dict[str, SiteSketch]:
    """The width in equal parts, pairs and sides growing alike, as for "rank"; a side that would not shrink is kept."""
    rng, plans = np.random.default_rng(sketch.seed), dict[str, SiteSketch]()
    part = sketch.width // len(factors.sites)
    for site in factors.sites:
        o, i = site.shape
        count = min(o, i, max(1, round(np.sqrt(part / (2 * SIDES_PER_PAIR))), part // (o + i)))
        sides = _two_sides(o, i, part // count)
        qs, qa = (rng.normal(size=(w, k)) / np.sqrt(k) if k < w else np.eye(w) for w, k in zip((o, i), sides))
        plans[site.name] = Ranked(Cut(qa, qs, np.ones(sides)), min(count, *sides))
    return plans


def _two_sides(o: int, i: int, total: int) -> tuple[int, int]:
    """Two sides of `total` numbers, equal unless one is whole."""
    short = min(o, i, max(1, total // 2))
    long = min(max(o, i), max(1, total - short))
    return (short, long) if o <= i else (long, short)


def _largest(factors: Curvature, sketch: Sketch) -> dict[str, SiteSketch]:
    shares = {s.name: _shares(factors, s.name) for s in factors.sites}
    everything = np.concatenate([share.ravel() for share in shares.values()])
    chosen = np.zeros(everything.size, bool)
    chosen[np.argsort(-everything, kind="stable")[: min(sketch.width, int((everything > 0).sum()))]] = True
    plans, start = dict[str, SiteSketch](), 0
    for name, share in shares.items():
        keep = chosen[start : start + share.size].reshape(share.shape)
        start += share.size
        if keep.any():
            rows, columns = np.flatnonzero(keep.any(1)), np.flatnonzero(keep.any(0))
            plans[name] = Coordinates(
                _cut(factors, name, rows, columns), np.flatnonzero(keep[np.ix_(rows, columns)].ravel())
            )
    return plans


def _shares(factors: Curvature, site: str) -> Float[np.ndarray, "o i"]:
    """lambda / (lambda + damping): the mean square of every whitened coordinate."""
    return factors.per_site[site].eigenvalues * factors.inverse(site)


def _cut(factors: Curvature, site: str, rows: Any = slice(None), columns: Any = slice(None)) -> Cut:
    state = factors.per_site[site]
    o, i = state.eigenvalues.shape
    qa = np.eye(i) if state.qa is None else state.qa
    qs = np.eye(o) if state.qs is None else state.qs
    return Cut(qa[:, columns], qs[:, rows], np.sqrt(factors.inverse(site))[rows][:, columns])
