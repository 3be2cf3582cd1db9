"""The data that a model is run over: named columns, one row an example, an id for every row.

A column is an array [n ...], or a list of 1-D arrays where examples differ in length (tokens); of data larger than
memory it is a `Ragged`, or a `Stacked` of rows of one shape, whose rows are read when a batch needs them. Ids are what
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
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from ..errors import DataError
from .columns import Column, columns_of
from .ids import as_ids, id_texts, named_rows, repeated_ids, rows_of, rows_of_mask
from .ragged import Derived, Ragged, Stacked

# the value of a padded position, by column; `attention_mask` masks padded positions in any case
PADDING = {"labels": -100}
TOKENS = ("input_ids", "labels", "attention_mask", "position_ids", "token_type_ids", "segments")  # of whole numbers
STEP = 1.25  # between the widths that sequences are padded to


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
        repeated = repeated_ids(self.ids)
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
        columns = columns_of(data)
        count = len(next(iter(columns.values()))) if columns else 0
        if ids is None:
            return Examples(columns, np.arange(count, dtype=np.int64), about or {})
        texts = id_texts(ids)
        return Examples(columns, as_ids(ids), {**({"id": texts} if texts else {}), **(about or {})})

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        """Positions in each example: of its tokens, else of the first ragged column, else 1."""
        if self._sequences is not None:
            return _lengths(self.columns[self._sequences])
        tokens = self.columns.get("input_ids")
        return np.full(len(self), 1 if tokens is None else np.asarray(tokens).shape[1], np.int64)

    @cached_property
    def real_positions(self) -> Int64[np.ndarray, " n"]:
        """Positions in each example that its `attention_mask` does not leave out."""
        mask = self.columns.get("attention_mask")
        if mask is None or np.ndim(mask[0]) != 1:
            return self.lengths
        return np.array([np.count_nonzero(row) for row in mask], np.int64)

    @property
    def _sequences(self) -> str | None:
        """The ragged column whose positions are the examples'."""
        ragged = [name for name, values in self.columns.items() if not isinstance(values, (np.ndarray, Stacked))]
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
            rows = rows_of_mask(rows, len(self))
        elif rows.size and rows.dtype.kind not in "iu":
            raise DataError(f"Row numbers of type {rows.dtype} select nothing.", "Give whole numbers, or a mask.")
        rows = rows.astype(np.int64).reshape(-1)
        return Examples(
            {name: _take(values, rows) for name, values in self.columns.items()},
            self.ids[rows],
            {name: _take(values, rows) for name, values in self.about.items()},
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
            if isinstance(values, (np.ndarray, Stacked)):
                whole = values.take(rows).whole() if isinstance(values, Stacked) else values[rows]
                out[name] = torch.as_tensor(np.ascontiguousarray(whole))
                continue
            taken = [np.asarray(values[row]) for row in rows]
            width = _width(max(len(v) for v in taken), pad_to)
            padded = np.full((len(rows), width, *taken[0].shape[1:]), PADDING.get(_kind(name), 0), taken[0].dtype)
            mask = np.zeros((len(rows), width), np.int64)
            for line, v in enumerate(taken):
                padded[line, : len(v)] = v
                mask[line, : len(v)] = 1
            out[name] = torch.as_tensor(padded)
            if name == self._sequences and "attention_mask" not in self.columns:
                out["attention_mask"] = torch.as_tensor(mask)
        for name, value in out.items():
            if _kind(name) in TOKENS and not value.is_floating_point():
                out[name] = value.long()
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
            f"{name} {list(v.shape[1:]) if isinstance(v, (np.ndarray, Stacked)) else 'ragged'}"
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


def _cut(columns: Mapping[str, Column], ids: np.ndarray) -> Mapping[str, Column]:
    """The columns without the padding that their `attention_mask` names. A mask that has nothing more to say goes."""
    mask = columns.get("attention_mask")
    if mask is None:
        return columns
    if isinstance(mask, Ragged):
        return _cut_ragged(columns, mask)
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


def _cut_ragged(columns: Mapping[str, Column], mask: Ragged) -> Mapping[str, Column]:
    """The same for a mask that is read as needed: one pass over it, and a new beginning and end of every row."""
    first, last, whole = np.zeros(len(mask), np.int64), np.zeros(len(mask), np.int64), np.zeros(len(mask), bool)
    for at, row in enumerate(mask):
        real = np.flatnonzero(row)
        first[at], last[at] = (real[0], real[-1] + 1) if len(real) else (0, 0)
        whole[at] = len(real) == last[at] - first[at]
    out: dict[str, Column] = {}
    for name, values in columns.items():
        fits = isinstance(values, Ragged) and np.array_equal(values.lengths, mask.lengths)
        out[name] = Ragged(values.numbers, values.starts + first, values.starts + last) if fits else values  # type: ignore[union-attr]
    return {name: v for name, v in out.items() if name != "attention_mask"} if whole.all() else out


def _has_shape(values: Column, lengths: list[int]) -> bool:
    return all(np.ndim(row) > 0 and len(row) == length for row, length in zip(values, lengths))


def _kind(name: str) -> str:
    """What a column is: `labels_1`, of a second completion, is padded as `labels`."""
    return re.sub(r"_[0-9]+$", "", name)


def _width(longest: int, pad_to: int | None) -> int:
    """The width of a batch's column: the given one, or one of few larger ones where a column beside the tokens is
    longer, so that JAX compiles few shapes."""
    if pad_to is None or longest <= pad_to:
        return max(longest, pad_to or 0)
    width = pad_to
    while width < longest:
        width = wider(width)
    return width


def wider(width: int) -> int:
    """The next width that sequences are padded to: a multiple of 8, a quarter more."""
    return max(width + 8, int(width * STEP) // 8 * 8)


def _take(values: Any, rows: np.ndarray) -> Any:
    if isinstance(values, (Ragged, Derived)):
        return values.take(rows)
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]


def _lengths(values: Any) -> Int64[np.ndarray, " n"]:
    return values.lengths if isinstance(values, Ragged) else np.array([len(v) for v in values], np.int64)


def _end_to_end(one: Any, other: Any) -> Any:
    one, other = (each.whole() if isinstance(each, Stacked) else each for each in (one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.shape[1:] == other.shape[1:]:
        return np.concatenate([one, other])
    arrays = isinstance(one, np.ndarray) or isinstance(other, np.ndarray)
    if arrays and len(one) and len(other) and (np.ndim(one[0]) == 0 or np.shape(one[0])[1:] != np.shape(other[0])[1:]):
        raise DataError("A column has other shapes in the two sets of examples.", "Give both columns of one shape.")
    return [*one, *other]
