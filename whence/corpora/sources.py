"""Data of one's own: text, JSONL, CSV and Parquet files, folders of them, and data sets of the hub by name."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whence.cache import DataError, Examples, UsageError
from whence.cache.jobs.progress import say
from whence.cache.model.ids import as_ids

from ..files import READABLE, Row, read_rows, text_of
from .corpus import Corpus, query_examples, ragged, stable_ids
from .vocabulary import Vocabulary

TEXT_COLUMNS = ("text", "content", "document", "completion")
EXACT = 2**53  # floats below it are exact integers


def load(
    source: str | Path,
    vocabulary: Vocabulary | None = None,
    *,
    length: int = 128,
    split: str = "train",
    text: str | None = None,
    limit: int | None = None,
) -> Corpus:
    """A corpus from a local file (.txt, .md, .jsonl, .csv, .parquet), a folder of such files, or a hub data set ("name"
    or "name:config").

    A text of more than `length` tokens is cut into pieces, each an example; one of fewer than two tokens is left out;
    both are said. Rows with `prompt` and `completion` become examples whose prompt is masked. Columns of plain values
    are kept in `about`.

    An `id` column gives the ids: distinct numbers or texts. `about["document"]` (`about["id"]` if the data have a
    column `document` of their own) has the id of the text that an example is, or is a piece of. An example whose
    text is in one piece has that id (of a text, the integer that `Examples` stands for it, so that it can be named by
    the text); a piece's id is nine digits of a hash of the text's id and the number of the piece.

    Args:
        source: a path, or the name of a hub data set.
        vocabulary: of the model that is to read it; a byte-pair one is trained on the texts when None.
        length: most tokens of an example.
        split: of a hub data set.
        text: the column to read; the first of text, content, document by default.
        limit: read only so many rows.

    Raises DataError, with the line or row, for a file that cannot be read, a text that is none, and an id that is
    missing, repeated or not exact; UsageError for an unknown kind of file.
    """
    rows = list(itertools.islice(_rows(source, split), limit))
    if not rows:
        raise DataError(f"{source} holds no rows.", "Give a file or split with at least one text.")
    known = list(dict.fromkeys(name for row in rows for name in row.values))
    if {"prompt", "completion"} <= set(known):
        return _prompted(str(source), rows, vocabulary)
    column = text or next((c for c in TEXT_COLUMNS if c in known), None)
    if column is None or column not in known:
        raise DataError(
            f"{source} has no column of text called {text or 'text'!r}.",
            f"Name one of its columns: {', '.join(known)}.",
        )
    texts = [text_of(row, column) for row in rows]
    words = vocabulary or Vocabulary.byte_pairs(texts)
    pieces = [
        (number, ids[start : start + length])
        for number, ids in enumerate(words.encode(t) for t in texts)
        for start in range(0, len(ids), length)
        if len(ids[start : start + length]) > 1
    ]
    if not pieces:
        raise DataError(f"No text of {source} is longer than one token.", "Look at its column of text.")
    numbers = [number for number, _ in pieces]
    _say_changes(str(source), rows, numbers, length)
    shown = [words.decode(ids) for _, ids in pieces]
    about = _about([rows[number] for number in numbers], column)
    titles = about.get("title") or [None] * len(shown)
    about |= {"title": [_title(t) if own is None else own for own, t in zip(titles, shown)], "text": shown}
    ids, documents = _named(_own_ids(rows), numbers, shown)
    about["id" if "document" in about else "document"] = documents
    train = Examples(ragged([ids for _, ids in pieces]), ids, about)
    return Corpus(Path(str(source)).stem, train, train.select([]), words)


def load_queries(source: str | Path, vocabulary: Vocabulary) -> Examples:
    """Queries from a file with the columns `prompt` and `completion`. Raises as `load`."""
    rows = list(_rows(source, "train"))
    if not rows:
        raise DataError(f"{source} holds no queries.", "Give rows with a `prompt` and a `completion`.")
    return _prompted(str(source), rows, vocabulary).train


def _prompted(source: str, rows: Sequence[Row], vocabulary: Vocabulary | None) -> Corpus:
    prompts, completions = ([text_of(row, column) for row in rows] for column in ("prompt", "completion"))
    words = vocabulary or Vocabulary.byte_pairs(p + c for p, c in zip(prompts, completions))
    found = query_examples(prompts, completions, words, places=[row.place for row in rows])
    extra = {name: values for name, values in _about(rows, "").items() if name not in found.about}
    own = _own_ids(rows)
    ids, documents = (found.ids, found.ids.tolist()) if own is None else _named(own, range(len(rows)), prompts)
    train = Examples(found.columns, ids, {**found.about, "document": documents, **extra})
    return Corpus(Path(source).stem, train, train.select([]), words)


def _rows(source: str | Path, split: str) -> Iterator[Row]:
    return read_rows(Path(source)) if Path(source).exists() else _hub(str(source), split)


def _say_changes(source: str, rows: Sequence[Row], numbers: Sequence[int], length: int) -> None:
    """Say how many texts are cut, and how many are left out, and where the first one is."""
    pieces = np.bincount(numbers, minlength=len(rows))
    cut, empty = np.flatnonzero(pieces > 1), np.flatnonzero(pieces == 0)
    if len(cut):
        say(
            f"{source}: {len(cut)} of {len(rows)} texts are longer than {length} tokens and are cut into "
            f"{pieces[cut].sum()} pieces ({rows[cut[0]].place}); the column `document` has the text's id."
        )
    if len(empty):
        say(
            f"{source}: {len(empty)} of {len(rows)} texts have fewer than two tokens and are left out "
            f"({rows[empty[0]].place})."
        )


def _hub(name: str, split: str) -> Iterator[Row]:
    if Path(name).suffix.lower() in READABLE:
        raise DataError(f"There is no file {name}.", "Give the path of a file that is there.")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UsageError("Hub data sets need the datasets package.", "pip install datasets") from error
    repository, _, config = name.partition(":")
    try:
        for number, values in enumerate(load_dataset(repository, config or None, split=split), 1):
            yield Row(values, f"{name}, row {number}")
    except Exception as error:
        raise DataError(
            f"The data set {name!r} could not be loaded: {error}",
            "Check its name (name or name:config) and the network, or give a local .txt, .jsonl or .parquet file.",
        ) from error


def _about(rows: Sequence[Row], text: str) -> dict[str, list[Any]]:
    """The columns of plain values, for people; None where a row has none."""
    columns = {
        name: [row.values.get(name) for row in rows] for name in dict.fromkeys(n for r in rows for n in r.values)
    }
    plain = (str, int, float, bool, type(None))
    return {
        name: values
        for name, values in columns.items()
        if name not in (text, "id") and all(isinstance(v, plain) for v in values) and any(v is not None for v in values)
    }


def _own_ids(rows: Sequence[Row]) -> list[int] | list[str] | None:
    """The file's ids as integers if all of them are, else as texts; None if it has none."""
    given = [_exact(row) for row in rows]
    if all(i is None for i in given):
        return None
    ids: list[Any] = given
    if not all(isinstance(i, int) for i in given):  # a .csv has texts only
        ids = [str(i) for i in given]
        ids = [int(i) for i in ids] if all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", i) for i in ids) else ids
    first: dict[Any, Row] = {}
    for own, row, raw in zip(ids, rows, given):
        if raw is None:
            raise DataError(f"{row.place} has no id, other rows have.", "Give every row an id, or none.")
        if own in first:
            raise DataError(
                f"{row.place} repeats the id {own!r} of {first[own].place}.",
                "Give every row its own id, or rename the column (`document` groups rows).",
            )
        first[own] = row
    return ids


