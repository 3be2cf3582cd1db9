"""`whence attrib select`: choose training examples for queries."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whence.options import Count

from ._attrib_job import Job
from ._queries import QueryOptions, save_ids
from ._shared import Printed


@dataclass(frozen=True, kw_only=True)
class Select(QueryOptions, Job, Printed):
    """Choose the training examples that serve the queries, and write their ids.

    top: highest mean influence over the queries. bids: one at a time, the example that adds most to the query that is
    served worst so far. dsir: sampled by how well its n-grams match the queries' text; needs no gradient.

    Example:

        whence attrib select --how bids --k 64 --out out/ids.txt
    """

    how: Literal["top", "bids", "dsir"] = "top"
    """The rule."""
    k: Count = 100
    """How many examples to choose."""
    by: Literal["mean", "max"] = "mean"
    """top: rank by the mean or by the largest influence over the queries."""
    task: str | None = None
    """bids: what queries of one task share, such as title; by default each query is a task."""
    out: Path | None = None
    """Write the ids: .txt (one per line), .csv or .json."""

    def run(self) -> None:
        from whence.attrib.selection import bids, dsir, top_k
        from whence.cache.errors import UsageError

        loaded = self.load()
        queries = self.read_queries(loaded.corpus)
        if self.task is not None and self.task not in queries.about:
            known = ", ".join(queries.about) or "nothing"
            raise UsageError(f"The queries have no {self.task!r}.", f"What is known about them: {known}.")
        if self.how == "dsir":
            ids = dsir(queries, loaded.train, self.k, seed=self.seed)
        elif self.how == "bids":
            tasks = None if self.task is None else list(queries.about[self.task])
            ids = bids(loaded.fitted.score(queries), self.k, tasks)
        else:
            ids = top_k(loaded.fitted.score(queries), self.k, self.by)
        if self.out is not None:
            save_ids(self.out, ids)
        rows = [loaded.titled.line(int(i), 0.0) for i in ids]
        for row in rows:
            del row["nats"]
        lines = [f"  {row['id']:>10}  {row['title']}" for row in rows[:10]]
        head = f"{len(ids)} of {len(loaded.train)} examples by {self.how}"
        more = ["  ..."] if len(rows) > len(lines) else []
        where = f"written: {self.out}" if self.out else "--out FILE writes the ids"
        self.show({"how": self.how, "selected": rows}, "\n".join([head, *lines, *more, where]))
