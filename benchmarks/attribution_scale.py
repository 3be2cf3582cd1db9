"""What scale costs in agreement: ranks, precision, index and prefilters against exact scores; the kernels' rates.

    python -m benchmarks.attribution_scale [--tiny] [--examples 300 --completions 56]

On the demo's model and the language reference (trained on first use), or with --tiny on an untrained one. Queries are
the data's own and, with --completions, the last one to eight tokens of passages that are not scored.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from whence import attrib
from whence.attrib import contraction, kernels
from whence.attrib.index import build_index, recall_of
from whence.attrib.lowrank import LowRank, truncated
from whence.attrib.method import make_run
from whence.attrib.prefilter import RULES, lexical_scores, recall_by_share
from whence.attrib.queries import prepared_queries
from whence.attrib.scores import row_source
from whence.attrib.sketches import Sketch
from whence.cache import Examples, LanguageModelling, Store, find_sites, gradients
from whence.corpora import language_reference

RANKS = (1, 2, 4, 8, 16, 32, 64)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def problem(tiny: bool, store: Store) -> tuple[Any, Any, Any]:
    """Model, training examples and queries."""
    from whence.demo_model import reference_model
    from whence.language_model import Shape, new_model

    docs = language_reference()
    if not tiny:
        return reference_model(store), docs.train, docs.queries
    assert docs.vocabulary is not None
    model = new_model(Shape(layers=1, width=32, heads=2, vocabulary=len(docs.vocabulary)))
    return model, docs.train.select(range(48)), docs.queries.select(range(4))


def with_completions(queries: Examples, passages: Examples, count: int) -> Examples:
    """These queries and the first passages' last one to eight tokens in turn, given what is before them."""
    whole = [queries.columns[name] for name in ("input_ids", "labels")]
    rows = [r for r in range(len(passages)) if passages.lengths[r] > 24][:count]
    tokens = [passages.columns["input_ids"][r] for r in rows]
    ends = [t[-(1 + place % 8) :] for place, t in enumerate(tokens)]
    labels = [np.concatenate([np.full(len(t) - len(end), -100, np.int64), end]) for t, end in zip(tokens, ends)]
    columns = {"input_ids": [*whole[0], *tokens], "labels": [*whole[1], *labels]}
    return Examples(columns, np.arange(len(columns["labels"]), dtype=np.int64), {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--root", help="the store")
    parser.add_argument("--examples", type=int, help="training examples to score, drawn at random; all by default")
    parser.add_argument("--completions", type=int, default=0, help="as many more queries, of passages not scored")
    options = parser.parse_args()
    store, task = Store(options.root), LanguageModelling()
    model, train, queries = problem(options.tiny, store)
    sites = find_sites(model, "*.mlp.*")
    factors = attrib.EKFAC().fit(model, task, train, sites=sites, store=store)
    if options.examples:
        drawn = np.random.default_rng(1).permutation(len(train))
        queries = with_completions(queries, train.select(drawn[options.examples :]), options.completions)
        train = train.select(np.sort(drawn[: options.examples]))
    gradients(make_run(model, task, train, sites, "loss", 0, attrib.FitOptions()), store)  # one pass of the model
    exact = attrib.score(factors, model, task, queries, train, store=store, rank=None)
    print(f"{len(train)} examples, {len(queries)} queries, {len(sites)} sites\n")
    ranks(factors, model, task, queries, train, exact.values, store)
    for precision in ("tf32", "bfloat16"):
        found = attrib.score(factors, model, task, queries, train, store=store, rank=None, precision=precision)
        print(f"{precision} against float32 products: Pearson {pearson(found.values, exact.values):.5f}")
    print()
    indexes(factors, model, task, queries, train, exact, store)
    for rule in RULES:
        print(recall_by_share(lexical_scores(queries, train, rule), exact, rule=rule))
    print()
    rates()


def ranks(factors: Any, model: Any, task: Any, queries: Any, train: Any, exact: np.ndarray, store: Store) -> None:
    """Pearson of low-rank with exact scores: weighted and plain truncation, the same frames for all."""
    whole = prepared_queries(factors, model, task, queries)
    source = row_source(factors, model, task, train, store, attrib.FitOptions())
    print("| rank | weighted | plain |\n|---|---|---|")
    for rank in RANKS:
        found = []
        for weighted in (True, False):
            low = {name: truncated(factors, name, value, rank, weighted).dense() for name, value in whole.items()}
            out = np.empty(exact.shape, np.float32)
            for frame in source.frames(desc=f"rank {rank}"):
                parts = [
                    contraction.products(low[n], frame.inputs[n], frame.grads[n], "tiles")[:, : len(frame.rows)]
                    for n in low
                ]
                out[:, frame.rows] = -np.asarray(sum(parts[1:], parts[0])) / len(train)
            found.append(pearson(out, exact))
        print(f"| {rank} | {found[0]:.5f} | {found[1]:.5f} |", flush=True)
    print()


def indexes(factors: Any, model: Any, task: Any, queries: Any, train: Any, exact: Any, store: Store) -> None:
    """Recall@10 of the index alone, and of its 50 and 100 best, which a rerank would order exactly."""
    print("| index | width | MB | Pearson | recall@10 | in 50 | in 100 |\n|---|---|---|---|---|---|---|")
    for width in (512, 2048, 8192):
        for kind in ("rank", "largest", "random"):
            index = build_index(factors, model, task, train, store, Sketch(kind, width))
            scores = index.scores(model, task, queries)
            hits = index.search(model, task, queries, 100).ids
            found = [recall_of(hits[:, :k], exact, 10).mean() for k in (10, 50, 100)]
            row = [
                f"{index.entry.nbytes / 1e6:.1f}",
                f"{pearson(scores, exact.values):.4f}",
                *(f"{r:.3f}" for r in found),
            ]
            print(f"| {kind} | {index.entry.arrays['rows'].shape[1]} | {' | '.join(row)} |", flush=True)
    print()


def best(work: Callable[[], Any]) -> float:
    jax.block_until_ready(work())
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def rates() -> None:
    """Each form of the contraction, and layers of equal shape one by one and stacked."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    b, s, o, i, r = 32, 128, 1024, 257, 32
    a, g = normal(b, s, i), normal(b, s, o)
    print("| queries | positions, ms | rank, ms | tiles, ms | chosen |\n|---|---|---|---|---|")
    for q in (2, 8, 64, 256):
        low = LowRank(normal(q, o, r), normal(q, i, r))
        whole = low.dense()
        times = {
            form: best(lambda held=held, form=form: contraction.products(held, a, g, form))
            for form, held in (("positions", low), ("rank", low), ("tiles", whole))
        }
        chosen = min(contraction.options(q, s, b, o, i, r), key=lambda work: work.operations).form
        row = " | ".join(f"{1e3 * times[form]:.0f}" for form in ("positions", "rank", "tiles"))
        print(f"| {q} | {row} | {chosen} |", flush=True)
    for width in (64, 256):
        stacked(width, rng)


def stacked(width: int, rng: np.random.Generator, layers: int = 8) -> None:
    """Layers of equal shape, their rotated squares one after the other and as one batch."""
    a, g = (jnp.asarray(rng.normal(size=(layers, 16, 32, width)), jnp.float32) for _ in range(2))
    q = jnp.asarray(np.linalg.qr(rng.normal(size=(width, width)))[0], jnp.float32)
    weight = jnp.ones((width, width), jnp.float32)
    batched = jax.jit(jax.vmap(lambda a, g: kernels.weighted_squares(a, g, q, q, weight, "positions")))
    apart = best(lambda: [kernels.weighted_squares(a[k], g[k], q, q, weight, "positions") for k in range(layers)])
    print(f"{layers} layers of {width} x {width}, 16 examples of 32 positions: one by one {1e3 * apart:.1f} ms, "
          f"stacked {1e3 * best(lambda: batched(a, g)):.1f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
