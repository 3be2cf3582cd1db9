"""Queries from options, and the training examples found for them: as lists, text and files."""

import json as json_module
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.cache.display.files import save_table
from whence.cache.errors import UsageError
from whence.options import Columns, Count

from ._shared import Titled, beginning

if TYPE_CHECKING:
    from whence.cache import Examples, Task
    from whence.corpora import Corpus

    from ._attrib_job import Attribution
    from ._shared import Loaded

PAIR = ("prompt", "completion")
SIGNS = {"helpful": 1, "harmful": -1}


@dataclass(frozen=True, kw_only=True)
class QueryOptions(Columns):
    """Which queries are scored."""

    prompt: str | None = None
    """A query of your own: its prompt."""
    completion: str | None = None
    """The completion of that prompt. Begin it with the space that it needs."""
    queries: Path | None = None
    """Rows (.jsonl, .csv, .parquet) with prompt and completion; with chosen and rejected, or options and the place of
    the answer; with a reward; of a classifier text and label, or images. By default the data's own queries."""
    first: Count | None = None
    """Only the first queries."""

    @property
    def data_columns(self) -> dict[str, str]:
        """Columns of the data: prompt and completion are those of the queries' file, if there is one."""
        return {n: own for n, own in self.columns.items() if self.queries is None or n not in PAIR}

    def asked(self, loaded: "Attribution") -> "tuple[Attribution, Examples]":
        """The queries, and the attribution that measures what they ask for. Raises as `asked_of`."""
        found, measure = self.asked_of(loaded)
        return replace(loaded, measure=measure), found

    def asked_of(self, loaded: "Loaded") -> "tuple[Examples, Task | None]":
        """The queries, and what they measure if it is not what the model's task does.

        Raises UsageError for a prompt without completion or the reverse, or if there is no query; before anything is
        fitted, DataError for queries that the model cannot be run on."""
        found = self._own_queries(loaded.corpus) or loaded.corpus.queries
        if len(found) == 0:
            raise UsageError("There is no query.", "Give --prompt and --completion, or --queries FILE.")
        found = found.select(slice(0, self.first)) if self.first else found
        measure = measure_of(loaded.trained.task, found)
        loaded.trained.replace(task=measure or loaded.trained.task).check_data(found)
        return found, measure

    def _own_queries(self, corpus: "Corpus") -> "Examples | None":
        from whence.corpora import load_queries
        from whence.corpora.sources import queries_of
        from whence.files import Row

        if self.prompt is None and self.completion is None and self.queries is None:
            return None
        reader = corpus.vocabulary or corpus.reader
        if reader is None:
            raise UsageError("These data are not text.", "Use the data's own queries.")
        if self.queries is not None:
            if not self.queries.is_file() and not (corpus.reader and self.queries.is_dir()):
                raise UsageError(f"There is no file {self.queries}.", "Give a .jsonl, .csv or .parquet file.")
            chosen = PAIR if corpus.reader is None else ("id", "image", "label")
            pair = {name: own for name, own in self.columns.items() if name in chosen}
            more: dict[str, Any] = {"form": corpus.form, "length": int(corpus.train.lengths.max())}
            return load_queries(self.queries, reader, columns=pair, **more)
        if corpus.vocabulary is None:
            raise UsageError("Queries of an image classifier are images.", "Give --queries FOLDER.")
        if self.prompt is None or self.completion is None:
            raise UsageError("A query has a prompt and a completion.", "Give both --prompt and --completion.")
        if corpus.form == "masked":
            raise UsageError("Queries of a masked model are texts.", "Give --queries FILE with a text per row.")
        own = {"prompt": self.prompt, "completion": self.completion}
        return queries_of([Row(own, "--prompt")], corpus.vocabulary, corpus.form)


def measure_of(task: "Task", queries: "Examples") -> "Task | None":
    """What queries measure, if it is not what the task itself does: the log-odds of a choice, a reward, or, of a model
    that was trained on preferences, the probability of a completion."""
    from whence.cache import LanguageModelling, tasks

    if "input_ids_1" in queries.columns:
        return tasks.Choice(task)
    if "reward" in queries.columns:
        return tasks.Reward(task)
    return tasks.Measured(task, LanguageModelling()) if isinstance(task, tasks.DPO) else None


def logprob_of(scores: Any) -> np.ndarray | None:
    """The log-probabilities [q] that a result has beside its scores, if it has them."""
    return scores["logprob"].values if "logprob" in scores.coords else None


