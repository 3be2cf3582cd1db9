"""Scores of some queries, from stored scores of more: what is computed of one query does not depend on the others."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from whence.cache import Entry, Examples, Store
from whence.cache.errors import StoreError
from whence.cache.store.keys import plain


def query_prints(queries: Examples) -> list[str]:
    """What stands for each query whatever its id: a hash of its columns."""
    found = []
    for row in range(len(queries)):
        digest = hashlib.sha256()
        for name in sorted(queries.columns):
            value = np.ascontiguousarray(queries.columns[name][row])
            digest.update(f"|{name}|{value.dtype.str}{value.shape}".encode() + value.tobytes())
        found.append(digest.hexdigest()[:32])
    return found


def from_more(store: Store, inputs: Mapping[str, Any], prints: list[str]) -> tuple[Entry, np.ndarray] | None:
    """Complete scores whose inputs are these but for the queries, which are more, and the places of these among them;
    None if there are none."""
    wanted = {name: value for name, value in plain(inputs).items() if name != "queries"}
    for kind, key in store.contents():
        if kind != "scores":
            continue
        try:
            header = store.header(kind, key)
        except (StoreError, OSError):
            continue
        places = {each: place for place, each in enumerate(header.about.get("query_prints", ()))}
        same = {name: value for name, value in header.inputs.items() if name != "queries"} == wanted
        if same and set(prints) <= places.keys() and store.has(kind, header.inputs):
            return store.get(key), np.array([places[each] for each in prints], np.int64)
    return None
