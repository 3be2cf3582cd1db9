"""The data that a model is run over: named columns, one row an example, an id for every row.

A column is an array [n ...], or a list of 1-D arrays where examples differ in length (tokens). Ids are what
results are labelled with, what sampled labels are keyed by, and what a forget set names, so an example keeps
its id through every selection and under any batching.
"""

import hashlib
from collections import Counter
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
PADDING = {"labels": -100}


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of data with ids.

    columns: name -> array [n ...] or list of n 1-D arrays. The field's names are used: `input_ids` (and
        optionally `labels`, -100 if masked) for language, `x` and `y` for anything else.
    ids: int64 [n], unique.
    about: name -> n values for people (title, text); no part of the fingerprint.

    Raises DataError when columns differ in length, ids repeat, or there is no column.

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
        if len(np.unique(self.ids)) != len(self.ids):
            repeated = np.unique(self.ids)[np.unique(self.ids, return_counts=True)[1] > 1][:3]
            raise DataError(
                f"Example ids repeat, for instance {repeated.tolist()}.",
                "Number the examples once, before selecting or joining them.",
            )

    @staticmethod
    def of(data: Any, ids: Any = None, about: Mapping[str, Sequence] | None = None) -> "Examples":
        """Examples from what people have: a dict of columns, a list of dicts, (x, y), a torch or Hugging Face
        dataset (anything with len() whose items are dicts or (x, y) pairs)."""
        if isinstance(data, Examples):
            return data
        columns = _columns_of(data)
        count = len(next(iter(columns.values()))) if columns else 0
        return Examples(
            columns,
            np.arange(count, dtype=np.int64) if ids is None else np.asarray(ids, np.int64),
            about or {},
        )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        """Positions in each example: of the first ragged column, else of `input_ids`, else 1."""
        for values in self.columns.values():
            if not isinstance(values, np.ndarray):
                return np.array([len(v) for v in values], np.int64)
        tokens = self.columns.get("input_ids")
        return np.full(len(self), 1 if tokens is None else np.shape(tokens)[1], np.int64)

    def rows_of(self, ids: Any) -> Int64[np.ndarray, " k"]:
        """Row numbers of these ids, in their order, or of the rows where a mask is true (`rows_named`)."""
        return rows_named(self.ids, ids)

    def select(self, rows: Any) -> "Examples":
        """The examples at these row numbers (or at which a mask is true), with their ids."""
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        rows = np.asarray(rows)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise DataError(
                    f"A mask of shape {rows.shape} cannot select from {len(self)} examples.",
                    "Make the mask over the same examples, in the same order.",
                )
            rows = np.flatnonzero(rows)
        rows = rows.astype(np.int64)
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
        """All but the examples with these ids."""
        keep = np.ones(len(self), bool)
        keep[self.rows_of(ids)] = False
        return self.select(keep)

    def joined(self, other: "Examples") -> "Examples":
        """These examples and then the others, in the columns and `about` values that both have. Raises DataError if an
        id is in both, or a column is ragged in one only."""

        def both(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
            return {name: _end_to_end(mine[name], theirs[name]) for name in mine if name in theirs}

        columns, about = both(self.columns, other.columns), both(self.about, other.about)
        return Examples(columns, np.concatenate([self.ids, other.ids]), about)

    def batch(self, rows: Any, pad_to: int | None = None, device: Any = "cpu") -> dict[str, torch.Tensor]:
        """These rows as tensors: ragged columns padded on the right (to `pad_to` positions when given), with
        `attention_mask` [b s] if there is anything to mask and `example_id` [b] always."""
        rows = np.asarray(rows, np.int64)
        out: dict[str, torch.Tensor] = {}
        for name, values in self.columns.items():
            if isinstance(values, np.ndarray):
                out[name] = torch.as_tensor(np.ascontiguousarray(values[rows]))
                continue
            taken = [np.asarray(values[row]) for row in rows]
            width = pad_to or max((len(v) for v in taken), default=0)
            padded = np.full((len(rows), width), PADDING.get(name, 0), taken[0].dtype)
            mask = np.zeros((len(rows), width), np.int64)
            for line, v in enumerate(taken):
                padded[line, : len(v)] = v
                mask[line, : len(v)] = 1
            out[name] = torch.as_tensor(padded)
            out.setdefault("attention_mask", torch.as_tensor(mask))
        for name in ("input_ids", "labels"):
            if name in out and not out[name].is_floating_point():
                out[name] = out[name].long()
        out["example_id"] = torch.as_tensor(self.ids[rows])
        return {name: tensor.to(device) for name, tensor in out.items()}

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


def rows_named(known: np.ndarray, ids: Any) -> Int64[np.ndarray, " k"]:
    """Rows of `known` that these ids name, in their order. A boolean array is a mask over the rows.

    Raises DataError for a mask of another length, ids that are not whole numbers, named twice or not there."""
    wanted = np.asarray(ids)
    if wanted.dtype == bool:
        if wanted.shape != (len(known),):
            raise DataError(
                f"A mask of shape {list(wanted.shape)} cannot choose among {len(known)} examples.",
                "Give one boolean an example, in the examples' order, or give ids.",
            )
        return np.flatnonzero(wanted)
    wanted = wanted.ravel()
    if len(wanted) and wanted.dtype.kind not in "iu":
        raise DataError(
            f"Ids of type {wanted.dtype} cannot name examples: ids are whole numbers.",
            "Use the ids of this data set (its .ids), or a boolean mask over its rows.",
        )
    where = {int(i): row for row, i in enumerate(known)}
    named = [int(i) for i in wanted]
    unknown = [i for i in named if i not in where]
    if unknown:
        raise DataError(
            f"{len(unknown)} ids are not among these {len(known)} examples, for instance {unknown[:3]}.",
            "Use the ids of this data set (its .ids).",
        )
    if repeated := [i for i, times in Counter(named).items() if times > 1]:
        raise DataError(
            f"{len(repeated)} ids are named more than once, for instance {repeated[:3]}.", "Name each example once."
        )
    return np.array([where[i] for i in named], np.int64)


SHOWN = 8  # examples that a notebook is shown


def _take(values: Column, rows: np.ndarray) -> Column:
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]


