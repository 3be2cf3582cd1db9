"""A compressed index: a few hundred to a few thousand numbers an example, in 16 bits, that answer later queries from
the store alone; then the best candidates are scored exactly.

In the eigenbasis, whitened, H = (Q_S^T G Q_A) / sqrt(lambda + damping), influence is a plain inner product of the
query's H and the example's. Two ways to keep little of H:

- "random": S_O^T H S_I with normal S of k columns a side and site; inner products are right in expectation, with a
  spread that falls with k whatever the data (two-sided, as LoGra's, but whitened first);
- "largest": the coordinates with the largest expected contribution to a score, lambda / (lambda + damping) squared,
  over all sites together; nothing is random, what is left out is left out for good.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64
from torch import nn

from cache import ArraySpec, DataError, Entry, Examples, Shard, Store, Task, UsageError, key_of, run_job
from cache.build import Frame, FrameSource

from . import kernels
from .factors import Factors
from .method import FitOptions, make_run
from .scores import RowWork, check_model, prepared_once, score, score_inputs, shard_rows
from .topk import ends

if TYPE_CHECKING:
    import xarray

BLOCK_ROWS = 8192  # rows of the index that are looked at together


@dataclass(frozen=True)
class Sketch:
    """How a gradient is compressed. width: numbers an example, over all sites (at most; fewer where the gradient
    itself has fewer)."""

    kind: Literal["random", "largest"] = "largest"
    width: int = 2048
    seed: int = 0


class SitePlan(NamedTuple):
    """One site's part of a sketch: a and g are multiplied with these, the product [left right] is scaled, and projected
    or gathered. place: which of the formed numbers are kept (largest); sides: the projections (random)."""

    qa: Float[np.ndarray, "i ri"]
    qs: Float[np.ndarray, "o ro"]
    scale: Float[np.ndarray, "ro ri"]
    place: Int64[np.ndarray, " k"] | None
    sides: tuple[np.ndarray, np.ndarray] | None

    @property
    def width(self) -> int:
        if self.sides is not None:
            return self.sides[0].shape[1] * self.sides[1].shape[1]
        return 0 if self.place is None else len(self.place)


def plan_sketch(factors: Factors, sketch: Sketch) -> dict[str, SitePlan]:
    """The sketch of every site. Raises UsageError for a width below the number of sites."""
    if sketch.width < len(factors.sites):
        raise UsageError(
            f"A width of {sketch.width} for {len(factors.sites)} sites.", "Keep at least one number a site."
        )
    return _random(factors, sketch) if sketch.kind == "random" else _largest(factors, sketch)


def _random(factors: Factors, sketch: Sketch) -> dict[str, SitePlan]:
    rng, plans = np.random.default_rng(sketch.seed), {}
    side = max(1, int(np.sqrt(sketch.width / len(factors.sites))))
    for site in factors.sites:
        o, i = site.shape
        qa, qs = _basis(factors, site.name)
        left = rng.normal(size=(o, min(side, o))) / np.sqrt(min(side, o)) if side < o else np.eye(o)
        right = rng.normal(size=(i, min(side, i))) / np.sqrt(min(side, i)) if side < i else np.eye(i)
        scale = np.sqrt(factors.inverse(site.name))
        plans[site.name] = SitePlan(qa, qs, scale, None, (left.astype(np.float32), right.astype(np.float32)))
    return plans


def _largest(factors: Factors, sketch: Sketch) -> dict[str, SitePlan]:
    shares = {s.name: factors.per_site[s.name].eigenvalues * factors.inverse(s.name) for s in factors.sites}
    everything = np.concatenate([share.ravel() for share in shares.values()])
    width = min(sketch.width, int((everything > 0).sum()))
    if width == 0:
        raise DataError("These factors have no curvature in any direction.", "Fit on data that moves the model.")
    chosen = np.zeros(everything.size, bool)
    chosen[np.argsort(-everything, kind="stable")[:width]] = True
    plans, start = {}, 0
    for site in factors.sites:
        o, i = site.shape
        keep = chosen[start : start + o * i].reshape(o, i)
        start += o * i
        rows, columns = np.flatnonzero(keep.any(1)), np.flatnonzero(keep.any(0))
        place = np.flatnonzero(keep[np.ix_(rows, columns)].ravel())
        qa, qs = _basis(factors, site.name)
        scale = np.sqrt(factors.inverse(site.name))[np.ix_(rows, columns)]
        plans[site.name] = SitePlan(qa[:, columns], qs[:, rows], scale, place, None)
    return plans


def _basis(factors: Factors, site: str) -> tuple[np.ndarray, np.ndarray]:
    state = factors.per_site[site]
    o, i = state.eigenvalues.shape
    return (np.eye(i) if state.qa is None else state.qa), (np.eye(o) if state.qs is None else state.qs)


@jax.jit
def _projected(
    a: Float[Array, "b s i"], g: Float[Array, "b s o"], qa: Any, qs: Any, scale: Any, left: Any, right: Any
) -> Float[Array, "b k"]:
    order = kernels.rotation_order(a.shape[1], g.shape[2], a.shape[2])
    if order == "positions":
        a, g = a @ qa, g @ qs

    def one(pair):
        formed = pair[1].T @ pair[0]
        rotated = formed if order == "positions" else qs.T @ formed @ qa
        return (left.T @ (scale * rotated) @ right).ravel()

    return jax.lax.map(one, (a, g))


@jax.jit
def _gathered(
    a: Float[Array, "b s i"], g: Float[Array, "b s o"], qa: Any, qs: Any, scale: Any, place: Any
) -> Float[Array, "b k"]:
    return jax.lax.map(lambda pair: (scale * (pair[1].T @ pair[0])).ravel()[place], (a @ qa, g @ qs))


@dataclass(frozen=True)
class Compress:
    """Sketches of a frame's gradients, [b width]."""

    factors: Factors
    sketch: Sketch

    def __call__(self, source: FrameSource) -> Callable[[Frame], np.ndarray]:
        ready = {
            name: [jnp.asarray(x, jnp.float32) for x in (plan.qa, plan.qs, plan.scale, *(plan.sides or ()))]
            + ([] if plan.place is None else [jnp.asarray(plan.place, jnp.int32)])
            for name, plan in plan_sketch(self.factors, self.sketch).items()
            if plan.width
        }
        kernel = _projected if self.sketch.kind == "random" else _gathered

        def each(frame: Frame) -> np.ndarray:
            parts = [kernel(frame.inputs[name], frame.grads[name], *arrays) for name, arrays in ready.items()]
            return np.asarray(jnp.concatenate(parts, 1), np.float32)[: len(frame.rows)]

        return each


