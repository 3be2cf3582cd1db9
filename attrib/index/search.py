"""A compressed index: a few hundred to a few thousand numbers per example, in 16 bits. Later queries are answered from
the store alone; then the best candidates can be scored exactly.

The index has a sketch of each example's gradient (sketches.py); of a query, what its sketch needs.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int64

from whence.cache import ArraySpec, Entry, Examples, Store, UsageError
from whence.cache.jobs.partitions import run_job
from whence.cache.model.batches import BatchSource, CapturedBatch
from whence.cache.store.layout import Shard

from ..chosen import chosen
from ..curvature import Curvature
from ..scoring.queries import check_gradients
from ..scoring.rows import RowWork, gradients_in, row_inputs, shard_rows
from ..scoring.top import largest
from .neighbours import Lists, Opened, build_lists
from .sketches import Fixed, Ranked, Sketch, plan_sketch
from .woodbury import Subspace, subspace

LAYOUT = 2  # of the rows; part of the key, so that rows of another layout are not misread
BLOCK_ROWS = 8192  # rows of the index that are compared with the queries at a time


@dataclass(frozen=True)
class Compress:
    """Sketches of a batch's gradients, [b width], in the order of the plan's sites."""

    factors: Curvature
    sketch: Sketch

    def __call__(self, source: BatchSource) -> Callable[[CapturedBatch], np.ndarray]:
        kernels = {name: site.rows() for name, site in plan_sketch(self.factors, self.sketch).items()}

        def values(batch: CapturedBatch) -> np.ndarray:
            parts = [kernel(batch.inputs[name], batch.grads[name]) for name, kernel in kernels.items()]
            return np.asarray(jnp.concatenate(parts, 1), np.float32)[: len(batch.rows)]

        return values


@dataclass(frozen=True)
class _Rows:
    """Sketches of one shard in 16 bits: float16 after division by each row's largest number, which is stored beside."""

    rows: RowWork

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        values = self.rows(shard)["values"]
        top = np.abs(values).max(1)
        scale = np.where(top > 0, top, 1.0).astype(np.float32)
        return {"rows": (values / scale[:, None]).astype(np.float16), "scale": scale}


class Hits(NamedTuple):
    """ids, scores [q c]: the candidates of every query, best first, and their influence in nats (approximate if they
    are from `Index.search`, exact if from `Index.rerank`)."""

    ids: Int64[np.ndarray, "q c"]
    scores: Float[np.ndarray, "q c"]


