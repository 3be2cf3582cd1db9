"""Data of one's own: files of text, rows or tokens, folders of them, and data sets of the hub by name."""

import itertools
import json
import math
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whence.cache import DataError, Examples, UsageError, tasks
from whence.cache.jobs.progress import say
from whence.cache.model.ids import as_ids
from whence.cache.model.ragged import Derived, Field, Ragged, Spool

from ..files import READABLE, Row, read_rows, renamed, text_of
from .corpus import Corpus, stable_ids
from .images import ImageReader, class_names, image_examples, listed_images, with_pictures
from .rows import Maker, columns_of, maker_of, prompted
from .shown import TextOf, TitleOf
from .token_files import token_file
from .vocabulary import Vocabulary

TEXT_COLUMNS = ("text", "content", "document", "completion")
TOKEN_FILES = (".bin", ".npy")
EXACT = 2**53  # floats below it are exact integers
PEEK = 1000  # rows that say which columns there are
PLAIN = (str, int, float, bool, type(None))


def load(
    source: str | Path,
    vocabulary: Vocabulary | ImageReader | None = None,
    *,
    length: int = 128,
    split: str = "train",
    text: str | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    form: str = "text",
    end: int | None = None,
) -> Corpus:
    """A corpus from a local file (.txt, .md, .jsonl, .csv, .parquet, .arrow), a folder of such files, a folder that
    `datasets.save_to_disk` wrote, a file of tokens (`token_file`), or a hub data set ("name" or "name:config").

    A text of more than `length` tokens is cut into pieces, each an example; one of fewer than two tokens is left out;
    both are said. Rows with `prompt` and `completion` become examples whose prompt is masked; with `prompt`, `chosen`
    and `rejected`, pairs of answers (`tasks.choices`); with `messages`, conversations whose loss is the assistant's
    (`tasks.chats`); with `input_ids` and no text, tokens already. Columns of plain values are kept in `about`.

    Rows are read one after the other. Beyond 32 MB of tokens (or of plain values) they go to a temporary file, from
    which batches are read as needed, so a corpus may be larger than memory; beside it an example takes about 100 bytes.

    An `id` column gives the ids: distinct numbers or texts. `about["document"]` (`about["id"]` if the data have a
    column `document` of their own) has the id of the text that an example is, or is a piece of. An example whose
    text is in one piece has that id (of a text, the integer that `Examples` stands for it, so that it can be named by
    the text); a piece's id is nine digits of a hash of the text's id and the number of the piece. In data without
    ids, the id is nine digits of a hash of the text and its row, and the document the number of the row, from 0.

    Args:
        source: a path, or the name of a hub data set.
        vocabulary: of the model that is to read it; a byte-pair one is trained on the texts when None. The reader of an
            image classifier (`pretrained.image_reader`) reads images: a folder with a folder per class, or rows with
            `image` and `label` (`corpora.images`).
        length: most tokens of an example.
        split: of a hub data set, or of a folder with several.
        text: the column to read; the first of text, content, document by default.
        limit: read only so many rows.
        columns: names of the data's columns by the names used here: {"text": "body", "id": "key"}; also title, prompt,
            completion and messages.
        form: of the model: "text", "masked" (tokens are masked), "pairs" (encoder and decoder: `prompt` is read,
            `completion` written) or "classes" (a text and its `label`).
        end: token that ends documents, of a file of tokens; the tokenizer's end of text by default.

    Raises DataError, with the line or row, for a file that cannot be read, a text that is none, and an id that is
    missing, repeated or not exact; UsageError for an unknown kind of file.
    """
    names = {**(columns or {}), **({"text": text} if text and "text" not in (columns or {}) else {})}
    if isinstance(vocabulary, ImageReader):
        return _images(str(source), vocabulary, split, names, limit)
    if form == "images":
        raise UsageError("An image classifier reads images in its own way.", "Give its reader: image_reader(MODEL).")
    if Path(source).suffix.lower() in TOKEN_FILES and Path(source).is_file():
        return token_file(source, vocabulary, length=length, limit=limit, end=end)
    texts = _Texts(str(source), split, names, limit)
    known = texts.known()
    maker = maker_of(known, form, str(source))
    if maker is not None:
        return _made(str(source), list(texts.rows()), vocabulary, maker, form, length)
    if "messages" in known and not set(TEXT_COLUMNS) & set(known):
        return _chats(str(source), list(texts.rows()), vocabulary, length)
    column = _text_column(known, form, str(source), text)
    if column == "input_ids" and vocabulary is None:
        raise UsageError(f"{source} has tokens, not texts.", "Give the vocabulary that they are written in.")
    words = vocabulary or Vocabulary.byte_pairs(text_of(row, column) for row in texts.rows())
    found = _cut(texts, column, words, length)
    return masked(found) if form == "masked" else found


