"""Ids of examples: int64, each exactly, from numbers and texts; and the rows that given ids, or a mask, name."""

import hashlib
import re
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from ..errors import DataError

LOWEST, HIGHEST = -(2**63), 2**63 - 1


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


def id_texts(given: Any) -> list[str]:
    """The ids as they were given, if some are texts that are no numbers."""
    if isinstance(given, np.ndarray) and given.dtype.kind not in "OUT":
        return []
    each = _flat(given.tolist() if isinstance(given, np.ndarray) else given)
    return [str(value) for value in each] if any(isinstance(v, str) and str(_id_of(v)) != v for v in each) else []


def repeated_ids(ids: np.ndarray) -> Int64[np.ndarray, " k"]:
    """The first row of every id that is there more than once."""
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    return np.sort(first[counts > 1])


def rows_of(ids: Int64[np.ndarray, " n"], wanted: Any) -> Int64[np.ndarray, " k"]:
    """Row numbers of the wanted ids, in their order. A mask of n truth values is taken as one.

    Raises DataError for an id that is not among `ids`, a mask of another length, and for what is no id (`as_ids`).
    """
    array = np.asarray(wanted) if not isinstance(wanted, torch.Tensor) else wanted.detach().cpu().numpy()
    if array.dtype == bool:
        return rows_of_mask(array, len(ids))
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
    twice = repeated_ids(rows)
    if len(twice):
        raise DataError(
            f"Ids are named twice, for instance {ids[rows[twice]][:3].tolist()}.", "Name every example once."
        )
    return rows


def rows_of_mask(mask: np.ndarray, count: int) -> Int64[np.ndarray, " k"]:
    if mask.shape != (count,):
        raise DataError(
            f"A mask of shape {mask.shape} cannot select from {count} examples.",
            "Make the mask over the same examples, in the same order.",
        )
    return np.flatnonzero(mask)
