"""`whence attrib select`: choose training examples for queries."""

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from whence.cache.display.files import ENDINGS, save_table
from whence.options import Count, Positive, ending

from ._attrib_job import Job
from ._queries import QueryOptions, named_text
from ._shared import Printed


@dataclass(frozen=True, kw_only=True)
class Select(QueryOptions, Job, Printed):
    """Choose the training examples that serve the queries, and write their ids.

    top: highest mean influence over the queries. bids: one at a time, the example that adds most to the query that has
    gained least so far. dsir: sampled by how well its n-grams match the queries' text; needs no gradient. color: those
    whose loss falls most if a copy of the model trains on the queries; needs no gradient of theirs.

    Example:

        whence attrib select --how bids --k 64 --out out/ids.txt
    """

    how: Literal["top", "bids", "dsir", "color"] = "top"
    """The rule."""
    k: Count = 100
    """How many examples to choose."""
    by: Literal["mean", "max"] = "mean"
    """top: rank by the mean or by the largest influence over the queries."""
    task: str | None = None
    """bids: what queries of one task share, such as title; by default each query is a task."""
    epochs: Count = 3
    """color: over the queries, of the copy's training."""
    rate: Positive = 1e-3
    """color: learning rate of that training (AdamW)."""
    out: Annotated[Path, ending(".txt", *ENDINGS)] | None = None
    """Write the ids: .txt (one per line), .csv, .parquet or .json."""

    def run(self) -> None:
        from whence.attrib.selection import bids, color, dsir, top_k
        from whence.cache.errors import UsageError
        from whence.language_model import Training, train_language_model

        loaded, queries = self.asked(self.load())
        if self.task is not None and self.task not in queries.about:
            known = ", ".join(queries.about) or "nothing"
            raise UsageError(f"The queries have no {self.task!r}.", f"What is known about them: {known}.")
        if self.how == "dsir":
            ids = dsir(queries, loaded.train, self.k, seed=self.seed)
        elif self.how == "color":
            prior = loaded.trained
            training = Training(self.epochs, batch=16, rate=self.rate, seed=self.seed)
            conditional = deepcopy(prior.model)
            train_language_model(conditional, queries, training, desc="training on the queries", quiet=self.quiet)
            ids = color(prior, prior.replace(model=conditional, store=None), self.k)
        elif self.how == "bids":
            tasks = None if self.task is None else list(queries.about[self.task])
            ids = bids(loaded.fitted.score(queries, loaded.train), self.k, tasks)
        else:
            ids = top_k(loaded.fitted.score(queries, loaded.train), self.k, self.by)
        if self.out is not None:
            save_ids(self.out, [int(i) for i in ids])
        rows = [loaded.titled.line(int(i), 0.0) for i in ids]
        for row in rows:
            del row["nats"]
        lines = [f"  {named_text(row)}" for row in rows[:10]]
        head = f"{len(ids)} of {len(loaded.train)} examples by {self.how}"
        more = ["  ..."] if len(rows) > len(lines) else []
        where = f"written: {self.out}" if self.out else "--out FILE writes the ids"
        self.show({"how": self.how, "selected": rows}, "\n".join([head, *lines, *more, where]))


def save_ids(path: Path, ids: list[int]) -> None:
    """Write ids in their order: .txt (one per line), .json (a list), or a table with the column id."""
    forms = {".txt": "\n".join(map(str, ids)), ".json": json.dumps(ids)}
    if path.suffix in forms:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(forms[path.suffix] + "\n")
    else:
        save_table(path, [{"id": i} for i in ids])