def _text_column(known: Sequence[str], form: str, source: str, text: str | None) -> str:
    """The column that is read: of texts, or of tokens if there is none. Raises UsageError for queries, DataError for
    rows that have neither; text: the name that was asked for."""
    column = next((c for c in (*TEXT_COLUMNS, "input_ids") if c in known), None)
    if column is not None:
        return column
    if maker_of(known, form, source, asked=True) is not None:
        raise UsageError(
            f"{source} has queries (columns {', '.join(known)}), which are no training data.",
            "Give it as --queries FILE (`corpora.load_queries`), and as data what the model was trained on.",
        )
    raise DataError(
        f"{source} has no column of text called {text or 'text'!r}.",
        f"Name the column of the texts: --text-column, or columns={{'text': ...}}. It has: {', '.join(known)}.",
    )


def masked(corpus: Corpus) -> Corpus:
    """The corpus for a masked language model: some tokens of each example are masked and predicted. Raises UsageError
    for a tokenizer without a token for it."""
    tokenizer = getattr(corpus.vocabulary, "tokenizer", None)
    mark = getattr(tokenizer, "mask_token_id", None)
    if tokenizer is None or mark is None:
        raise UsageError("The tokenizer has no mask token.", "Give a masked language model with its own tokenizer.")
    train = tasks.masked(corpus.train, mask=mark, vocabulary=len(tokenizer))
    return Corpus(corpus.name, train, train.select([]), corpus.vocabulary, "masked")


@dataclass(frozen=True)
class _Texts:
    """The rows of a source, which can be read again."""

    source: str
    split: str
    names: Mapping[str, str]
    limit: int | None

    def rows(self) -> Iterator[Row]:
        return itertools.islice(renamed(_rows(self.source, self.split), self.names), self.limit)

    def known(self) -> list[str]:
        """The columns of the first rows. Raises DataError if there is no row."""
        first = list(itertools.islice(self.rows(), PEEK))
        if not first:
            raise DataError(f"{self.source} is empty: it has no rows.", "Give a file or split with at least one text.")
        return list(dict.fromkeys(name for row in first for name in row.values))

    def place(self, number: int) -> str:
        """Where a row is."""
        return next(itertools.islice(self.rows(), number, None)).place


def _cut(texts: _Texts, column: str, words: Vocabulary, length: int) -> Corpus:
    """The texts as pieces of at most `length` tokens, in one pass over the rows."""
    tokens, labels, plain = Spool("<i4"), Spool("<i4"), Spool("u1")
    given: list[int | str | None] = []
    numbers, about = array("q"), _Plain(column)
    labelled = column == "input_ids" and "labels" in texts.known()
    for number, row in enumerate(texts.rows()):
        given.append(_exact(row))
        whole = [words.encode(text_of(row, column))] if column != "input_ids" else _given_tokens(row, labelled)
        plain.append(np.frombuffer(json.dumps(about.of(row)).encode(), np.uint8))
        for start in range(0, len(whole[0]), length):
            if len(whole[0][start : start + length]) > 1:
                numbers.append(number)
                for spool, values in zip((tokens, labels), whole):
                    spool.append(values[start : start + length])
    if not numbers:
        raise DataError(f"No text of {texts.source} is longer than one token.", "Look at its column of text.")
    of = np.array(numbers, np.int64)
    pieces = tokens.rows()
    _say_changes(texts, len(given), of, length)
    shown: Sequence[Any] = _looked(TextOf(words, pieces), np.arange(len(of)), pieces)
    rows = plain.rows()
    known = {name: _looked(Field(rows, name), of, rows) for name in about.names()}
    title = TitleOf(words, pieces, Field(rows, "title"), of)
    known |= {"title": _looked(title, np.arange(len(of)), pieces), "text": shown}
    ids, documents = _named(_own_ids(given, texts.place), of.tolist(), shown)
    known["id" if "document" in known else "document"] = documents
    columns = {"input_ids": pieces} | ({"labels": labels.rows()} if labelled else {})
    train = Examples(columns, ids, known)
    return Corpus(Path(texts.source).stem, train, train.select([]), words)


