"""What scale costs in agreement: ranks, precision, index and prefilters against exact scores; the kernels' rates.

On the demo's model and the language reference (trained on first use), or with --quick on an untrained one. Queries are
the data's own and, with --completions, the last one to eight tokens of passages that are not scored.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from whence.attrib.lowrank import LowRank, truncated
from whence.attrib.prefilter import RULES, lexical_scores, recall_by_share
from whence.attrib.queries import prepared_queries
from whence.attrib.scores import row_source
from whence.attrib.sketches import Sketch

from whence import attrib
from whence.attrib import contraction, kernels
from whence.attrib.index import build_index, recall_of
from whence.attrib.method import make_run
from whence.cache import Examples, LanguageModelling, Store, find_sites, gradients
from whence.corpora import language_reference

from .harness import Benchmark, Run
from .timing import best, paired

bench = Benchmark(__file__, __doc__, example="--examples 300 --completions 56")
RANKS = (1, 2, 4, 8, 16, 32, 64)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


class Problem(NamedTuple):
    """A fitted model with the examples and queries that are scored."""

    factors: Any
    model: Any
    task: Any
    queries: Examples
    train: Examples
    store: Store

    def scores(self, **options: Any) -> Any:
        return attrib.score(
            self.factors, self.model, self.task, self.queries, self.train, store=self.store, rank=None, **options
        )

    def index(self, kind: Any, width: int) -> tuple[Any, np.ndarray, np.ndarray]:
        """Index, its scores [query, train] and the ids of its 100 best."""
        index = build_index(self.factors, self.model, self.task, self.train, self.store, Sketch(kind, width))
        return index, index.scores(self.model, self.task, self.queries), index.search(
            self.model, self.task, self.queries, 100
        ).ids  # fmt: skip

    def truncated_scores(self, rank: int, weighted: bool) -> np.ndarray:
        """[query, train], with the preconditioned query gradients truncated to this rank."""
        whole = prepared_queries(self.factors, self.model, self.task, self.queries)
        low = {n: truncated(self.factors, n, value, rank, weighted).dense() for n, value in whole.items()}
        source = row_source(self.factors, self.model, self.task, self.train, self.store, attrib.FitOptions())
        out = np.empty((len(self.queries), len(self.train)), np.float32)
        for batch in source.frames(desc=f"rank {rank}"):
            parts = [
                contraction.products(low[n], batch.inputs[n], batch.grads[n], "tiles")[:, : len(batch.rows)]
                for n in low
            ]
            out[:, batch.rows] = -np.asarray(sum(parts[1:], parts[0])) / len(self.train)
        return out


def problem(store: Store, tiny: bool, examples: int | None, completions: int) -> Problem:
    from whence.corpora import reference_model
    from whence.language_model import Shape, new_model

    docs, task = language_reference(), LanguageModelling()
    model, train, queries = None, docs.train, docs.queries
    if tiny:
        assert docs.vocabulary is not None
        model = new_model(Shape(layers=1, width=32, heads=2, vocabulary=len(docs.vocabulary)))
        train, queries = train.select(range(48)), queries.select(range(4))
    model = model or reference_model(store)
    sites = find_sites(model, "*.mlp.*")
    factors = attrib.EKFAC().fit(model, task, train, sites=sites, store=store)
    if examples:
        order = np.random.default_rng(1).permutation(len(train))
        queries = with_completions(queries, train.select(order[examples:]), completions)
        train = train.select(np.sort(order[:examples]))
    gradients(make_run(model, task, train, sites, "loss", 0, attrib.FitOptions()), store)
    return Problem(factors, model, task, queries, train, store)


def with_completions(queries: Examples, passages: Examples, count: int) -> Examples:
    """These queries and the first passages' last one to eight tokens in turn, given what is before them."""
    whole = [queries.columns[name] for name in ("input_ids", "labels")]
    rows = [r for r in range(len(passages)) if passages.lengths[r] > 24][:count]
    tokens = [passages.columns["input_ids"][r] for r in rows]
    last = [t[-(1 + place % 8) :] for place, t in enumerate(tokens)]
    labels = [np.concatenate([np.full(len(t) - len(end), -100, np.int64), end]) for t, end in zip(tokens, last)]
    columns = {"input_ids": [*whole[0], *tokens], "labels": [*whole[1], *labels]}
    return Examples(columns, np.arange(len(columns["labels"]), dtype=np.int64), {})