def _exact(row: Row) -> int | str | None:
    value = row.values.get("id")
    if isinstance(value, float) and math.isfinite(value) and value.is_integer() and abs(value) < EXACT:
        return int(value)
    if value is None or (isinstance(value, (int, str)) and not isinstance(value, bool) and value != ""):
        return value
    raise DataError(f"{row.place}: {value!r} cannot be an id.", "Give whole numbers or texts as ids.")


def _named(own: Sequence[Any] | None, numbers: Sequence[int], texts: Sequence[str]) -> tuple[np.ndarray, list[Any]]:
    """Ids of the examples, and the ids of the texts that they are pieces of."""
    if own is None:
        plain = stable_ids([f"{number} {text}" for number, text in zip(numbers, texts)])
        return plain, [int(plain[n]) for n in np.searchsorted(numbers, numbers)]
    exact = as_ids([str(own[number]) for number in numbers]).tolist()  # an integer is itself
    whole = {number for number, count in zip(*np.unique(numbers, return_counts=True)) if count == 1}
    piece = np.arange(len(numbers)) - np.searchsorted(numbers, numbers)  # of its text: the numbers ascend
    derived = [f"{own[number]}/{k}" for number, k in zip(numbers, piece) if number not in whole]
    hashed = iter(stable_ids(derived, taken=exact).tolist())
    ids = [exact[n] if number in whole else next(hashed) for n, number in enumerate(numbers)]
    return np.array(ids, np.int64), [own[number] for number in numbers]


def _title(text: str) -> str:
    first = text.strip().split("\n")[0]
    return first if len(first) <= 60 else first[:57].rsplit(" ", 1)[0] + " ..."
