"""Columns of numbers from what people have: dicts, pairs, lists of rows, pandas and Arrow tables, torch datasets.

A column is an array [n ...], or a list of arrays of unequal length.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from ..errors import DataError
from .ids import HIGHEST
from .ragged import Ragged, Stacked, of_arrow

Column: TypeAlias = Ragged | Stacked | np.ndarray | Sequence[np.ndarray]
LARGE = 1 << 24  # numbers of a table's column of lists, beyond which its rows are read as needed


def columns_of(data: Any) -> dict[str, Column]:
    if isinstance(data, Mapping):
        return {str(name): _column(values, str(name)) for name, values in data.items()}
    if isinstance(data, tuple) and len(data) == 2:
        return {"x": _column(data[0], "x"), "y": _column(data[1], "y")}
    if hasattr(getattr(data, "data", None), "table") and hasattr(data, "column_names"):  # a data set of Hugging Face
        return _columns_of_dataset(data)
    if hasattr(data, "to_pydict"):  # an Arrow table
        return {name: _large(data.column(name)) or _column(data.column(name), name) for name in data.column_names}
    if hasattr(data, "columns") and hasattr(data, "iloc"):  # a pandas table
        return {str(name): _column(data[name].to_numpy(), str(name)) for name in data.columns}
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise DataError(
            f"A {type(data).__name__} is not a data set with a length.",
            "Give a dict of columns, a list of dicts, (x, y) arrays, a pandas or Arrow table, or a map-style dataset.",
        )
    items = [data[row] for row in range(len(data))]
    if not items:
        raise DataError("The data set is empty.", "Give at least one example.")
    if isinstance(items[0], Mapping):
        return _columns_of_rows(items)
    if isinstance(items[0], (tuple, list)) and len(items[0]) == 2:
        return {"x": _column([x for x, _ in items], "x"), "y": _column([y for _, y in items], "y")}
    raise DataError(
        f"Items of type {type(items[0]).__name__} cannot be read as examples.",
        "Let items be dicts of arrays, or (x, y) pairs.",
    )


def _columns_of_dataset(data: Any) -> dict[str, Column]:
    """The columns of numbers of a data set of Hugging Face: those that are large are read from its memory-mapped
    files as needed."""
    table, chosen = data.data.table, getattr(data, "_indices", None)
    large: dict[str, Column] = {}
    for name in data.column_names:
        column = _large(table.column(name))
        if column is not None:
            large[name] = column if chosen is None else column.take(chosen.column(0).to_numpy())
    others = [name for name in data.column_names if name not in large]
    items = data.select_columns(others) if others else []
    rest = _columns_of_rows([items[row] for row in range(len(items))], bool(large)) if len(items) else {}
    both = {**rest, **large}
    return {name: both[name] for name in data.column_names if name in both}


def _large(column: Any) -> Ragged | None:
    """A column of lists with more numbers than are copied, read as needed; None for another."""
    found = of_arrow(column) if hasattr(column, "type") else None
    return None if found is None or int(found.lengths.sum()) <= LARGE else found


def _columns_of_rows(items: list[Mapping[str, Any]], may_be_none: bool = False) -> dict[str, Column]:
    """The columns of numbers of a list of rows: those that have a number in some row."""
    columns = {}
    for name in items[0]:
        lacking = next((row for row, item in enumerate(items) if name not in item), None)
        if lacking is not None:
            raise DataError(f"Row {lacking} has no column {name!r}.", "Give every row the same columns.")
        values = [item[name] for item in items]
        if any(_is_numeric(value) for value in values):
            columns[name] = _column(values, name)
    if not columns and not may_be_none:
        raise DataError("No column has numbers.", "Tokenize texts first, or give arrays of numbers.")
    return columns


def _is_numeric(value: Any) -> bool:
    try:
        return np.asarray(value).dtype.kind in "biuf" and value is not None
    except ValueError:  # lists of unequal length
        return False


def _column(values: Any, name: str) -> Column:
    """A column as one array, or as a list of arrays of unequal length. Raises DataError with the row of the first value
    that is no number."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return _whole_numbers(values, name)
    if hasattr(values, "to_pylist"):
        values = values.to_pylist()
    rows = []
    for at, value in enumerate(values):
        row = _numbers(value)
        if row is None:
            what = "null" if value is None else f"a {type(value).__name__}" if not isinstance(value, str) else "text"
            raise DataError(
                f"Column {name!r} is {what} in row {at}, where numbers are needed: {str(value)[:40]!r}.",
                "Give numbers (tokenize texts, drop or fill rows without a value), or pass the column as about={...}.",
            )
        rows.append(_whole_numbers(row, name))
    if rows and all(r.shape == rows[0].shape for r in rows):
        return np.stack(rows)
    if any(r.ndim == 0 or r.shape[1:] != rows[0].shape[1:] for r in rows):
        raise DataError(
            f"Column {name!r} has examples of different shapes that cannot be batched.",
            "Pad or crop them to one shape first; only their first axis may differ.",
        )
    return rows


def _numbers(value: Any) -> np.ndarray | None:
    """A value as an array of numbers; None for what is not."""
    try:
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if array.dtype == object and array.size:  # as tables keep nested lists
            array = np.stack([np.asarray(each) for each in array])
    except (TypeError, ValueError, OverflowError):
        return None
    return array if array.dtype.kind in "biuf" else None


def _whole_numbers(array: np.ndarray, name: str) -> np.ndarray:
    """Unsigned numbers as signed ones, which torch takes, if each is kept exactly."""
    if array.dtype.kind != "u" or array.dtype.itemsize < 2:
        return array
    if array.size and int(array.max()) > HIGHEST:
        raise DataError(f"Column {name!r} has {int(array.max())}, beyond 63 bits.", "Give smaller whole numbers.")
    return array.astype(np.int64)