@dataclass(frozen=True)
class _Rows:
    """Sketches of one shard in 16 bits: float16 after division by each row's largest number, which is kept beside."""

    rows: RowWork

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        values = self.rows(shard)["values"]
        largest = np.abs(values).max(1)
        scale = np.where(largest > 0, largest, 1.0).astype(np.float32)
        return {"rows": (values / scale[:, None]).astype(np.float16), "scale": scale}


class Hits(NamedTuple):
    """ids, scores [q c]: the candidates of every query by the index, best first, and their approximate influence."""

    ids: Int64[np.ndarray, "q c"]
    scores: Float[np.ndarray, "q c"]


@dataclass(frozen=True)
class Index:
    """An index in the store, and the factors it was made with."""

    entry: Entry
    factors: Factors
    sketch: Sketch

    @property
    def ids(self) -> Int64[np.ndarray, " n"]:
        return np.asarray(self.entry.about["train"], np.int64)

    def sketched(
        self, model: nn.Module, task: Task, queries: Examples, options: FitOptions = FitOptions()
    ) -> Float[np.ndarray, "q k"]:
        """Sketches of the queries' measurements. Raises as `score`."""
        check_model(self.factors, model)
        run = make_run(model, task, queries, self.factors.sites, "measurement", 0, options)
        each = Compress(self.factors, self.sketch)(run)
        out = np.empty((len(queries), self.entry.arrays["rows"].shape[1]), np.float32)
        for frame in run.frames(desc="queries", quiet=options.quiet):
            out[frame.rows] = each(frame)
        return out

    def search(
        self, model: nn.Module, task: Task, queries: Examples, candidates: int = 100, options: FitOptions = FitOptions()
    ) -> Hits:
        """The best candidates of every query, from the store alone: no training data, a block of rows at a time."""
        asked = self.sketched(model, task, queries, options)
        best = np.full((len(queries), 0), -np.inf, np.float32)
        rows = np.zeros((len(queries), 0), np.int64)
        for start in range(0, len(self.ids), BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, len(self.ids))
            scores = self._block(asked, start, stop)
            best = np.concatenate([best, scores], 1)
            rows = np.concatenate([rows, np.broadcast_to(np.arange(start, stop), scores.shape)], 1)
            best, places = ends(best, min(candidates, stop))
            rows = np.take_along_axis(rows, places, axis=1)
        return Hits(self.ids[rows], best)

    def scores(
        self, model: nn.Module, task: Task, queries: Examples, options: FitOptions = FitOptions()
    ) -> Float[np.ndarray, "q n"]:
        """Approximate influence of every example, in nats."""
        return self._block(self.sketched(model, task, queries, options), 0, len(self.ids))

    def _block(self, asked: Float[np.ndarray, "q k"], start: int, stop: int) -> Float[np.ndarray, "q b"]:
        rows = self.entry.slice("rows", start, stop).astype(np.float32)
        scale = self.entry.slice("scale", start, stop)
        return -(asked @ rows.T) * (scale / np.float32(self.factors.count))


