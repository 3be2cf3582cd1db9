"""What scale costs in agreement: ranks, precision, index and prefilters against exact scores; the kernels' rates.

On the demo's model and the language reference (trained on first use), or with --quick on an untrained one. Queries are
the data's own and, with --completions, the last one to eight tokens of passages that are not scored.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from whence import attrib
from whence.attrib import kernels
from whence.attrib.index.prefilter import RULES, lexical_scores
from whence.attrib.index.recall import recall_by_share, recall_of
from whence.attrib.scoring import contraction
from whence.attrib.scoring.lowrank import LowRank, truncated
from whence.attrib.scoring.queries import exact_queries
from whence.attrib.scoring.rows import row_source
from whence.cache import Examples, LanguageModelling, Store, TrainedModel, gradients
from whence.corpora import language_reference

from .harness import Benchmark, Run
from .timing import best, paired
from .transformer import correlation

bench = Benchmark(__file__, __doc__, example="--examples 300 --completions 56")
RANKS = (1, 2, 4, 8, 16, 32, 64)


class Problem(NamedTuple):
    """The queries, and factors bound to the examples that are scored."""

    factors: attrib.Factors
    queries: Examples

    def truncated_scores(self, rank: int, weighted: bool) -> np.ndarray:
        """[query, train], with the preconditioned query gradients truncated to this rank."""
        whole, per_site = exact_queries(self.factors, self.queries), self.factors.per_site
        low = {n: truncated(value, per_site[n], rank, weighted).dense() for n, value in whole.items()}
        train = self.factors.trained.train
        out = np.zeros((len(self.queries), len(train)), np.float32)
        for batch in row_source(self.factors, train).batches(desc=f"rank {rank}"):
            for n, query in low.items():
                found = kernels.pair_products(query, batch.inputs[n], batch.grads[n])
                out[:, batch.rows] -= np.asarray(found)[:, : len(batch.rows)]
        return out / self.factors.train_size


def problem(store: Store, tiny: bool, examples: int | None, completions: int) -> Problem:
    from whence.corpora import reference_model
    from whence.language_model import Shape, new_model

    docs = language_reference()
    train, queries = docs.train, docs.queries
    if tiny:
        assert docs.vocabulary is not None
        model = new_model(Shape(layers=1, width=32, heads=2, vocabulary=len(docs.vocabulary)))
        train, queries = train.select(range(48)), queries.select(range(4))
    else:
        model = reference_model(store)
    trained = TrainedModel(model, train, LanguageModelling(), sites="*.mlp.*", store=store)
    factors = attrib.EKFAC().fit(trained)
    if examples:
        order = np.random.default_rng(1).permutation(len(train))
        queries = with_completions(queries, train.select(order[examples:]), completions)
        trained = trained.replace(train=train.select(np.sort(order[:examples])))
    gradients(trained.run("loss", factors.sites), store)
    return Problem(factors.on(trained), queries)


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
    factors, queries, train = *on, on.factors.trained.train
    exact = factors.score(queries, rank=None)
    run.say(f"{len(train)} examples, {len(queries)} queries, {len(factors.sites)} sites")
    table = run.table("rank", "weighted|.5f", "plain|.5f", title="Pearson of low-rank with exact scores")
    for rank in RANKS:
        found = (on.truncated_scores(rank, weighted) for weighted in (True, False))
        table.row(rank, *(correlation(scores, exact.values) for scores in found))
    run.say()
    for precision in ("tf32", "bfloat16"):
        found = factors.score(queries, rank=None, precision=precision)
        run.say(f"{precision} against float32 products: Pearson {correlation(found.values, exact.values):.5f}")
    table = run.table(
        "index", "width", "MB|.1f", "Pearson|.4f", "recall@10|.3f", "in 50|.3f", "in 100|.3f",
        title="An index alone, and its 50 and 100 best, which a rerank would order exactly",
    )  # fmt: skip
    for width in (512, 2048, 8192):
        for kind in ("rank", "largest", "random", "lorif"):
            index = attrib.index.build_index(factors, sketch=attrib.index.Sketch(kind, width))
            hits = index.search(queries, 100).ids
            recall = [recall_of(hits[:, :k], exact, 10).mean() for k in (10, 50, 100)]
            used, agreed = index.entry.arrays["rows"].shape[1], correlation(index.scores(queries), exact.values)
            table.row(kind, used, index.entry.nbytes / 1e6, agreed, *recall)
    run.say()
    for rule in RULES:
        run.say(recall_by_share(lexical_scores(queries, train, rule), exact, rule=rule))


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
        forms = (
            (kernels.rank_products, tuple(low)), (kernels.rebuilt_products, tuple(low)),
            (kernels.pair_products, (low.dense(),)),
        )  # fmt: skip
        seconds = [best(lambda of=of, query=query: jax.block_until_ready(of(*query, a, g))) for of, query in forms]
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
