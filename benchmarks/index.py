"""Indexes of gradients: what each sketch stores, and how much of the exact top ten it finds; inverted lists (faiss)
against the scan of the same rows.

A transformer of two layers and width 64 has read 6,300 passages of the Python language reference; queries are passages
that it has not read. Recall is against the exact scores of the same EK-FAC factors. LoRIF's own curvature differs from
EK-FAC's, so its recall says how far the two agree.

`many` has more rows than there are passages. A row is the sketch of a passage drawn at random plus the difference of
two others divided by the root of 2: twice the covariance of the real sketches, and no row twice. They have no passages,
so there is nothing to rerank: recall is against the scan of the same rows. The two searches alternate, with one thread.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .harness import Benchmark, Run
from .peers import install
from .timing import paired, timed

bench = Benchmark(__file__, __doc__, example="sketches --quick")
KINDS: tuple[Any, ...] = ("rank", "largest", "random", "lorif")
CANDIDATES = 100
FAISS = "faiss-cpu==1.15.1"
SHARD = 65536  # rows of `many`


def fitted(run: Run, train: int, queries: int) -> Any:
    """Factors of the model, and its queries."""
    from whence.attrib import EKFAC
    from whence.cache import LanguageModelling, TrainedModel
    from whence.problems.finetuned import passages, pretrained

    read, _, asked = passages(1, queries)
    model = pretrained(read, run.store)
    few = read.select(slice(0, train))
    trained = TrainedModel(model, few, LanguageModelling(), sites="blocks.*", store=run.store, quiet=True)
    return EKFAC().fit(trained), asked


@bench.case(quick={"train": 200, "queries": 4, "widths": (256,)})
def sketches(run: Run, train: int = 6000, queries: int = 24, widths: tuple[int, ...] = (512, 2048)) -> None:
    """Recall of every sketch by its width, without and with the exact scores of its 100 best.

    Args:
        train: passages that are indexed.
        queries: passages that are asked for.
        widths: numbers per example.
    """
    from whence.attrib.index import Sketch, build_index
    from whence.attrib.index.recall import recall_of

    factors, asked = fitted(run, train, queries)
    exact = factors.score(asked)
    table = run.table("sketch", "numbers", "bytes an example|.0f", "MB beside them|.1f", "recall@10|.3f",
                      "recall@10, 100 reranked|.3f", title=f"{train} passages, {queries} queries")  # fmt: skip
    for kind in run.selected(KINDS):
        for width in widths:
            index = build_index(factors, sketch=Sketch(kind, width))
            hits = index.search(asked, CANDIDATES)
            alone, best = (float(recall_of(hits.ids[:, :c], exact, 10).mean()) for c in (10, CANDIDATES))
            numbers = index.entry.arrays["rows"].shape[1]
            own = index._curvature.values() if kind == "lorif" else ()
            beside = sum(site.vectors.nbytes + site.values.nbytes for site in own)
            table.row(kind, numbers, 2 * numbers + 4, beside / 1e6, alone, best)


@bench.case(quick={"train": 200, "queries": 4, "width": 256})
def lists(run: Run, train: int = 6000, queries: int = 24, width: int = 512) -> None:
    """faiss's inverted lists over the rows of a sketch: how many of the scan's 100 best they find, by the lists that
    are read.

    Args:
        train: passages that are indexed.
        queries: passages that are asked for.
        width: numbers per example.
    """
    if folder := install((FAISS,)):
        sys.path.append(folder)
    from whence.attrib.index import Lists, Sketch, build_index
    from whence.attrib.index.recall import recall_of

    factors, asked = fitted(run, train, queries)
    exact = factors.score(asked)
    table = run.table("sketch", "lists read", "of lists", "of the scan's 100 best|.3f", "recall@10, 100 reranked|.3f",
                      title=f"{train} passages, {queries} queries, width {width}")  # fmt: skip
    for kind in run.selected(("largest", "random")):
        index = build_index(factors, sketch=Sketch(kind, width), lists=Lists())
        scan = replace(index, lists=None).search(asked, CANDIDATES)
        for probes, every in parts(train):
            found = replace(index, lists=Lists(probes=probes)).search(asked, CANDIDATES)
            table.row(kind, probes, every, shared(scan.ids, found.ids), float(recall_of(found.ids, exact, 10).mean()))


def parts(rows: int) -> Iterator[tuple[int, int]]:
    """How many lists are read, and how many there are."""
    from whence.attrib.index import Lists

    every = Lists().count(rows)
    return ((probes, every) for probes in sorted({max(1, every // part) for part in (64, 32, 16, 8, 4, 2, 1)}))


def shared(wanted: np.ndarray, found: np.ndarray) -> float:
    """The share of each row of `wanted` that is in that of `found`, the mean over rows."""
    return float(np.mean([np.isin(one, other).mean() for one, other in zip(wanted, found)]))


@dataclass(frozen=True)
class Drawn:
    """Rows of a shard of `many`, from real ones."""

    real: np.ndarray

    def __call__(self, shard: Any) -> dict[str, np.ndarray]:
        rng, count = np.random.default_rng([0, shard.start]), shard.stop - shard.start
        one, two, three = (self.real[rng.integers(0, len(self.real), count)] for _ in range(3))
        rows = one + (two - three) / np.float32(np.sqrt(2))
        scale = np.abs(rows).max(1)
        return {"rows": (rows / scale[:, None]).astype(np.float16), "scale": scale}


@bench.case(quick={"rows": 5000, "train": 200, "queries": 4, "width": 64}, default=False)
def many(run: Run, rows: int = 1_000_000, train: int = 6000, queries: int = 24, width: int = 256) -> None:
    """The same from a million rows on: recall against the scan, and its time over that of the lists, which alternate.

    Args:
        rows: that are searched, drawn as the page says.
        train: passages whose sketches they are drawn from.
        queries: passages that are asked for, all in one search.
        width: numbers per row.
    """
    if folder := install((FAISS,)):
        sys.path.append(folder)
    from whence.attrib.index import Lists, Sketch, build_index
    from whence.attrib.index.neighbours import build_lists
    from whence.cache import ArraySpec, Examples, Store
    from whence.cache.jobs.partitions import run_job

    factors, asked = fitted(run, train, queries)
    table = run.table("sketch", "lists read", "of lists", "recall@10|.3f", "of the 100 best|.3f",
                      "scan's time over it", title=f"{rows:,} rows of {width} numbers, {queries} queries")  # fmt: skip
    seconds = {}
    for kind in run.selected(("largest", "random")):
        index = build_index(factors, sketch=Sketch(kind, width))
        real = index.entry.read("rows").astype(np.float32) * index.entry.read("scale")[:, None]
        specs = {"rows": ArraySpec((rows, real.shape[1]), "float16"), "scale": ArraySpec((rows,), "float32")}
        with TemporaryDirectory() as folder:
            store = Store(folder)
            entry = run_job(store, "gradients", {"of": kind}, specs, Drawn(real), shard_rows=SHARD, quiet=True)
            names = Examples({"x": np.zeros((rows, 1), np.float32)}, np.arange(rows))
            there = factors.on(factors.trained.replace(store=store))
            scan = replace(index, entry=entry, factors=there, train=names)
            seconds[kind], _ = timed(partial(build_lists, store, entry, Lists()), time.process_time)
            for probes, every in parts(rows):
                part = replace(scan, lists=Lists(probes=probes))
                wanted, found = (way.search(asked, CANDIDATES).ids for way in (scan, part))  # reads the lists, once
                ways = {"scan": partial(scan.search, asked), "lists": partial(part.search, asked)}
                ratio = str(paired(ways, 3, 0).ratio("scan", "lists"))
                table.row(kind, probes, every, shared(wanted[:, :10], found[:, :10]), shared(wanted, found), ratio)
    built = ", ".join(f"{each:.0f} ({kind})" for kind, each in seconds.items())
    run.say(f"\nCPU seconds to build the lists, once: {built}.")


if __name__ == "__main__":
    bench.main()
