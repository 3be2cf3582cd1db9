"""Data of one's own: text, JSONL and Parquet files, and data sets of the hub by name."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whence.cache import DataError, Examples, UsageError

from .corpus import Corpus, query_examples, ragged, stable_ids
from .vocabulary import Vocabulary

READABLE = (".txt", ".md", ".jsonl", ".parquet")
TEXT_COLUMNS = ("text", "content", "document", "completion")


def load(
    source: str | Path,
    vocabulary: Vocabulary | None = None,
    *,
    length: int = 128,
    split: str = "train",
    text: str | None = None,
    limit: int | None = None,
) -> Corpus:
    """A corpus from a local file (.txt, .md, .jsonl, .parquet) or a hub data set ("name" or "name:config").

    Texts longer than `length` tokens are cut into several examples. vocabulary: of the model that is to read it; a
    byte-pair one is trained on the texts when None. text: the column to read, the first of text, content, document
    by default. Rows with `prompt` and `completion` become examples whose prompt is masked. Columns of plain values
    are kept in `about`; an `id` column, where all are distinct integers, gives the ids.

    Raises DataError for a file that cannot be read or holds no text; UsageError for an unknown kind of file.
    """
    rows = list(_rows(source, split, limit))
    if not rows:
        raise DataError(f"{source} holds no rows.", "Give a file or split with at least one text.")
    if {"prompt", "completion"} <= rows[0].keys():
        return _prompted(str(source), rows, vocabulary)
    column = text or next((c for c in TEXT_COLUMNS if c in rows[0]), None)
    if column is None or column not in rows[0]:
        raise DataError(
            f"{source} has no column of text called {text or 'text'!r}.",
            f"Name one of its columns: {', '.join(rows[0])}.",
        )
    texts = [str(row[column]) for row in rows]
    words = vocabulary or Vocabulary.byte_pairs(texts)
    pieces = [
        (number, ids[start : start + length])
        for number, ids in enumerate(words.encode(t) for t in texts)
        for start in range(0, len(ids), length)
        if len(ids[start : start + length]) > 1
    ]
    if not pieces:
        raise DataError(f"No text of {source} is longer than one token.", "Look at its column of text.")
    about = _about([rows[number] for number, _ in pieces], column)
    shown = [words.decode(ids) for _, ids in pieces]
    about |= {"title": about.get("title") or [_title(t) for t in shown], "text": shown}
    whole = len(pieces) == len(rows)
    ids = _own_ids(rows) if whole else None
    train = Examples(
        ragged([ids for _, ids in pieces]),
        ids if ids is not None else stable_ids([f"{n} {t}" for (n, _), t in zip(pieces, shown)]),
        about,
    )
    return Corpus(Path(str(source)).stem, train, train.select([]), words)


def load_queries(source: str | Path, vocabulary: Vocabulary) -> Examples:
    """Queries from a JSONL or Parquet file with the columns `prompt` and `completion`."""
    rows = list(_rows(source, "train", None))
    wrong = [number for number, row in enumerate(rows, 1) if not {"prompt", "completion"} <= row.keys()]
    if not rows or wrong:
        cause = f"{source}, row {wrong[0]} is no query." if wrong else f"{source} holds no queries."
        raise DataError(cause, "Give rows with a `prompt` and a `completion`.")
    return _prompted(str(source), rows, vocabulary).train


def _prompted(source: str, rows: Sequence[Mapping[str, Any]], vocabulary: Vocabulary | None) -> Corpus:
    prompts, completions = [str(r["prompt"]) for r in rows], [str(r["completion"]) for r in rows]
    words = vocabulary or Vocabulary.byte_pairs(p + c for p, c in zip(prompts, completions))
    made = query_examples(prompts, completions, words)
    extra = {k: v for k, v in _about(rows, "").items() if k not in made.about}
    ids = _own_ids(rows)
    train = Examples(made.columns, made.ids if ids is None else ids, {**made.about, **extra})
    return Corpus(Path(source).stem, train, train.select([]), words)


def _rows(source: str | Path, split: str, limit: int | None) -> Iterator[Mapping[str, Any]]:
    path = Path(source)
    rows = _local(path) if path.exists() else _hub(str(source), split)
    for number, row in enumerate(rows):
        if limit is not None and number >= limit:
            return
        yield row


def _local(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix not in READABLE:
        raise UsageError(f"{path} is no kind of file that is read here.", f"Give one of {', '.join(READABLE)}.")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            yield from pyarrow.parquet.read_table(path).to_pylist()
            return
        content = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Look at the file; text is to be UTF-8.") from error
    if path.suffix == ".jsonl":
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                yield _json_row(line, f"{path}, line {number}")
    else:
        yield from ({"text": block} for block in content.split("\n\n") if block.strip())


def _json_row(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}.", "Write one JSON object a line.") from error
    if not isinstance(row, dict):
        raise DataError(f"{where} is a {type(row).__name__}.", "Write one JSON object a line.")
    return row


def _hub(name: str, split: str) -> Iterator[Mapping[str, Any]]:
    if Path(name).suffix in READABLE:
        raise DataError(f"There is no file {name}.", "Give the path of a file that is there.")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UsageError("Hub data sets need the datasets package.", "pip install datasets") from error
    repository, _, config = name.partition(":")
    try:
        yield from load_dataset(repository, config or None, split=split)
    except Exception as error:
        raise DataError(
            f"The data set {name!r} could not be loaded: {error}",
            "Check its name (name or name:config) and the network, or give a local .txt, .jsonl or .parquet file.",
        ) from error


def _about(rows: Sequence[Mapping[str, Any]], text: str) -> dict[str, list[Any]]:
    """The columns of plain values, for people."""
    names = [n for n, v in rows[0].items() if n not in (text, "id") and isinstance(v, (str, int, float, bool))]
    return {name: [row.get(name) for row in rows] for name in names}


def _own_ids(rows: Sequence[Mapping[str, Any]]) -> Any:
    import numpy as np

    ids = [row.get("id") for row in rows]
    if all(isinstance(i, int) and not isinstance(i, bool) for i in ids) and len(set(ids)) == len(ids):
        return np.array(ids, np.int64)
    return None


def _title(text: str) -> str:
    first = text.strip().split("\n")[0]
    return first if len(first) <= 60 else first[:57].rsplit(" ", 1)[0] + " ..."
