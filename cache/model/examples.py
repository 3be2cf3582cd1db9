"""The data that a model is run over: named columns, one row an example, an id for every row.

A column is an array [n ...], or a list of 1-D arrays where examples differ in length (tokens). Ids are what
results are labelled with, what sampled labels are keyed by, and what a forget set names, so an example keeps
its id through every selection and under any batching.

Ids are int64. A text id that is a number in decimal is that number; any other text has an id of 53 bits that is derived
from it (`as_ids`), the same everywhere, and is shown beside it in `about["id"]`. Wherever ids are given, the texts may
be given. Ids that int64 cannot keep exactly (floats, NaN, beyond 63 bits) are refused.

Padding is no part of an example: where there is an `attention_mask`, columns of its shape are cut to the positions from
the first that is real to the last, so every batch is padded on the right, here.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int64

from ..errors import DataError

Column: TypeAlias = np.ndarray | Sequence[np.ndarray]

# the value of a padded position, by column; `attention_mask` masks padded positions in any case
LOWEST, HIGHEST = -(2**63), 2**63 - 1  # of ids and whole numbers
PADDING = {"labels": -100}
TOKENS = ("input_ids", "labels", "attention_mask", "position_ids", "token_type_ids")  # of whole numbers


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of data with ids.

    columns: name -> array [n ...] or list of n 1-D arrays. The field's names are used: `input_ids` (and
        optionally `labels`, -100 if masked) for language, `x` and `y` for anything else.
    ids: int64 [n], unique.
    about: name -> n values for people (title, text); no part of the fingerprint.

    Raises DataError when columns differ in length, ids repeat or cannot be kept exactly, an `attention_mask` has other
    values than 0 and 1, or there is no column.

    >>> texts = Examples.of({"input_ids": [[5, 2, 9], [7, 1]]})
    >>> texts.lengths.tolist(), texts.batch([0, 1])["attention_mask"].tolist()
    ([3, 2], [[1, 1, 1], [1, 1, 0]])
    """

    columns: Mapping[str, Column]
    ids: Int64[np.ndarray, " n"]
    about: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.columns:
            raise DataError("These examples have no column.", "Give at least one, such as input_ids or x.")
        for name, values in [*self.columns.items(), *self.about.items()]:
            if len(values) != len(self.ids):
                raise DataError(
                    f"Column {name!r} has {len(values)} rows for {len(self.ids)} ids.",
                    "Give every column one row an example.",
                )
        object.__setattr__(self, "ids", as_ids(self.ids))
        repeated = _repeated(self.ids)
        if len(repeated):
            shown = [self.about["id"][row] if "id" in self.about else int(self.ids[row]) for row in repeated[:3]]
            raise DataError(
                f"Example ids repeat, for instance {shown}.",
                "Number the examples once, before selecting or joining them.",
            )
        object.__setattr__(self, "columns", _cut(self.columns, self.ids))

    @staticmethod
    def of(data: Any, ids: Any = None, about: Mapping[str, Sequence] | None = None) -> "Examples":
        """Examples from what people have: a dict of columns, a list of dicts, (x, y), a pandas or Arrow table, a torch
        or Hugging Face dataset (anything with len() whose items are dicts or (x, y) pairs).

        Args:
            data: columns of numbers. Columns of text that an item of a list or a dataset has are left out.
            ids: one whole number or text an example; by default 0, 1, 2, ...
            about: name -> one value an example, for people.

        Raises DataError for what is no table of numbers, with the row of the first text or null.
        """
        if isinstance(data, Examples):
            return data
        columns = _columns_of(data)
        count = len(next(iter(columns.values()))) if columns else 0
        if ids is None:
            return Examples(columns, np.arange(count, dtype=np.int64), about or {})
        texts = _texts(ids)
        return Examples(columns, as_ids(ids), {**({"id": texts} if texts else {}), **(about or {})})

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        """Positions in each example: of its tokens, else of the first ragged column, else 1."""
        if self._sequences is not None:
            return np.array([len(v) for v in self.columns[self._sequences]], np.int64)
        tokens = self.columns.get("input_ids")
        return np.full(len(self), 1 if tokens is None else np.shape(tokens)[1], np.int64)

    @cached_property
    def real_positions(self) -> Int64[np.ndarray, " n"]:
        """Positions in each example that its `attention_mask` does not leave out."""
        mask = self.columns.get("attention_mask")
        return self.lengths if mask is None else np.array([int(np.sum(row)) for row in mask], np.int64)

    @property
    def _sequences(self) -> str | None:
        """The ragged column whose positions are the examples'."""
        ragged = [name for name, values in self.columns.items() if not isinstance(values, np.ndarray)]
        return next((name for name in ("input_ids", "x") if name in ragged), next(iter(ragged), None))

    def rows_of(self, ids: Any) -> Int64[np.ndarray, " k"]:
        """Row numbers of these ids (or of a mask over the examples), in their order; an id may be there twice.

        Raises DataError for an id that is not here, and for what is no id.
        """
        return rows_of(self.ids, ids)

    def select(self, rows: Any) -> "Examples":
        """The examples at these row numbers (or at which a mask is true), with their ids."""
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = _rows_of_mask(rows, len(self))
        elif rows.size and rows.dtype.kind not in "iu":
            raise DataError(f"Row numbers of type {rows.dtype} select nothing.", "Give whole numbers, or a mask.")
        rows = rows.astype(np.int64).reshape(-1)
        return Examples(
            {name: _take(values, rows) for name, values in self.columns.items()},
            self.ids[rows],
            {name: [values[row] for row in rows] for name, values in self.about.items()},
        )

    def where(self, **equal: Any) -> "Examples":
        """The examples whose `about` values equal these: `docs.where(title="yield")`."""
        mask = np.ones(len(self), bool)
        for name, wanted in equal.items():
            if name not in self.about:
                raise DataError(
                    f"Nothing called {name!r} is known about these examples.",
                    f"Known: {', '.join(self.about) or 'nothing'}.",
                )
            mask &= np.array([value == wanted for value in self.about[name]], bool)
        return self.select(mask)

    def without(self, ids: Any) -> "Examples":
        """All but the examples with these ids (or where a mask is true).

        Raises DataError for an id that is not here, or is named twice.
        """
        keep = np.ones(len(self), bool)
        keep[named_rows(self.ids, ids)] = False
        return self.select(keep)

    def joined(self, other: "Examples") -> "Examples":
        """These examples and then the others, in the columns and `about` values that both have. Raises DataError if an
        id is in both, or a column is ragged in one only."""

        def both(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
            return {name: _end_to_end(mine[name], theirs[name]) for name in mine if name in theirs}

        columns, about = both(self.columns, other.columns), both(self.about, other.about)
        if ("id" in self.about) != ("id" in other.about):  # numbers beside texts: shown as they are
            names = [list(each.about.get("id", [str(i) for i in each.ids])) for each in (self, other)]
            about["id"] = names[0] + names[1]
        return Examples(columns, np.concatenate([self.ids, other.ids]), about)

    def batch(
        self, rows: Any, pad_to: int | None = None, device: Any = "cpu", dtype: torch.dtype | None = None
    ) -> dict[str, torch.Tensor]:
        """These rows as tensors: ragged columns padded on the right (to `pad_to` positions when given), with
        `attention_mask` [b s] if there is anything to mask and `example_id` [b] always. Floating-point columns have
        the type `dtype`, their own by default."""
        rows = np.asarray(rows, np.int64)
        out: dict[str, torch.Tensor] = {}
        for name, values in self.columns.items():
            if isinstance(values, np.ndarray):
                out[name] = torch.as_tensor(np.ascontiguousarray(values[rows]))
                continue
            taken = [np.asarray(values[row]) for row in rows]
            width = max([pad_to or 0, *(len(v) for v in taken)])
            padded = np.full((len(rows), width, *taken[0].shape[1:]), PADDING.get(name, 0), taken[0].dtype)
            mask = np.zeros((len(rows), width), np.int64)
            for line, v in enumerate(taken):
                padded[line, : len(v)] = v
                mask[line, : len(v)] = 1
            out[name] = torch.as_tensor(padded)
            if name == self._sequences and "attention_mask" not in self.columns:
                out["attention_mask"] = torch.as_tensor(mask)
        for name in TOKENS:
            if name in out and not out[name].is_floating_point():
                out[name] = out[name].long()
        out["example_id"] = torch.as_tensor(self.ids[rows])
        return {name: t.to(device, dtype if t.is_floating_point() else None) for name, t in out.items()}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over names, dtypes, shapes, bytes and ids in row order; the same under any batching."""
        digest = hashlib.sha256(b"examples/1")
        for name in sorted(self.columns):
            values = self.columns[name]
            digest.update(f"|{name}|".encode())
            for array in [values] if isinstance(values, np.ndarray) else values:
                array = np.ascontiguousarray(array)
                digest.update(f"{array.dtype.str}{array.shape}".encode())
                digest.update(array.tobytes())
        digest.update(np.ascontiguousarray(self.ids).tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{name} {'ragged' if not isinstance(v, np.ndarray) else list(v.shape[1:])}"
            for name, v in self.columns.items()
        )
        return f"Examples({len(self)}: {shapes}; about {', '.join(self.about) or 'nothing'})"

    def _repr_html_(self) -> str:
        from ..display import table

        shown = [name for name in self.about if len(self.about[name]) == len(self)]
        head = ("id", "length", *shown)
        rows = [
            (int(self.ids[n]), int(self.lengths[n]), *(str(self.about[name][n])[:120] for name in shown))
            for n in range(min(len(self), SHOWN))
        ]
        more = f"; the first {SHOWN}" if len(self) > SHOWN else ""
        return table(head, rows, f"{self!r}{more}").html


SHOWN = 8  # examples that a notebook is shown


def as_ids(values: Any) -> Int64[np.ndarray, " n"]:
    """Ids as int64, each exactly: whole numbers as they are, texts by their number in decimal, or else by 53 bits of
    their sha256 (which JSON and JavaScript keep).

    Raises DataError for floats, NaN, truth values, nulls and whole numbers beyond 63 bits.

    >>> as_ids(["17", 3]).tolist(), as_ids(["a17"]) == as_ids(np.array(["a17"]))
    ([17, 3], array([ True]))
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray) and values.dtype.kind == "i":
        return values.ravel().astype(np.int64)
    each = values.ravel().tolist() if isinstance(values, np.ndarray) else _flat(values)
    return np.array([_id_of(value) for value in each], np.int64)