def _end_to_end(one: Any, other: Any) -> Any:
    if isinstance(one, np.ndarray) != isinstance(other, np.ndarray):
        raise DataError("A column is ragged in one set of examples only.", "Make both lists of rows, or both arrays.")
    return np.concatenate([one, other]) if isinstance(one, np.ndarray) else [*one, *other]


def _columns_of(data: Any) -> dict[str, Column]:
    if isinstance(data, Mapping):
        return {name: _column(values) for name, values in data.items()}
    if isinstance(data, tuple) and len(data) == 2:
        return {"x": _column(data[0]), "y": _column(data[1])}
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise DataError(
            f"A {type(data).__name__} is not a data set with a length.",
            "Give a dict of columns, a list of dicts, (x, y) arrays, or a map-style dataset.",
        )
    items = [data[row] for row in range(len(data))]
    if not items:
        raise DataError("The data set is empty.", "Give at least one example.")
    if isinstance(items[0], Mapping):
        return {name: _column([item[name] for item in items]) for name in items[0] if _is_numeric(items[0][name])}
    if isinstance(items[0], (tuple, list)) and len(items[0]) == 2:
        return {"x": _column([x for x, _ in items]), "y": _column([y for _, y in items])}
    raise DataError(
        f"Items of type {type(items[0]).__name__} cannot be read as examples.",
        "Let items be dicts of arrays, or (x, y) pairs.",
    )


def _is_numeric(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "biuf"


def _column(values: Any) -> Column:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values
    rows = [np.asarray(v) for v in values]
    if rows and all(r.shape == rows[0].shape for r in rows):
        return np.stack(rows)
    if any(r.ndim != 1 for r in rows):
        raise DataError(
            "Examples of different shapes that are more than one list of numbers cannot be batched.",
            "Pad or crop them to one shape first.",
        )
    return rows
