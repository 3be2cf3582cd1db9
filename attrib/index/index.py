"""A compressed index: a few hundred to a few thousand numbers an example, in 16 bits, that answer later queries from
the store alone; then the best candidates are scored exactly.

What is kept of an example is a sketch of its gradient (sketches.py); of a query as much as its sketch asks for.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int64
from torch import nn

from whence.cache import ArraySpec, Entry, Examples, Shard, Store, Task, key_of, run_job
from whence.cache.model.batches import BatchSource, CapturedBatch

from .factors import Factors
from .method import FitOptions, make_run
from .queries import check_gradients
from .scores import RowWork, check_model, prepared_once, score, score_inputs, shard_rows
from .sketches import Sketch, plan_sketch
from .topk import ends

if TYPE_CHECKING:
    import xarray

LAYOUT = 2  # of the rows; part of the key, so that rows of another layout are not misread
BLOCK_ROWS = 8192  # rows of the index that are looked at together


@dataclass(frozen=True)
class Compress:
    """Sketches of a batch's gradients, [b width], in the order of the plan's sites."""

    factors: Factors
    sketch: Sketch

    def __call__(self, source: BatchSource) -> Callable[[CapturedBatch], np.ndarray]:
        kernels = {name: site.rows() for name, site in plan_sketch(self.factors, self.sketch).items()}

        def each(batch: CapturedBatch) -> np.ndarray:
            parts = [kernel(batch.inputs[name], batch.grads[name]) for name, kernel in kernels.items()]
            return np.asarray(jnp.concatenate(parts, 1), np.float32)[: len(batch.rows)]

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

    def asked(
        self, model: nn.Module, task: Task, queries: Examples, options: FitOptions = FitOptions()
    ) -> dict[str, Float[np.ndarray, "q k"]]:
        """What the queries' measurements need to be compared with rows, by site. Raises as `score`."""
        check_model(self.factors, model)
        run = make_run(model, task, queries, self.factors.sites, "measurement", 0, options)
        kernels = {name: site.asked() for name, site in plan_sketch(self.factors, self.sketch).items()}
        order, parts = [], {name: list[np.ndarray]() for name in kernels}
        for batch in run.batches(desc="queries", quiet=options.quiet):
            order.append(batch.rows)
            for name, kernel in kernels.items():
                found = kernel(batch.inputs[name], batch.grads[name])
                parts[name].append(np.asarray(found, np.float32)[: len(batch.rows)])
        back = np.argsort(np.concatenate(order))
        out = {name: np.concatenate(arrays)[back] for name, arrays in parts.items()}
        check_gradients(queries, np.sum([np.abs(array).sum(1) for array in out.values()], 0))
        return out

    def search(
        self, model: nn.Module, task: Task, queries: Examples, candidates: int = 100, options: FitOptions = FitOptions()
    ) -> Hits:
        """The best candidates of every query, from the store alone: no training data, a block of rows at a time."""
        best = np.full((len(queries), 0), -np.inf, np.float32)
        rows = np.zeros((len(queries), 0), np.int64)
        for start, scores in self._blocks(self.asked(model, task, queries, options)):
            stop = start + scores.shape[1]
            best = np.concatenate([best, scores], 1)
            rows = np.concatenate([rows, np.broadcast_to(np.arange(start, stop), scores.shape)], 1)
            best, places = ends(best, min(candidates, stop))
            rows = np.take_along_axis(rows, places, axis=1)
        return Hits(self.ids[rows], best)

    def scores(
        self, model: nn.Module, task: Task, queries: Examples, options: FitOptions = FitOptions()
    ) -> Float[np.ndarray, "q n"]:
        """Approximate influence of every example, in nats."""
        return np.concatenate([scores for _, scores in self._blocks(self.asked(model, task, queries, options))], 1)

    def _blocks(self, asked: Mapping[str, np.ndarray]) -> Iterator[tuple[int, Float[np.ndarray, "q b"]]]:
        """First row and influence of every block of rows."""
        plan = plan_sketch(self.factors, self.sketch)
        edges = np.cumsum([0, *(site.width for site in plan.values())])
        for start in range(0, len(self.ids), BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, len(self.ids))
            rows = self.entry.slice("rows", start, stop).astype(np.float32)
            rows *= self.entry.slice("scale", start, stop)[:, None]
            parts = [site.scores(asked[n], rows[:, a:b]) for (n, site), a, b in zip(plan.items(), edges, edges[1:])]
            yield start, -sum(parts[1:], parts[0]) / np.float32(self.factors.count)


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
    return {**score_inputs(factors, task, train), "what": "index", "layout": LAYOUT, "sketch": asdict(sketch)}


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