def _flat(values: Any) -> list[Any]:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().ravel().tolist()
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        return [values]
    return [inner for value in values for inner in _flat(value)]


def _id_of(value: Any) -> int:
    if isinstance(value, (str, np.str_)):
        text = str(value)
        if re.fullmatch(r"0|-?[1-9][0-9]{0,18}", text) and LOWEST <= int(text) <= HIGHEST:
            return int(text)
        return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 11
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if whole and LOWEST <= value <= HIGHEST:
        return int(value)
    raise DataError(
        f"{value!r} cannot be an id{' (it is beyond 63 bits)' if whole else ''}.",
        "Give whole numbers of 63 bits and a sign, or text (`[str(i) for i in ids]`).",
    )


def _texts(given: Any) -> list[str]:
    """The ids as they were given, if some are texts that are no numbers."""
    if isinstance(given, np.ndarray) and given.dtype.kind not in "OUT":
        return []
    each = _flat(given.tolist() if isinstance(given, np.ndarray) else given)
    return [str(value) for value in each] if any(isinstance(v, str) and str(_id_of(v)) != v for v in each) else []


def _repeated(ids: np.ndarray) -> Int64[np.ndarray, " k"]:
    """The first row of every id that is there more than once."""
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    return np.sort(first[counts > 1])