@dataclass(frozen=True)
class Index:
    """An index in the store; `build_index` builds it.

    entry: in the store. factors: that it was built with. train: the examples that it indexes; only `rerank` runs them.
    lists: how candidates are found; None reads every row.

    Every method with queries raises ModelError if the model is not the one that was fitted, and DataError for a query
    whose gradient is zero.
    """

    entry: Entry
    factors: Curvature
    sketch: Sketch
    train: Examples
    lists: Lists | None = None

    @property
    def ids(self) -> Int64[np.ndarray, " n"]:
        """Ids of the indexed examples, in the order of `scores`."""
        return self.train.ids

    def search(self, queries: Examples, candidates: int = 100) -> Hits:
        """The best candidates of every query by approximate influence, from the store alone, a block of rows at a
        time, or from the lists."""
        if self.lists is not None:
            return self._from_lists(self.query_sketches(queries), candidates)
        best = np.full((len(queries), 0), -np.inf, np.float32)
        rows = np.zeros((len(queries), 0), np.int64)
        for start, scores in self._blocks(self.query_sketches(queries)):
            stop = start + scores.shape[1]
            best = np.concatenate([best, scores], 1)
            rows = np.concatenate([rows, np.broadcast_to(np.arange(start, stop), scores.shape)], 1)
            best, places = largest(best, min(candidates, stop))
            rows = np.take_along_axis(rows, places, axis=1)
        return Hits(self.train.ids[rows], best)

    def _from_lists(self, sketches: Mapping[str, np.ndarray], candidates: int) -> Hits:
        flat = -np.concatenate([sketches[name] for name in plan_sketch(self.factors, self.sketch)], 1)
        assert self.lists is not None
        n = len(self.train)
        rows, products = self._opened.nearest(flat, min(candidates, n), self.lists.read(n))
        enough = int((rows >= 0).sum(1).min())  # that the lists have for every query
        if enough < 1:
            raise UsageError("The lists that were read are empty.", "Read more of them (probes).")
        return Hits(self.train.ids[rows[:, :enough]], products[:, :enough] / np.float32(self.factors.train_size))

    @property
    def _store(self) -> Store:
        assert self.factors.trained.store is not None  # it keeps the index
        return self.factors.trained.store

    @cached_property
    def _opened(self) -> Opened:
        assert self.lists is not None
        return Opened.of(build_lists(self._store, self.entry, self.lists))

    @cached_property
    def _curvature(self) -> dict[str, Subspace]:
        """Of the projected gradients, by site, from the index's rows; kept in the store."""
        inputs = {"what": "lorif", "index": self.entry.key, "directions": self.sketch.directions}
        plan, found = plan_sketch(self.factors, self.sketch), dict[str, Subspace]()
        edges = np.cumsum([0, *(site.width for site in plan.values())]).tolist()
        if not self._store.has("factors", inputs):
            arrays: dict[str, np.ndarray] = {}
            for n, (site, start, stop) in enumerate(zip(plan.values(), edges, edges[1:])):
                assert isinstance(site, Ranked)
                one = subspace(partial(self._rebuilt, site, start, stop), site.cut.scale.size, self.sketch.directions)
                arrays |= {f"vectors.{n}": one.vectors, f"values.{n}": one.values}
                arrays[f"damping.{n}"] = np.array([one.damping])
            self._store.put("factors", inputs, arrays)
        entry = self._store.open("factors", inputs)
        for n, name in enumerate(plan):
            vectors, values, damping = (entry.read(f"{part}.{n}") for part in ("vectors", "values", "damping"))
            found[name] = Subspace(vectors, values, float(damping[0]))
        return found

    def _rebuilt(self, site: Ranked, start: int, stop: int) -> Iterator[Float[np.ndarray, "t D"]]:
        """The gradients at a site that the rows stand for."""
        for _, rows in self._rows():
            for _, tile in site.rebuilt(rows[:, start:stop]):
                yield tile

    def _rows(self) -> Iterator[tuple[int, Float[np.ndarray, "n w"]]]:
        """First row and numbers of every block of rows."""
        for start in range(0, len(self.train), BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, len(self.train))
            rows = self.entry.slice("rows", start, stop).astype(np.float32)
            yield start, rows * self.entry.slice("scale", start, stop)[:, None]

    def scores(self, queries: Examples) -> Float[np.ndarray, "q n"]:
        """Approximate influence of every indexed example, in nats."""
        return np.concatenate([scores for _, scores in self._blocks(self.query_sketches(queries))], 1)

    def rerank(self, hits: Hits, queries: Examples, k: int) -> Hits:
        """The k best of each query's candidates by exact influence. Only the candidates are run. Raises the errors of
        Factors.score."""
        union = self.train.select(np.flatnonzero(np.isin(self.train.ids, hits.ids)))
        exact = self.factors.score(queries, union).values
        places = union.rows_of(hits.ids.ravel()).reshape(hits.ids.shape)
        own = np.take_along_axis(exact, places, axis=1)
        values, order = largest(own, min(k, own.shape[1]))
        return Hits(np.take_along_axis(hits.ids, order, axis=1), values)

    def query_sketches(self, queries: Examples) -> dict[str, Float[np.ndarray, "q k"]]:
        """What the queries' measurements need to be compared with rows, by site."""
        self.factors.check_model()
        run = self.factors.trained.run("measurement", self.factors.sites, queries)
        kernels = {name: site.for_queries() for name, site in plan_sketch(self.factors, self.sketch).items()}
        order, parts = [], {name: list[np.ndarray]() for name in kernels}
        for batch in run.batches(desc="queries"):
            order.append(batch.rows)
            for name, kernel in kernels.items():
                found = kernel(batch.inputs[name], batch.grads[name])
                parts[name].append(np.asarray(found, np.float32)[: len(batch.rows)])
        back = np.argsort(np.concatenate(order))
        out = {name: np.concatenate(arrays)[back] for name, arrays in parts.items()}
        check_gradients(self.factors, queries, np.sum([np.abs(array).sum(1) for array in out.values()], 0))
        if self.sketch.kind == "lorif":
            return {name: self._curvature[name].solve(array) for name, array in out.items()}
        return out

    def _blocks(self, queries: Mapping[str, np.ndarray]) -> Iterator[tuple[int, Float[np.ndarray, "q b"]]]:
        """First row and influence of every block of rows."""
        plan = plan_sketch(self.factors, self.sketch)
        edges = np.cumsum([0, *(site.width for site in plan.values())])
        for start, rows in self._rows():
            parts = [site.scores(queries[n], rows[:, a:b]) for (n, site), a, b in zip(plan.items(), edges, edges[1:])]
            yield start, -sum(parts[1:], parts[0]) / np.float32(self.factors.train_size)


def build_index(
    factors: Curvature, train: Examples | None = None, sketch: Sketch = Sketch(), *, lists: Lists | None = None
) -> Index:
    """Build, resume or open the index of training examples in the trained model's store.

    Args:
        train: the examples that are indexed; by default the training data.
        sketch: how a gradient is compressed.
        lists: find candidates through faiss's inverted lists, without reading every row. For sketches whose scores are
            inner products of rows: "largest" and "random".

    Raises UsageError without a store, for a sketch with too few numbers per site, or for one that has no lists;
    ResourceError for lists without faiss; DataError for factors without any curvature; and the errors of Factors.score.
    """
    trained = factors.trained
    train = chosen(trained.train, train)
    if trained.store is None:
        raise UsageError("An index is kept in a store; this trained model has none.", "Give TrainedModel(store=...).")
    factors.check_model()
    plans = plan_sketch(factors, sketch)
    if lists is not None and not all(isinstance(plan, Fixed) for plan in plans.values()):
        raise UsageError(
            f"The rows of a {sketch.kind!r} sketch are factors, which inverted lists cannot compare.",
            "Use the sketch 'largest' or 'random' with lists, or scan.",
        )
    width = sum(plan.width for plan in plans.values())
    inputs = index_inputs(factors, train, sketch)
    rows = RowWork([(factors, Compress(factors, sketch))], train, (width,), "index", gradients_in(inputs))
    specs = {"rows": ArraySpec((len(train), width), "float16"), "scale": ArraySpec((len(train),), "float32")}
    entry = run_job(
        trained.store, "gradients", inputs, specs, _Rows(rows),
        shard_rows=shard_rows(len(train)), about={"train": train.ids.tolist()}, cluster=trained.cluster,
        log=trained.log, desc="index", quiet=trained.quiet,
    )  # fmt: skip
    if lists is not None:
        build_lists(trained.store, entry, lists)
    return Index(entry, factors, sketch, train, lists)


def index_inputs(factors: Curvature, train: Examples, sketch: Sketch) -> dict[str, Any]:
    """What an index is computed from, as in its key."""
    return row_inputs(factors, train, what="index", layout=LAYOUT, sketch=sketch.settings)
