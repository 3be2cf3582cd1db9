"""Queries from options, and the training examples found for them: as lists, text and files."""

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.cache.errors import UsageError
from whence.options import Count

from ._shared import Loaded, title_of

if TYPE_CHECKING:
    from whence.cache import Examples
    from whence.corpora import Corpus


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """The queries."""

    prompt: str | None = None
    """A query of your own: its prompt."""
    completion: str | None = None
    """... and its completion. Begin it with the space that it needs."""
    queries: Path | None = None
    """A .jsonl or .parquet file with a prompt and a completion per row. By default the data's own queries."""
    first: Count | None = None
    """Only the first queries."""

    def read_queries(self, corpus: "Corpus") -> "Examples":
        """Raises UsageError for a prompt without completion or the reverse, or if there is no query."""
        found = self._own_queries(corpus) or corpus.queries
        if len(found) == 0:
            raise UsageError("There is no query.", "Give --prompt and --completion, or --queries FILE.")
        return found.select(slice(0, self.first)) if self.first else found

    def _own_queries(self, corpus: "Corpus") -> "Examples | None":
        from whence.corpora import load_queries
        from whence.corpora.corpus import query_examples

        if self.prompt is None and self.completion is None and self.queries is None:
            return None
        if corpus.vocabulary is None:
            raise UsageError("These data are not text.", "Use the data's own queries.")
        if self.queries is not None:
            if not self.queries.is_file():
                raise UsageError(f"There is no file {self.queries}.", "Give a .jsonl or .parquet file.")
            return load_queries(self.queries, corpus.vocabulary)
        if self.prompt is None or self.completion is None:
            raise UsageError("A query has a prompt and a completion.", "Give both --prompt and --completion.")
        return query_examples([self.prompt], [self.completion], corpus.vocabulary)


def query_text(queries: "Examples", row: int) -> str:
    """A query as text: prompt [completion], or its title."""
    about = queries.about
    if "prompt" in about and "completion" in about:
        return f"{about['prompt'][row]} [{str(about['completion'][row]).strip()}]"
    return title_of(queries, int(queries.ids[row]))


def entry_of(queries: "Examples", row: int, **found: Any) -> dict[str, Any]:
    """One query and what was found for it."""
    return {"query": int(queries.ids[row]), "asked": query_text(queries, row), **found}


def lists(loaded: Loaded, queries: "Examples", best: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """name -> (ids [q k], values [q k]) as one entry per query, with titles."""
    return [
        entry_of(queries, row, **{
            name: [
                {"id": int(i), "title": loaded.title(int(i)), "nats": float(v)}
                for i, v in zip(ids[row], values[row])
                if np.isfinite(v)
            ]
            for name, (ids, values) in best.items()
        })
        for row in range(len(queries))
    ]  # fmt: skip


def top_of(scores: Any, k: int, names: tuple[str, ...] = ("helpful", "harmful")) -> dict[str, Any]:
    """name -> (ids, values) [q k]: the k largest and smallest scores of each query."""
    order = np.argsort(-scores.values, axis=1, kind="stable")
    rows = {"helpful": order[:, :k], "harmful": order[:, ::-1][:, :k]}
    ids = scores["train"].values
    return {name: (ids[rows[name]], np.take_along_axis(scores.values, rows[name], 1)) for name in names}


def lists_text(entries: list[dict[str, Any]]) -> str:
    """Lists as text: each query, then the examples with the largest and the smallest influence."""
    lines = []
    for entry in entries:
        lines.append(f"\n{entry['asked']}")
        for name in (n for n in entry if n not in ("query", "asked")):
            lines.append(f"  {name}")
            for line in entry[name]:
                lines.append(f"    {line['nats']:+.3e}  {line['id']:>10}  {line['title']}".rstrip())
                lines += [f"        {p['nats']:+.3e}  {p['id']:>6}  {p['title']}" for p in line.get("atoms", ())]
    return "\n".join(lines)


def save_scores(path: Path, scores: Any) -> None:
    """Write a DataArray as .npz (values, coordinates and attributes), or .csv or .parquet (one row per value)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = scores.rename(scores.name or "value")
    if path.suffix == ".npz":
        coords: dict[str, Any] = {str(name): np.asarray(scores[name].values) for name in scores.coords}
        attrs = np.array(json_module.dumps(dict(scores.attrs), default=str))
        np.savez(path, values=scores.values, attrs=attrs, **coords)
    elif path.suffix == ".csv":
        table.to_dataframe().reset_index().to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_dataframe().reset_index().to_parquet(path, index=False)
    else:
        raise UsageError(f"{path} has no known ending.", "Name it .npz, .csv or .parquet.")


def save_ids(path: Path, ids: np.ndarray) -> None:
    """Write ids in their order: .txt (one per line), .csv (with a head), or .json. Raises UsageError for another
    ending."""
    numbers = [int(i) for i in ids]
    forms = {
        ".txt": "\n".join(map(str, numbers)) + "\n",
        ".csv": "\n".join(["id", *map(str, numbers)]) + "\n",
        ".json": json_module.dumps(numbers) + "\n",
    }
    if path.suffix not in forms:
        raise UsageError(f"{path} has no known ending.", "Name it .txt, .csv or .json.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(forms[path.suffix])