def rows_of(ids: Int64[np.ndarray, " n"], wanted: Any) -> Int64[np.ndarray, " k"]:
    """Row numbers of the wanted ids, in their order. A mask of n truth values is taken as one.

    Raises DataError for an id that is not among `ids`, a mask of another length, and for what is no id (`as_ids`).
    """
    array = np.asarray(wanted) if not isinstance(wanted, torch.Tensor) else wanted.detach().cpu().numpy()
    if array.dtype == bool:
        return _rows_of_mask(array, len(ids))
    found = as_ids(wanted)
    order = np.argsort(ids, kind="stable")
    places = np.minimum(np.searchsorted(ids, found, sorter=order), max(len(ids) - 1, 0))
    rows = order[places] if len(ids) else np.zeros(0, np.int64)
    here = ids[rows] == found if len(ids) else np.zeros(len(found), bool)
    if not here.all():
        unknown = [str(shown) for shown, known in zip(_flat(array.tolist()), here) if not known]
        raise DataError(
            f"{len(unknown)} ids are not among these {len(ids)} examples, for instance {', '.join(unknown[:3])}.",
            "Use the ids of this data set (its .ids).",
        )
    return rows.astype(np.int64)


def named_rows(ids: Int64[np.ndarray, " n"], wanted: Any) -> Int64[np.ndarray, " k"]:
    """The rows of a set of ids, such as those to forget: as `rows_of`, and DataError for an id that is named twice."""
    rows = rows_of(ids, wanted)
    twice = _repeated(rows)
    if len(twice):
        raise DataError(
            f"Ids are named twice, for instance {ids[rows[twice]][:3].tolist()}.", "Name every example once."
        )
    return rows