def load_queries(
    source: str | Path,
    vocabulary: Vocabulary | ImageReader,
    *,
    columns: Mapping[str, str] | None = None,
    form: str = "text",
    length: int | None = None,
) -> Examples:
    """Queries from a file with the columns `prompt` and `completion`, or those that `columns` names, as for `load`.
    With `chosen` and `rejected`, or `options` and `answer`, they are choices; with `reward`, samples and what they
    earned; with `messages`, conversations whose assistant's turns are measured. For the reader of an image classifier
    they are images, as for `load`. Raises as `load`."""
    if form == "masked" or isinstance(vocabulary, ImageReader):
        return load(source, vocabulary, columns=columns, form=form, length=length or 128).train
    rows = list(renamed(_rows(source, "train"), columns or {}))
    if not rows:
        raise DataError(f"{source} holds no queries.", "Give rows with a `prompt` and a `completion`.")
    return queries_of(rows, vocabulary, form, length, str(source))


def queries_of(
    rows: Sequence[Row], vocabulary: Vocabulary, form: str, length: int | None = None, source: str = ""
) -> Examples:
    """Queries from rows, for a form of model."""
    known = list(columns_of(rows))
    if form == "text" and "messages" in known and "prompt" not in known:
        return _chats(source, rows, vocabulary, None).train  # a query is not cut
    maker = maker_of(known, form, source, asked=True) or prompted
    return _made(source, rows, vocabulary, maker, form, length).train


class _Plain:
    """The columns of plain values that rows have, for people."""

    def __init__(self, text: str):
        self.text, self.seen, self.other = text, dict[str, bool](), set[str]()

    def of(self, row: Row) -> dict[str, Any]:
        found = {name: value for name, value in row.values.items() if name not in (self.text, "id")}
        self.other |= {name for name, value in found.items() if not isinstance(value, PLAIN)}
        for name, value in found.items():
            self.seen[name] = self.seen.get(name, False) or value is not None
        return {name: value for name, value in found.items() if name not in self.other}

    def names(self) -> list[str]:
        """Those that are plain in every row, and are there in one."""
        return [name for name, is_there in self.seen.items() if is_there and name not in self.other]


def _looked(of: Callable[[int], Any], rows: np.ndarray, kept: Ragged | list[np.ndarray]) -> Sequence[Any]:
    """A value a row: looked up when it is shown if the data are read as needed, else a list."""
    return Derived(of, rows) if isinstance(kept, Ragged) else [of(row) for row in rows.tolist()]


def _given_tokens(row: Row, labelled: bool) -> list[np.ndarray]:
    """The tokens (and labels) of a row that has them, without padding."""
    names = ["input_ids", "labels"] if labelled else ["input_ids"]
    found = [np.asarray(row.values.get(name)) for name in names]
    bad = next((n for n, v in zip(names, found) if v.ndim != 1 or (v.size and v.dtype.kind not in "iu")), None)
    mask = np.asarray(row.values.get("attention_mask", np.ones(len(found[0]) if found[0].ndim else 0)))
    if bad is not None or any(v.shape != mask.shape for v in found):
        raise DataError(f"{row.place}: {bad or names[-1]!r} is no list of as many tokens.", "Give whole numbers.")
    return [value[mask.astype(bool)] for value in found]


def _chats(source: str, rows: Sequence[Row], vocabulary: Vocabulary | None, length: int | None) -> Corpus:
    if vocabulary is None:
        raise UsageError(f"{source} has conversations.", "Give the vocabulary of a chat model, with its template.")
    own = _own_ids([_exact(row) for row in rows], lambda number: rows[number].place)
    for row in rows:
        if not isinstance(row.values.get("messages"), list):
            raise DataError(f"{row.place} has no list of messages.", 'Give {"role": ..., "content": ...} in a list.')
    found = tasks.chats([row.values["messages"] for row in rows], vocabulary.tokenizer, length=length, ids=own)
    extra = {name: values for name, values in _about(rows, "messages").items() if name not in ("text", "document")}
    documents = found.ids.tolist() if own is None else own
    train = Examples(found.columns, found.ids, {**found.about, **extra, "document": documents})
    return Corpus(Path(source).stem, train, train.select([]), vocabulary)


