"""EK-FAC side by side with kronfluence 1.0.1: same model, same data, same statistics, one run.

Each side is a process of its own (peak memory is its own); times are inside the process, imports not counted,
compilation counted but in the rows `again`. kronfluence passes over the training data once for every 32 queries: with
--many its seconds are those of the pairwise job, multiplied up. The Markov-chain data need no download.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np

from .harness import Benchmark, Run
from .timing import paired, product_rate
from .transformer import Side, Size, bound, briefly_trained, correlation, outcomes, sequences

bench = Benchmark(__file__, __doc__, example="--many 512")


def whence_side(folder: Path) -> None:
    from whence import attrib
    from whence.attrib.index.recall import recall_of
    from whence.cache import Examples, Store, gradients

    side, store = Side(folder), Store(folder / "cache")
    trained, queries = bound(side.model, side.size, store=store)
    factors = side.time("fit", lambda: attrib.EKFAC().fit(trained))
    unstored = factors.on(trained.replace(store=None))
    found = {
        "scores": side.time("pairwise", lambda: unstored.score(queries)),
        "self_scores": side.time("self", lambda: unstored.self_influence()),
    }
    side.time("store gradients", lambda: gradients(trained.run("loss", factors.sites), store))
    side.time("pairwise, stored", lambda: factors.score(queries))
    side.time("self, stored", lambda: factors.self_influence())
    for name, method in {
        "fit, basis from an eighth": attrib.EKFAC(basis_examples=side.size.train // 8),
        "fit, products in bfloat16": attrib.EKFAC(products="bfloat16"),
    }.items():
        found[name] = side.time(name, lambda method=method: method.fit(trained)).score(queries)
    for name, method in (("fit", attrib.EKFAC()), ("fit, products in bfloat16", attrib.EKFAC(products="bfloat16"))):
        side.time(f"{name}, again", lambda method=method: method.fit(trained.replace(store=None)))
    arrays = {name: scores.values for name, scores in found.items()}
    if count := side.options["many"]:
        many = Examples.of({"input_ids": sequences(count, side.size, 2)})
        exact = side.time("many", lambda: unstored.score(many, rank=None))
        side.time("many, stored", lambda: factors.score(many, rank=None))
        index = side.time("index", lambda: attrib.index.build_index(factors))
        hits = side.time("index, queried", lambda: index.search(many, 100))
        arrays["recall"] = np.array([recall_of(hits.ids[:, :k], exact, 10).mean() for k in (10, 100)])
    side.finish("whence", **arrays)


def kronfluence_side(folder: Path) -> None:
    side = Side(folder)
    peer, train, queries = side.kronfluence()
    side.time("fit", lambda: peer.fit(train))
    scores = side.time("pairwise", lambda: peer.pairwise(queries, train))
    rank = side.time("pairwise rank 32", lambda: peer.pairwise(queries, train, rank=32))
    self_scores = side.time("self", lambda: peer.self_scores(train))
    side.finish("kronfluence", scores=scores, rank=rank, self_scores=self_scores)


def small_side(folder: Path) -> None:
    """A fit with little memory: batches that are read twice go to the store."""
    from whence import attrib
    from whence.cache import Store

    side = Side(folder)
    trained, _ = bound(side.model, side.size, store=Store(folder / "small"), memory=10**9)
    side.time("fit", lambda: attrib.EKFAC().fit(trained))
    side.finish("whence in 1 GB")


bench.side("whence", whence_side)
bench.side("whence in 1 GB", small_side)
bench.side("kronfluence", kronfluence_side)


@bench.case(quick={"train": 128, "queries": 16})
def kronfluence(run: Run, train: int = 512, queries: int = 64, many: int = 0) -> None:
    """Fit, pairwise scores, self-influence, many queries; memory; agreement; share of the machine's rate.

    Args:
        train: training examples.
        queries: queries of the pairwise job.
        many: score as many queries besides, and build and query an index of 2048 dimensions.
    """
    from whence.attrib.plan import make_plan

    size = Size(train=train, queries=queries)
    model = briefly_trained(size)
    found = outcomes(bench, size, model, ("kronfluence", "whence", "whence in 1 GB"), many=many)
    ours, theirs = dict(found["whence"].seconds), found["kronfluence"].seconds
    ours["fit, memory limit 1 GB"] = found["whence in 1 GB"].seconds["fit"]
    pairwise = min(theirs["pairwise"], theirs["pairwise rank 32"])
    times = many / size.queries
    rivals = {
        **{name: theirs["fit"] for name in ours if name.startswith("fit")},
        "pairwise": pairwise, "pairwise, stored": pairwise, "self": theirs["self"], "self, stored": theirs["self"],
        "many": pairwise * times, "many, stored": pairwise * times,
    }  # fmt: skip
    table = run.table("job", "Whence, s|.1f", "kronfluence 1.0.1, s|.1f", "ratio|.2f", title=str(size))
    for name, other in rivals.items():
        if name in ours:
            table.row(name, ours[name], other, other / ours[name])
    run.say(f"\nkronfluence pairwise: full {theirs['pairwise']:.1f} s, rank 32 {theirs['pairwise rank 32']:.1f} s")
    if many:
        alone, among = found["whence"].arrays["recall"]
        run.say(f"many: {many} queries; kronfluence's seconds are its pairwise ones times {times:g}")
        run.say(f"index: built in {ours['index']:.1f} s, queried in {ours['index, queried']:.1f} s; "
                f"recall@10 {alone:.3f}, among its 100 best {among:.3f}")  # fmt: skip
    peaks = ", ".join(f"{n} {one.peak / 1e9:.2f} GB" for n, one in found.items())
    run.say(f"peak memory: {peaks}; storing the gradients took {ours['store gradients']:.1f} s")
    w, k = found["whence"].arrays, found["kronfluence"].arrays
    for text, a, b in (
        *((f"correlation of scores, {name}, with fit", w["scores"], w[name]) for name in w if name.startswith("fit")),
        ("correlation of scores", w["scores"], k["scores"]),
        ("correlation of self_scores", w["self_scores"], k["self_scores"]),
        ("kronfluence's rank 32 with its own full", k["scores"], k["rank"]),
    ):
        run.say(f"{text}: {correlation(a, b):.4f}")
    plan = make_plan(bound(model, size)[0], queries, measure=False)
    operations, rate = {stage.name: stage.operations for stage in plan.stages}, product_rate(2048)
    score = operations.pop("score")
    for name, work, seconds in (("fit", sum(operations.values()), ours["fit"]), ("pairwise", score, ours["pairwise"])):
        run.say(f"{name}: {work / 1e12:.2f} T operations by the planner, {work / seconds / 1e9:.0f} G/s, "
                f"{work / seconds / rate:.0%} of this machine's product rate ({rate / 1e9:.0f} G/s)")  # fmt: skip


@bench.case(quick={"train": 64, "rounds": 1})
def products(run: Run, train: int = 512, queries: int = 32, rounds: int = 3) -> None:
    """A fit with products in bfloat16 beside one in float32: processor seconds, ratio of every round, agreement.

    Args:
        train: training examples.
        queries: queries whose scores are compared.
        rounds: of both fits, interleaved.
    """
    from whence import attrib

    size = Size(train=train, queries=queries)
    trained, asked = bound(briefly_trained(size), size)
    fits = {name: attrib.EKFAC(products=name, redraw=False) for name in ("float32", "bfloat16")}  # type: ignore[arg-type]
    times = paired({name: partial(fit.fit, trained) for name, fit in fits.items()}, rounds, clock=time.process_time)
    exact, rounded = (fit.fit(trained) for fit in fits.values())
    table = run.table("products", "fit, processor seconds|.1f", "ratio", title=str(size))
    table.row("float32", times.median("float32"), "")
    table.row("bfloat16", times.median("bfloat16"), str(times.ratio("float32", "bfloat16")))
    scores, own = ([f.score(asked, rank=None).values, f.self_influence().values] for f in (exact, rounded))
    for name, one, other in zip(("scores", "self-influence"), scores, own):
        run.say(f"correlation of {name}: {correlation(one, other):.5f}")


if __name__ == "__main__":
    bench.main()