def _rows_of_mask(mask: np.ndarray, count: int) -> Int64[np.ndarray, " k"]:
    if mask.shape != (count,):
        raise DataError(
            f"A mask of shape {mask.shape} cannot select from {count} examples.",
            "Make the mask over the same examples, in the same order.",
        )
    return np.flatnonzero(mask)


def _cut(columns: Mapping[str, Column], ids: np.ndarray) -> Mapping[str, Column]:
    """The columns without the padding that their `attention_mask` names. A mask that has nothing more to say goes."""
    mask = columns.get("attention_mask")
    if mask is None:
        return columns
    rows = [np.asarray(row) for row in mask]
    for at, row in enumerate(rows):
        if row.ndim != 1:
            return columns
        if row.dtype.kind not in "biuf" or not np.isin(row, (0, 1)).all():
            raise DataError(
                f"The attention_mask of example {ids[at]} has other values than 0 and 1.",
                "Give 1 for every token and 0 for padding.",
            )
    lengths = [len(row) for row in rows]
    if not any(_has_shape(values, lengths) for name, values in columns.items() if name != "attention_mask"):
        return columns  # of something else than the positions of a column, such as the patches of an image
    if all(row.all() for row in rows):
        whole = isinstance(mask, np.ndarray)
        return columns if whole else {name: v for name, v in columns.items() if name != "attention_mask"}
    real = [np.flatnonzero(row) for row in rows]
    parts = [slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 0) for at in real]
    out = {
        name: [np.asarray(v)[part] for v, part in zip(values, parts)] if _has_shape(values, lengths) else values
        for name, values in columns.items()
    }
    holes = any(len(at) != part.stop - part.start for at, part in zip(real, parts))
    return out if holes else {name: values for name, values in out.items() if name != "attention_mask"}


def _has_shape(values: Column, lengths: list[int]) -> bool:
    return all(np.ndim(row) > 0 and len(row) == length for row, length in zip(values, lengths))


def _take(values: Column, rows: np.ndarray) -> Column:
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]


def _end_to_end(one: Any, other: Any) -> Any:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.shape[1:] == other.shape[1:]:
        return np.concatenate([one, other])
    arrays = isinstance(one, np.ndarray) or isinstance(other, np.ndarray)
    if arrays and len(one) and len(other) and (np.ndim(one[0]) == 0 or np.shape(one[0])[1:] != np.shape(other[0])[1:]):
        raise DataError("A column has other shapes in the two sets of examples.", "Give both columns of one shape.")
    return [*one, *other]


def _columns_of(data: Any) -> dict[str, Column]:
    if isinstance(data, Mapping):
        return {str(name): _column(values, str(name)) for name, values in data.items()}
    if isinstance(data, tuple) and len(data) == 2:
        return {"x": _column(data[0], "x"), "y": _column(data[1], "y")}
    if hasattr(data, "to_pydict"):  # an Arrow table
        return {name: _column(values, name) for name, values in data.to_pydict().items()}
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


def _columns_of_rows(items: list[Mapping[str, Any]]) -> dict[str, Column]:
    """The columns of numbers of a list of rows: those that have a number in some row."""
    columns = {}
    for name in items[0]:
        lacking = next((row for row, item in enumerate(items) if name not in item), None)
        if lacking is not None:
            raise DataError(f"Row {lacking} has no column {name!r}.", "Give every row the same columns.")
        values = [item[name] for item in items]
        if any(_is_numeric(value) for value in values):
            columns[name] = _column(values, name)
    if not columns:
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