def _made(
    source: str, rows: Sequence[Row], vocabulary: Vocabulary | None, maker: Maker, form: str, length: int | None
) -> Corpus:
    texts = (" ".join(value for value in row.values.values() if isinstance(value, str)) for row in rows)
    if vocabulary is None and maker is prompted:
        texts = (text_of(row, "prompt") + text_of(row, "completion") for row in rows)
    words = vocabulary or Vocabulary.byte_pairs(texts)
    train = _with_ids(maker(rows, words, length), rows)
    return Corpus(Path(source).stem, train, train.select([]), words, form)


def _images(source: str, reader: ImageReader, split: str, names: Mapping[str, str], limit: int | None) -> Corpus:
    listed = listed_images(Path(source), split)
    found = itertools.islice(renamed(_rows(source, split) if listed is None else listed, names), limit)
    rows = with_pictures(found, Path(source))
    if not rows:
        raise DataError(f"{source} has no images.", "Give a folder with a folder of images per class.")
    known = class_names(source, names.get("label", "label"))
    train = _with_ids(image_examples(rows, reader, known), rows)
    return Corpus(Path(source).stem, train, train.select([]), None, "images", reader)


def _with_ids(found: Examples, rows: Sequence[Row]) -> Examples:
    """Examples, one a row, with the rows' own ids if they have them, and with their columns of plain values."""
    extra = {name: values for name, values in _about(rows, "").items() if name not in found.about}
    own = _own_ids([_exact(row) for row in rows], lambda number: rows[number].place)
    ids, documents = (
        (found.ids, found.ids.tolist()) if own is None else _named(own, range(len(rows)), found.about["title"])
    )
    return Examples(found.columns, ids, {**found.about, "document": documents, **extra})


def _rows(source: str | Path, split: str) -> Iterator[Row]:
    return read_rows(Path(source), split) if Path(source).exists() else _hub(str(source), split)


def _say_changes(texts: _Texts, count: int, numbers: np.ndarray, length: int) -> None:
    """Say how many texts are cut, and how many are left out, and where the first one is."""
    pieces = np.bincount(numbers, minlength=count)
    cut, empty = np.flatnonzero(pieces > 1), np.flatnonzero(pieces == 0)
    if len(cut):
        say(
            f"{len(cut)} of {count} texts are longer than {length} tokens and are cut into {pieces[cut].sum()} pieces; "
            f"the first is {texts.place(int(cut[0]))}. The column `document` has the id of a piece's text."
        )
    if len(empty):
        say(
            f"{len(empty)} of {count} texts have fewer than two tokens and are left out; "
            f"the first is {texts.place(int(empty[0]))}."
        )


def _hub(name: str, split: str) -> Iterator[Row]:
    if Path(name).suffix.lower() in READABLE:
        raise DataError(f"There is no file {name}.", f"Check the path; it starts at {Path.cwd()}.")
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
    about = _Plain(text)
    each = [about.of(row) for row in rows]
    return {name: [values.get(name) for values in each] for name in about.names()}


def _own_ids(given: Sequence[int | str | None], place: Callable[[int], str]) -> list[int] | list[str] | None:
    """The file's ids as integers if all of them are, else as texts; None if it has none. place: where a row is."""
    if all(i is None for i in given):
        return None
    if any(i is None for i in given):
        raise DataError(
            f"{place(list(given).index(None))} has no id, other rows have.", "Give every row an id, or none."
        )
    ids: list[Any] = list(given)
    if not all(isinstance(i, int) for i in given):  # a .csv has texts only
        ids = [str(i) for i in given]
        ids = [int(i) for i in ids] if all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", i) for i in ids) else ids
    first: dict[Any, int] = {}
    for number, own in enumerate(ids):
        if first.setdefault(own, number) != number:
            raise DataError(
                f"{place(number)} repeats the id {own!r} of {place(first[own])}.",
                "Give every row its own id, or rename the column (`document` groups rows).",
            )
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
        return plain, list(numbers)
    exact = as_ids([str(own[number]) for number in numbers]).tolist()  # an integer is itself
    whole = {number for number, count in zip(*np.unique(numbers, return_counts=True)) if count == 1}
    piece = np.arange(len(numbers)) - np.searchsorted(numbers, numbers)  # of its text: the numbers ascend
    derived = [f"{own[number]}/{k}" for number, k in zip(numbers, piece) if number not in whole]
    hashed = iter(stable_ids(derived, taken=exact).tolist())
    ids = [exact[n] if number in whole else next(hashed) for n, number in enumerate(numbers)]
    return np.array(ids, np.int64), [own[number] for number in numbers]
