"""`whence attrib index` and `whence attrib query`: a compressed index, and queries answered from it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from whence.cache.display.files import rows_of_lists
from whence.cache.errors import UsageError
from whence.options import Count

from ._answers import Answer, Answered
from ._attrib_job import Attribution, Job
from ._queries import QueryOptions, entries_of, lists, lists_text
from ._shared import Tabled

if TYPE_CHECKING:
    from whence.attrib.index.search import Index as Built
    from whence.cache import Examples

CANDIDATES = 100  # of each query, reranked
LARGE = 1_000_000  # rows from which faiss is recommended


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """How examples are compressed."""

    kind: Literal["rank", "largest", "random", "lorif"] = "rank"
    """Keep leading singular pairs, the coordinates with the largest expected contribution, random projections, or
    pairs of random projections with a curvature of their own (LoRIF)."""
    width: Count = 2048
    """Values per example, 16 bits each."""
    search: Literal["scan", "faiss"] = "scan"
    """Read every row, or (kinds largest and random) faiss's inverted lists, for about a million examples or more."""
    probes: Count | None = None
    """faiss: lists that a query reads; an eighth of them by default."""

    def build_index(self, loaded: Attribution) -> "Built":
        from whence.attrib.index import Lists, Sketch, build_index

        if self.probes is not None and self.search == "scan":
            raise UsageError("A scan reads every row.", "Leave out --probes, or add --search faiss.")
        lists = Lists(probes=self.probes) if self.search == "faiss" else None
        return build_index(
            loaded.factors, loaded.train, sketch=Sketch(self.kind, self.width, loaded.job.seed), lists=lists
        )


@dataclass(frozen=True, kw_only=True)
class Index(Compressed, Job, Tabled):
    """Compress every training example's gradient to a few hundred or thousand values in the store.

    Afterwards `whence attrib query` answers from the store. Recall@10 is measured on training examples as queries
    (each without itself), against their exact scores.

    Example:

        whence attrib index --width 1024 --check 8
    """

    kept = "`whence attrib query` answers from it; it is stored in"
    check: int = 8
    """Training examples to measure recall with; 0 for none."""

    def run(self) -> None:
        loaded = self.load()
        index = self.build_index(loaded)
        width = index.entry.arrays["rows"].shape[1]
        facts: dict[str, Any] = {
            "key": index.entry.key,
            "examples": len(index.ids),
            "width": width,
            "bytes": index.entry.nbytes,
            "kind": self.kind,
        }
        if self.check > 0:
            facts |= self._recall(loaded, index)
        text = f"{facts['examples']} examples, width {width}, {facts['bytes'] / 1e6:.1f} MB: {facts['key'][:12]}"
        if self.search == "scan" and self.kind in ("largest", "random") and len(index.ids) >= LARGE:
            text += f"\n{len(index.ids)} rows: --search faiss answers a query from a part of them"
        if "recall_of_scan" in facts:
            text += f"\nthe lists find {facts['recall_of_scan']:.3f} of the {CANDIDATES} best of a scan"
        if self.check > 0:
            text += f"\nwith {facts['checked']} training examples as queries, {recall_line(facts, CANDIDATES)}"
        self.show_table(facts, text, [facts])

    def _recall(self, loaded: Attribution, index: "Built") -> dict[str, Any]:
        rows = np.random.default_rng(0).permutation(len(loaded.train))[: self.check]
        queries = loaded.train.select(np.sort(rows))
        hits = index.search(queries, CANDIDATES + 1)
        own = {int(i): int(i) for i in queries.ids}
        others = np.array([[i for i in row if i != q][:CANDIDATES] for row, q in zip(hits.ids.tolist(), queries.ids)])
        found = {"checked": len(queries), **recalls(loaded, queries, others, own)}
        if index.lists is not None:
            scanned = replace(index, lists=None).search(queries, CANDIDATES).ids
            share = [np.isin(best, row).mean() for best, row in zip(scanned, hits.ids)]
            found["recall_of_scan"] = float(np.mean(share))
        return found


@dataclass(frozen=True, kw_only=True)
class Query(Answered, QueryOptions, Compressed, Job, Tabled):
    """Answer queries from the index, then score the best candidates exactly.

    Finding candidates needs the store and the model, no training data; the exact scores run the candidates only.
    With --check the whole data are scored too, and recall@10 is measured.

    Example:

        whence attrib query --prompt "The yield expression is used when" --completion " defining a generator" --check
    """

    kept = "stored in"
    candidates: Count = CANDIDATES
    """Candidates that the index finds for each query."""
    top: Count = 10
    """Candidates that are listed."""
    rerank: bool = True
    """Do not score the candidates exactly: list them by the scores of the index."""
    check: bool = False
    """Score everything as well, and report recall@10 of the index alone and after reranking."""

    def answer(self) -> Answer:
        from whence.attrib.annotations import impossible
        from whence.attrib.index.search import Hits

        if self.candidates < self.top:
            raise UsageError(f"{self.candidates} candidates for a list of {self.top}.", "Find at least as many.")
        loaded, queries = self.asked(self.load())
        index = self.build_index(loaded)
        hits = index.search(queries, self.candidates)
        best = Hits(hits.ids[:, : self.top], hits.scores[:, : self.top])
        if self.rerank:
            best = index.rerank(hits, queries, self.top)
        factors, logprob = loaded.factors, loaded.factors.logprobs(queries)
        marks = [] if logprob is None else [impossible(best.scores, logprob, factors.measure)]
        entries = lists(loaded.titled, entries_of(queries, logprob), {"helpful": (best.ids, best.scores, *marks)})
        facts: dict[str, Any] = {"index": index.entry.key, "exact": self.rerank, "queries": entries}
        facts["candidates"] = hits.ids.shape[1]
        return Answer(facts | (recalls(loaded, queries, hits.ids) if self.check else {}))

    def present(self, answer: Answer) -> None:
        facts = answer.facts
        check = f"\n\n{recall_line(facts, facts['candidates'])}" if self.check else ""
        text = f"{lists_text(facts['queries'])}{check}\n\nfrom the index {facts['index'][:12]}"
        self.show_table(facts, text, rows_of_lists(facts["queries"]))


def recalls(
    loaded: Attribution, queries: "Examples", found: np.ndarray, own: dict[int, int] | None = None
) -> dict[str, float]:
    """Recall@10 against the exact scores, of the index's candidates [q c] in its own order and once they are reranked
    (which lists every one of the exact ten that is among them)."""
    from whence.attrib.index.recall import recall_of

    exact = loaded.factors.score(queries, loaded.train)
    return {
        "recall_at_10_index": float(recall_of(found[:, :10], exact, 10, own).mean()),
        "recall_at_10_reranked": float(recall_of(found, exact, 10, own).mean()),
    }


def recall_line(facts: dict[str, Any], candidates: int) -> str:
    return (
        f"recall@10 against the exact scores: {facts['recall_at_10_index']:.3f} by the index alone, "
        f"{facts['recall_at_10_reranked']:.3f} after its {candidates} best are reranked"
    )