def entry_of(queries: "Examples", row: int, logprob: np.ndarray | None = None, **found: Any) -> dict[str, Any]:
    """One query and what was found for it, with its log-probability if those of the queries [q] are known."""
    about, identity = queries.about, int(queries.ids[row])
    if "prompt" in about and "completion" in about:
        asked = f"{about['prompt'][row]} [{str(about['completion'][row]).strip()}]"
    else:
        asked = Titled(queries.ids, about).title(identity)
        asked += f" [{about['text'][row]}]" if "image" in about else ""
    entry: dict[str, Any] = {"query": identity}
    if "document" in about and about["document"][row] != identity:
        entry["document"] = about["document"][row]
    entry["asked"] = asked
    if logprob is not None:
        entry["logprob"] = float(logprob[row])
    return entry | found


def entries_of(queries: "Examples", logprob: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Every query as `entry_of` has it."""
    return [entry_of(queries, row, logprob) for row in range(len(queries))]


def lists(
    titled: Titled, queries: list[dict[str, Any]], best: dict[str, tuple[np.ndarray, ...]]
) -> list[dict[str, Any]]:
    """Queries (`entries_of`) with their lists: name -> (ids [q k], values [q k], whether they are impossible [q k] if
    known). What helps is above 0 and what harms is below, so no example is in both lists."""
    entries = []
    for row, query in enumerate(queries):
        found: dict[str, Any] = {}
        for name, (ids, values, *marks) in best.items():
            found[name] = []
            for place, (identity, value) in enumerate(zip(ids[row], values[row])):
                if np.isfinite(value) and SIGNS[name] * value > 0:
                    line = titled.line(int(identity), float(value))
                    found[name].append(line | ({"impossible": True} if marks and marks[0][row, place] else {}))
        entries.append(query | found)
    return entries


def top_of(scores: Any, k: int, names: tuple[str, ...] = ("helpful", "harmful")) -> dict[str, tuple[np.ndarray, ...]]:
    """name -> (ids, values, marks if there are any) [q k]: the k largest and smallest scores of each query."""
    order = np.argsort(-scores.values, axis=1, kind="stable")
    rows = {"helpful": order[:, :k], "harmful": order[:, ::-1][:, :k]}
    arrays = [scores.values, *([scores["impossible"].values] if "impossible" in scores.coords else [])]
    return {
        name: (scores["train"].values[rows[name]], *(np.take_along_axis(a, rows[name], 1) for a in arrays))
        for name in names
    }


def lists_text(entries: list[dict[str, Any]]) -> str:
    """Lists as text: each query, then the examples with the largest and the smallest influence."""
    lines = []
    for entry in entries:
        known = f"  (log-probability {entry['logprob']:+.4g} nats)" if "logprob" in entry else ""
        lines.append(f"\n{entry['asked']}{known}")
        for name in (n for n in entry if isinstance(entry[n], list)):
            lines.append(f"  {name}")
            for line in entry[name]:
                lines.append(f"    {line_text(line)}")
                lines += [f"        {line_text(part, 6)}" for part in line.get("atoms", ())]
    return "\n".join(lines)


def line_text(line: dict[str, Any], width: int = 10) -> str:
    """Value, id (and document), title and the beginning of the text of one example, in one line."""
    mark = "  IMPOSSIBLE" if line.get("impossible") else ""
    return f"{line['nats']:+.3e}  {named_text(line, width)}{mark}"


def named_text(line: dict[str, Any], width: int = 10) -> str:
    """The same without the value."""
    own = [f"({line['document']})"] if line.get("document", line["title"]) != line["title"] else []
    names = [f"{line['id']!s:>{width}}", *own]
    said = [beginning(line["title"], 60)]
    if line.get("text") and not line["text"].startswith(line["title"][:20]):
        said.append(f"| {beginning(line['text'], 40)}")
    return "  ".join([*names, *said]).rstrip()


def described(scores: Any, titled: Titled) -> Any:
    """Scores with the documents, titles and beginnings of the texts of their training examples as coordinates."""
    ids = scores["train"].values if "train" in scores.dims else np.zeros(0)
    if ids.dtype.kind not in "iu":  # groups of examples have names
        return scores
    new = {name: ("train", values) for name, values in titled.columns(ids).items() if name not in scores.coords}
    return scores.assign_coords(new)


def titles_of(scores: Any) -> Titled:
    """What described scores say about their training examples."""
    about = {name: scores[name].values.tolist() for name in ("document", "title", "text") if name in scores.coords}
    return Titled(scores["train"].values, about)


def save_scores(path: Path, scores: Any) -> None:
    """Write a DataArray as .npz (values, coordinates and attributes), or .csv, .parquet or .json (a row a value)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = scores.rename(scores.name or "value")
    if path.suffix == ".npz":
        coords: dict[str, Any] = {str(name): np.asarray(scores[name].values) for name in scores.coords}
        attrs = np.array(json_module.dumps(dict(scores.attrs), default=str))
        np.savez(path, values=scores.values, attrs=attrs, **coords)
    else:
        save_table(path, table.to_dataframe().reset_index())
