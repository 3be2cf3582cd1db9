"""Text, JSON lines, CSV, Parquet and Arrow files as rows: the one reader of data, queries, labels, forget sets and job
files. Rows are read one after the other; only .txt and .md files are read whole.

Text is UTF-8, with or without a byte-order mark; a line ends at a line feed, a carriage return, or both. What is not
text, or not a row, is an error that names the file and the line (of Parquet the row).
"""

import csv
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from whence.cache.errors import DataError, UsageError
from whence.cache.model.ragged import of_arrow

LABELLED = ("x_train", "y_train", "x_test", "y_test")
IMAGE_COLUMNS = ("image", "img", "file_name")  # of an image: its bytes, or the name of its file
READABLE = (".txt", ".md", ".jsonl", ".csv", ".parquet", ".arrow")


class Row(NamedTuple):
    """Values by column, and the place they were read from ("notes.jsonl, line 3")."""

    values: Mapping[str, Any]
    place: str


def read_text(path: Path) -> str:
    """A file's text, with line feeds at line ends. Raises DataError if it cannot be opened or is not UTF-8."""
    with _opened(path) as stream:
        content = stream.read()
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


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, each with its line feed, read one after the other. Raises as `read_text`."""
    with _opened(path) as stream:
        if stream.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
            read_text(path)
        try:
            with io.TextIOWrapper(stream, "utf-8-sig") as lines:
                for line in lines:
                    if "\0" in line:
                        read_text(path)
                    yield line
        except UnicodeDecodeError:
            read_text(path)  # raises with the line
            raise


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"Cannot read {path} ({error.strerror}).", "Give the path of a file.") from error


def read_rows(path: Path, split: str = "train") -> Iterator[Row]:
    """The rows of a file, or of every such file in a folder, by path. Of a folder that `datasets.save_to_disk` wrote,
    those of its split.

    A .txt or .md file has a row {"text": ...} per block between empty lines, or lines of blanks. Raises UsageError for
    another kind of file, DataError for one that cannot be read.
    """
    if path.is_dir():
        path = _split_of(path, split)
        saved = path / "state.json"
        if saved.is_file():
            for file in json.loads(read_text(saved))["_data_files"]:
                yield from _arrow_rows(path / file["filename"])
            return
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in READABLE and p.is_file())
        if not files:
            raise DataError(f"The folder {path} has no data file.", f"Put {', '.join(READABLE)} files into it.")
        for file in files:
            yield from read_rows(file)
        return
    readers = {
        ".jsonl": _json_lines, ".csv": _csv_rows, ".txt": _blocks, ".md": _blocks,
        ".parquet": _parquet_rows, ".arrow": _arrow_rows,
    }  # fmt: skip
    kind = path.suffix.lower()
    if kind not in readers:
        raise UsageError(
            f"{path}: this kind of file cannot be read.",
            f'Save it as one of {", ".join(READABLE)}; simplest is .jsonl with one {{"text": ...}} per line.',
        )
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
        raise DataError(f"There is no labelled data set {name!r}.", "Give digits, or a path: an .npz file or a table.")
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


def labelled_data(name: str, columns: Mapping[str, str] | None = None) -> Mapping[str, np.ndarray]:
    """x_train, y_train, x_test and y_test of an .npz (`labelled_arrays`) or of a table (`labelled_table`)."""
    path = Path(name)
    return labelled_table(path, columns) if path.suffix in READABLE and path.is_file() else labelled_arrays(name)


def labelled_table(path: Path, columns: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """x_train, y_train, x_test and y_test of a table: the column `label`, or the one that `columns` names, has the
    classes (numbers, or texts in their order), and the other columns of numbers are the features. A random half of the
    rows, the same every time, is the training data. Raises DataError for a row without a class or with a feature
    that is no number."""
    label, names = (columns or {}).get("label", "label"), list[str]()
    features, classes = list[list[float]](), list[str]()
    for row in read_rows(path):
        if label not in row.values:
            raise DataError(f"{row.place} has no {label!r}.", f"Name the column of classes: {', '.join(row.values)}.")
        names = names or [n for n, v in row.values.items() if n not in (label, "id") and _number(v) is not None]
        found = [_number(row.values.get(name)) for name in names]
        bad = next((name for name, value in zip(names, found) if value is None), None)
        if bad is not None:
            raise DataError(f"{row.place}: {bad!r} is {row.values.get(bad)!r}, no number.", "Mend or remove the row.")
        features.append([float(value) for value in found if value is not None])
        classes.append(text_of(row, label))
    if not names or len(features) < 2:
        raise DataError(f"{path} has {len(features)} rows with {len(names)} columns of numbers.", "Give more of both.")
    known = sorted(set(classes), key=lambda name: (_number(name) is None, _number(name) or 0.0, name))
    y = np.array([known.index(name) for name in classes])
    x, order = np.array(features, np.float32), np.random.default_rng(0).permutation(len(y))
    cut = round(len(y) / 2)
    parts = {"train": order[:cut], "test": order[cut:]}
    return {f"{name}_{part}": array[rows] for part, rows in parts.items() for name, array in (("x", x), ("y", y))}


def _number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) and not isinstance(value, bool) else None


def _blocks(path: Path) -> Iterator[Row]:
    line = 1
    parts = re.split(r"(\n[ \t]*\n)", read_text(path))
    for part in parts:
        if part.strip():
            yield Row({"text": part}, f"{path}, line {line}")
        line += part.count("\n")


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            values = json.loads(line.rstrip("\n"), object_pairs_hook=_object)
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
    reader = csv.DictReader(read_lines(path), strict=True)
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
    import pyarrow.parquet

    return _rows_of_batches(path, lambda: pyarrow.parquet.ParquetFile(path, memory_map=True).iter_batches(1024))


def _arrow_rows(path: Path) -> Iterator[Row]:
    return _rows_of_batches(path, lambda: (part for batch in arrow_batches(path) for part in _parts(batch)))


def arrow_batches(path: Path) -> Iterator[Any]:
    """The record batches of an Arrow file or stream, memory-mapped."""
    import pyarrow

    source = pyarrow.memory_map(str(path))
    try:
        file = pyarrow.ipc.open_file(source)
    except pyarrow.ArrowInvalid:
        yield from pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
        return
    for number in range(file.num_record_batches):
        yield file.get_batch(number)


def _parts(batch: Any) -> Iterator[Any]:
    return (batch.slice(start, 1024) for start in range(0, batch.num_rows, 1024))


def _rows_of_batches(path: Path, batches: Callable[[], Iterator[Any]]) -> Iterator[Row]:
    import pyarrow

    kind = "Arrow" if path.suffix == ".arrow" else "Parquet"
    number = 0
    try:
        for batch in batches():
            names = batch.schema.names
            if len(set(names)) != len(names):
                raise DataError(f"{path} names a column twice.", "Give every column its own name.")
            columns = [_values(batch.column(at)) for at in range(len(names))]
            for row in range(batch.num_rows):
                number += 1
                yield Row({name: values(row) for name, values in zip(names, columns)}, f"{path}, row {number}")
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        where = f"{path}, row {number}" if number else f"{path}"
        raise DataError(f"{where} cannot be read: {error}.", f"Look at the file: it is no sound {kind}.") from error


def _values(column: Any) -> Callable[[int], Any]:
    """A column's value by row: lists of numbers as arrays, anything else as Python has it."""
    found = of_arrow(column)
    return found.__getitem__ if found is not None else lambda row: column[row].as_py()


def _split_of(path: Path, split: str) -> Path:
    """The folder of a split in a folder of several that `datasets` saved; else the folder itself."""
    listed = path / "dataset_dict.json"
    if not listed.is_file():
        return path
    splits = json.loads(read_text(listed))["splits"]
    if split not in splits:
        raise DataError(
            f"{path} has no split {split!r}.", f"Give the folder of one of its splits: {', '.join(splits)}."
        )
    return path / split


def renamed(rows: Iterator[Row], columns: Mapping[str, str]) -> Iterator[Row]:
    """Rows with some columns under the names that are known here: {"text": "body"} reads `body` as the text. Raises
    DataError for a row without such a column."""
    own = {theirs: ours for ours, theirs in columns.items()}
    for row in rows:
        missing = next((theirs for theirs in own if theirs not in row.values), None)
        if missing is not None:
            raise DataError(f"{row.place} has no {missing!r}.", f"Its columns: {', '.join(row.values) or 'none'}.")
        kept = {name: value for name, value in row.values.items() if name in own or name not in columns}
        yield Row({own.get(name, name): value for name, value in kept.items()}, row.place)


def _check_text(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start]).strip("'")
        raise DataError(f"{place} has half of a surrogate pair ({half}).", "Write the whole character.") from error
