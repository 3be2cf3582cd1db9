"""The deletion log: what was deleted, in order, each entry with the hash of the one before."""

import hashlib
import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from whence.cache import DataError
from whence.cache.model.ids import named_rows
from whence.cache.retrain.retrained import mask_hash, member_rows


def named(train_ids: Int64[np.ndarray, " n"], forget: np.ndarray) -> Int64[np.ndarray, " f"]:
    """The ids of a forget set, in the order given.

    Args:
        train_ids: of all training examples.
        forget: ids, or a boolean mask over the training examples.

    Raises DataError if it is empty or everything, for a mask of another length, for ids that are unknown or named
    twice, and for values that are no ids.
    """
    member_rows(train_ids, forget)
    return train_ids[named_rows(train_ids, forget)]


class DeletionEntry(NamedTuple):
    """One deletion. kept: the hash of the training set that is left; before: the hash of the previous entry, so that
    entries cannot be dropped or reordered unnoticed."""

    method: str
    forgotten: tuple[int, ...]
    kept: str
    passes: float
    before: str

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


@dataclass(frozen=True)
class DeletionLog:
    """Deletions in order; each entry contains the hash of the one before."""

    entries: tuple[DeletionEntry, ...] = ()

    def add(
        self, method: str, train_ids: np.ndarray, left: np.ndarray, forgotten: np.ndarray, passes: float
    ) -> "DeletionLog":
        """The log with one more entry.

        Args:
            method: its name.
            train_ids: ids of all training examples.
            left: bool [n], which of them stay.
            forgotten: ids of those deleted now.
            passes: example passes per model.

        Raises DataError as `named`, and for ids that were deleted before.
        """
        gone = named(train_ids, forgotten)
        self.check_new(gone)
        kept = mask_hash(train_ids, left)
        before = self.entries[-1].hash if self.entries else ""
        entry = DeletionEntry(method, tuple(int(i) for i in gone), kept, float(passes), before)
        return DeletionLog((*self.entries, entry))

    @property
    def forgotten(self) -> Int64[np.ndarray, " f"]:
        """Every id deleted so far."""
        return np.array([i for entry in self.entries for i in entry.forgotten], np.int64)

    @property
    def passes(self) -> float:
        return sum(entry.passes for entry in self.entries)

    def check_new(self, ids: Int64[np.ndarray, " f"]) -> None:
        """Raises DataError for ids that were deleted before."""
        if len(again := np.intersect1d(ids, self.forgotten)):
            raise DataError(
                f"{len(again)} of these examples were deleted before, for instance {int(again[0])}.",
                "Name each example once; the deletion log lists those that are gone.",
            )

    def check(self) -> None:
        """Raises DataError if an entry does not follow from the one before."""
        before = ""
        for number, entry in enumerate(self.entries):
            if entry.before != before:
                raise DataError(
                    f"Entry {number} of the deletion log does not follow from the entry before it.",
                    "Entries were dropped, reordered or altered: restore the log from its last intact copy.",
                )
            before = entry.hash

    def to_json(self) -> str:
        """The entries with their hashes."""
        return json.dumps([entry._asdict() | {"hash": entry.hash} for entry in self.entries])