@bench.case(quick={"tiny": True})
def agreement(run: Run, tiny: bool = False, examples: int | None = None, completions: int = 0) -> None:
    """Ranks, precision, indexes and prefilters against exact scores.

    Args:
        tiny: an untrained model and 48 examples.
        examples: training examples to score, selected at random; all by default.
        completions: as many more queries, of passages that are not scored.
    """
    on = problem(run.store, tiny, examples, completions)
    exact = on.scores()
    run.say(f"{len(on.train)} examples, {len(on.queries)} queries, {len(on.factors.sites)} sites")
    table = run.table("rank", "weighted|.5f", "plain|.5f", title="Pearson of low-rank with exact scores")
    for rank in RANKS:
        table.row(rank, *(pearson(on.truncated_scores(rank, weighted), exact.values) for weighted in (True, False)))
    run.say()
    for precision in ("tf32", "bfloat16"):
        found = on.scores(precision=precision)
        run.say(f"{precision} against float32 products: Pearson {pearson(found.values, exact.values):.5f}")
    table = run.table(
        "index", "width", "MB|.1f", "Pearson|.4f", "recall@10|.3f", "in 50|.3f", "in 100|.3f",
        title="An index alone, and its 50 and 100 best, which a rerank would order exactly",
    )  # fmt: skip
    for width in (512, 2048, 8192):
        for kind in ("rank", "largest", "random"):
            index, scores, hits = on.index(kind, width)
            recall = [recall_of(hits[:, :k], exact, 10).mean() for k in (10, 50, 100)]
            used = index.entry.arrays["rows"].shape[1]
            table.row(kind, used, index.entry.nbytes / 1e6, pearson(scores, exact.values), *recall)
    run.say()
    for rule in RULES:
        run.say(recall_by_share(lexical_scores(on.queries, on.train, rule), exact, rule=rule))


@bench.case()
def rates(run: Run) -> None:
    """Each form of the contraction, and layers of equal shape one by one and stacked."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    b, s, o, i, r = 32, 128, 1024, 257, 32
    a, g = normal(b, s, i), normal(b, s, o)
    table = run.table("queries", "positions, ms|.0f", "rank, ms|.0f", "tiles, ms|.0f", "chosen")
    for q in (2, 8) if run.quick else (2, 8, 64, 256):
        low = LowRank(normal(q, o, r), normal(q, i, r))
        forms = {"positions": low, "rank": low, "tiles": low.dense()}
        seconds = [
            best(lambda query=query, form=form: jax.block_until_ready(contraction.products(query, a, g, form)))
            for form, query in forms.items()
        ]
        chosen = min(contraction.options(q, s, b, o, i, r), key=lambda work: work.operations).form
        table.row(q, *(1e3 * t for t in seconds), chosen)
    run.say()
    for width in (64, 256):
        run.say(stacked(width, rng))


def stacked(width: int, rng: np.random.Generator, layers: int = 8) -> str:
    """Layers of equal shape, their rotated squares one after the other and as one batch."""
    a, g = (jnp.asarray(rng.normal(size=(layers, 16, 32, width)), jnp.float32) for _ in range(2))
    q = jnp.asarray(np.linalg.qr(rng.normal(size=(width, width)))[0], jnp.float32)
    weight = jnp.ones((width, width), jnp.float32)

    def squares(a: Any, g: Any) -> Any:
        return kernels.weighted_squares(a, g, q, q, weight, "positions")

    batched = jax.jit(jax.vmap(squares))
    times = paired(
        {
            "one by one": lambda: jax.block_until_ready([squares(a[k], g[k]) for k in range(layers)]),
            "stacked": lambda: jax.block_until_ready(batched(a, g)),
        }
    )
    shown = ", ".join(f"{name} {1e3 * times.median(name):.1f} ms" for name in times.seconds)
    return f"{layers} layers of {width} x {width}, 16 examples of 32 positions: {shown}"


if __name__ == "__main__":
    bench.main()
