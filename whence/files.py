"""Text, JSON lines, CSV and Parquet files as rows: the one reader of data, queries, labels, forget sets and job files.

Text is UTF-8, with or without a byte-order mark; a line ends at a line feed, a carriage return, or both. What is not
text, or not a row, is an error that names the file and the line (of Parquet the row).
"""

import csv
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from whence.cache.errors import DataError, UsageError

LABELLED = ("x_train", "y_train", "x_test", "y_test")
READABLE = (".txt", ".md", ".jsonl", ".csv", ".parquet")


class Row(NamedTuple):
    """Values by column, and the place they were read from ("notes.jsonl, line 3")."""

    values: Mapping[str, Any]
    place: str


def read_text(path: Path) -> str:
    """A file's text, with line feeds at line ends. Raises DataError if it cannot be opened or is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path} ({error.strerror}).", "Give the path of a file.") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16 or UTF-32, not UTF-8.", "Save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise DataError(f"{path}, line {line} is not UTF-8: byte 0x{byte:02x}.", "Save the file as UTF-8.") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}, line {line} has a NUL character.", "Save it as UTF-8 text, not as UTF-16 or UTF-32.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, or of every such file in a folder, by path.

    A .txt or .md file has a row {"text": ...} per block between empty lines, or lines of blanks. Raises UsageError for
    another kind of file, DataError for one that cannot be read.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in READABLE and p.is_file())
        if not files:
            raise DataError(f"The folder {path} has no data file.", f"Put {', '.join(READABLE)} files into it.")
        for file in files:
            yield from read_rows(file)
        return
    readers = {".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows, ".txt": _blocks, ".md": _blocks}
    kind = path.suffix.lower()
    if kind not in readers:
        raise UsageError(f"{path} is no kind of file that is read here.", f"Give one of {', '.join(READABLE)}.")
    for row in readers[kind](path):
        for name, value in row.values.items():
            _check_text(name, row.place)
            if isinstance(value, str):
                _check_text(value, f"{row.place}, column {name!r}")
        yield row


def text_of(row: Row, column: str) -> str:
    """The text in a column. Raises DataError, with the place, if it is missing, null, NaN or a list."""
    if column not in row.values:
        raise DataError(f"{row.place} has no {column!r}.", f"Its columns: {', '.join(row.values) or 'none'}.")
    value = row.values[column]
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(
            f"{row.place}: {column!r} is {'null' if value is None else value}.", "Remove the row, or give it a text."
        )
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise DataError(
        f"{row.place}: {column!r} is a {type(value).__name__}, not a text.",
        "Write chat messages and other structures as one text first, with the model's own template.",
    )


def labelled_arrays(name: str) -> dict[str, np.ndarray]:
    """x_train, y_train, x_test and y_test of an .npz file. Raises DataError if it, or one of them, is not there, or it
    holds Python objects."""
    path = Path(name)
    if path.suffix != ".npz" or not path.is_file():
        raise DataError(f"There is no labelled data set {name!r}.", "Give digits, or the path of an .npz file.")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            missing = [array for array in LABELLED if array not in file]
            if missing:
                raise DataError(f"{path} has no array {missing[0]}.", f"It needs {', '.join(LABELLED)}.")
            return {array: file[array] for array in LABELLED}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read: {error}.", "Write plain arrays of numbers with numpy.savez."
        ) from error


def _blocks(path: Path) -> Iterator[Row]:
    line = 1
    parts = re.split(r"(\n[ \t]*\n)", read_text(path))
    for part in parts:
        if part.strip():
            yield Row({"text": part}, f"{path}, line {line}")
        line += part.count("\n")


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), 1):  # splitlines would cut at U+2028 inside a string
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            values = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place} is not JSON: {error}.", "Write one JSON object per line.") from error
        if not isinstance(values, dict):
            raise DataError(f"{place} is a {type(values).__name__}.", "Write one JSON object per line.")
        yield Row(values, place)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return found


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        names = reader.fieldnames or []
        if len(set(names)) != len(names) or "" in names:
            raise DataError(f"{path}, line 1 names a column twice, or not at all.", "Give every column its own name.")
        end = reader.line_num
        for values in reader:
            place = f"{path}, line {end + 1}"
            end = reader.line_num
            if None in values or None in values.values():
                raise DataError(f"{place} does not have {len(names)} values.", "Give every line one value per column.")
            yield Row(values, place)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}.", "Quote what has commas.") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.read_table(path).to_batches(1024)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Look at the file: it is no sound Parquet.") from error
    number = 0
    for batch in batches:
        if len(set(batch.schema.names)) != len(batch.schema.names):
            raise DataError(f"{path} names a column twice.", "Give every column its own name.")
        for row in range(batch.num_rows):
            number += 1
            try:
                yield Row({name: batch[name][row].as_py() for name in batch.schema.names}, f"{path}, row {number}")
            except ValueError as error:
                raise DataError(f"{path}, row {number} cannot be read: {error}.", "Look at this row.") from error


def _check_text(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start]).strip("'")
        raise DataError(f"{place} has half of a surrogate pair ({half}).", "Write the whole character.") from error
