"""Indexes of gradients: what each sketch stores, and how much of the exact top ten it finds; inverted lists (faiss)
against the scan of the same rows.

A transformer of two layers and width 64 has read 6,300 passages of the Python language reference; queries are passages
that it has not read. Recall is against the exact scores of the same EK-FAC factors. LoRIF's own curvature differs from
EK-FAC's, so its recall says how far the two agree.
"""

import sys
from typing import Any

import numpy as np

from .harness import Benchmark, Run
from .peers import install

bench = Benchmark(__file__, __doc__, example="sketches --quick")
KINDS: tuple[Any, ...] = ("rank", "largest", "random", "lorif")
CANDIDATES = 100
FAISS = "faiss-cpu==1.15.1"


def fitted(run: Run, train: int, queries: int) -> Any:
    """Factors of the model, its queries, and their exact scores."""
    from whence.attrib import EKFAC
    from whence.cache import LanguageModelling, TrainedModel
    from whence.problems.finetuned import passages, pretrained

    read, _, asked = passages(1, queries)
    model = pretrained(read, run.store)
    few = read.select(slice(0, train))
    trained = TrainedModel(model, few, LanguageModelling(), sites="blocks.*", store=run.store, quiet=True)
    factors = EKFAC().fit(trained)
    return factors, asked, factors.score(asked)


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

    factors, asked, exact = fitted(run, train, queries)
    table = run.table("sketch", "numbers", "bytes an example|.0f", "recall@10|.3f", "recall@10, 100 reranked|.3f",
                      title=f"{train} passages, {queries} queries")  # fmt: skip
    for kind in run.selected(KINDS):
        for width in widths:
            index = build_index(factors, sketch=Sketch(kind, width))
            hits = index.search(asked, CANDIDATES)
            alone, best = (float(recall_of(hits.ids[:, :c], exact, 10).mean()) for c in (10, CANDIDATES))
            numbers = index.entry.arrays["rows"].shape[1]
            table.row(kind, numbers, 2 * numbers + 4, alone, best)


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

    factors, asked, exact = fitted(run, train, queries)
    table = run.table("sketch", "lists read", "of lists", "of the scan's 100 best|.3f", "recall@10, 100 reranked|.3f",
                      title=f"{train} passages, {queries} queries, width {width}")  # fmt: skip
    for kind in run.selected(("largest", "random")):
        scan = build_index(factors, sketch=Sketch(kind, width)).search(asked, CANDIDATES)
        every = Lists().count(train)
        for probes in sorted({max(1, every // part) for part in (16, 8, 4, 2, 1)}):
            found = build_index(factors, sketch=Sketch(kind, width), lists=Lists(probes=probes)).search(
                asked, CANDIDATES
            )
            share = float(np.mean([np.isin(best, row).mean() for best, row in zip(scan.ids, found.ids)]))
            table.row(kind, probes, every, share, float(recall_of(found.ids, exact, 10).mean()))


if __name__ == "__main__":
    bench.main()