def build_index(
    factors: Factors,
    model: nn.Module,
    task: Task,
    train: Examples,
    store: Store,
    sketch: Sketch = Sketch(),
    options: FitOptions = FitOptions(),
) -> Index:
    """Make, resume or open the index of these training examples. Raises as `score` and `plan_sketch`."""
    check_model(factors, model)
    inputs = index_inputs(factors, task, train, sketch)
    width = sum(plan.width for plan in plan_sketch(factors, sketch).values())
    rows = RowWork(
        key_of("gradients", inputs) + store.root, factors, model, task, train, (width,), Compress(factors, sketch),
        store.root, options, "index",
    )  # fmt: skip
    specs = {"rows": ArraySpec((len(train), width), "float16"), "scale": ArraySpec((len(train),), "float32")}
    with prepared_once():
        entry = run_job(
            store, "gradients", inputs, specs, _Rows(rows), shard_rows=shard_rows(len(train)),
            about={"train": train.ids.tolist()}, cluster=options.cluster, log=options.log, desc="index",
            quiet=options.quiet,
        )  # fmt: skip
    return Index(entry, factors, sketch)


def index_inputs(factors: Factors, task: Task, train: Examples, sketch: Sketch) -> dict[str, Any]:
    return {**score_inputs(factors, task, train), "what": "index", "sketch": asdict(sketch)}


def rerank(
    hits: Hits, factors: Factors, model: nn.Module, task: Task, queries: Examples, train: Examples, k: int,
    options: FitOptions = FitOptions(),
) -> Hits:  # fmt: skip
    """The candidates by their exact influence, the k best of each query. Only the candidates are run."""
    union = train.select(np.flatnonzero(np.isin(train.ids, hits.ids)))
    exact = score(factors, model, task, queries, union, options=options).values
    column = {int(i): place for place, i in enumerate(union.ids)}
    places = np.vectorize(column.__getitem__)(hits.ids)
    mine = np.take_along_axis(exact, places, axis=1)
    values, order = ends(mine, min(k, mine.shape[1]))
    return Hits(np.take_along_axis(hits.ids, order, axis=1), values)


def recall_of(
    found: Int64[np.ndarray, "q c"], exact: "xarray.DataArray", k: int = 10, apart: Mapping[int, int] | None = None
) -> Float[np.ndarray, " q"]:
    """The share of each query's exact top k (scores [query, train]) that is among `found` ids. apart: query id -> the
    id of a training example that is left out of both (the query itself, where queries are training examples)."""
    ids, out = exact["train"].values, np.empty(len(found))
    for row, query in enumerate(exact["query"].values):
        own = (apart or {}).get(int(query))
        ranked = [i for i in ids[np.argsort(-exact.values[row], kind="stable")] if i != own][:k]
        out[row] = np.isin(ranked, found[row]).mean()
    return out
