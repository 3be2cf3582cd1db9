"""The result of a bank: outputs of many models, each with the mask it was trained under and its hash.

A model counts as an oracle for a forget set only when its mask keeps none of it; that is read from the artefact's own
masks, whose hashes are checked.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from ..display import facts
from ..errors import CorruptEntry, DataError
from ..model.ids import named_rows, rows_of
from ..store.entry import Entry


def mask_hash(ids: Int64[np.ndarray, " n"], mask: Bool[np.ndarray, " n"]) -> str:
    """sha256 of the set of training ids that a mask keeps; the order of the rows does not matter."""
    kept = np.sort(np.asarray(ids, np.int64)[np.asarray(mask, bool)])
    return hashlib.sha256(b"mask/1" + np.ascontiguousarray(kept).astype("<i8").tobytes()).hexdigest()


def subset_masks(n: int, count: int, share: float, seed: int = 0) -> Bool[np.ndarray, "e n"]:
    """`count` random subsets, each of round(share * n) of the n examples, drawn without replacement."""
    size = round(share * n)
    if not 0 < size < n:
        raise DataError(
            f"A share of {share} of {n} examples keeps {size}: a mask must keep some and leave out some.",
            "Choose a share between 0 and 1.",
        )
    generator = np.random.default_rng(seed)
    order = np.argsort(generator.random((count, n)), axis=1)
    masks = np.zeros((count, n), bool)
    np.put_along_axis(masks, order[:, :size], True, axis=1)
    return masks


def oracle_masks(
    ids: Int64[np.ndarray, " n"], forget: Sequence[Any] | np.ndarray, count: int
) -> Bool[np.ndarray, "e n"]:
    """`count` masks of everything but the forget set (the oracles then differ by their seeds).

    Args:
        ids: of the training examples.
        forget: ids, or booleans [n], true for what is forgotten.
        count: how many masks.

    Raises DataError when the forget set is empty, is everything, or names an id twice or one that is unknown.
    """
    kept = ~member_rows(ids, forget)
    return np.repeat(kept[None], count, axis=0)


def member_rows(ids: Int64[np.ndarray, " n"], forget: Sequence[Any] | np.ndarray) -> Bool[np.ndarray, " n"]:
    """Which rows a forget set (ids, or booleans [n]) names.

    Raises DataError when that is none or all, for values that are neither ids nor a mask of this length, and for an id
    that is not there or is named twice.
    """
    rows = np.zeros(len(ids), bool)
    rows[named_rows(ids, forget)] = True
    if not rows.any() or rows.all():
        raise DataError(
            f"The forget set is {'empty' if not rows.any() else 'the whole training set'}.",
            "Name at least one example to forget and leave at least one to keep.",
        )
    return rows


@dataclass(frozen=True, eq=False)
class Retrained:
    """Models trained under masks: row e of every output is the model of `masks[e]` and `seeds[e]`.

    outputs: name -> array with leading axis e: "logits" [e p c] (or [e p s c]), "margins" [e p] (or [e p t],
        NaN where nothing is predicted), "losses" and "measurements" [e p], "weights" [e P] and, beside them,
        "buffers" (uint8 [e B], the bytes of running statistics and other buffers). Arrays may be lazy; `self[name]`
        reads one whole, `self.rows(name, models)` some of it.
    about: provenance for people (recipe, why training was sequential, seconds).
    """

    masks: Bool[np.ndarray, "e n"]
    seeds: Int64[np.ndarray, " e"]
    train_ids: Int64[np.ndarray, " n"]
    point_ids: Int64[np.ndarray, " p"]
    outputs: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        e, n = self.masks.shape
        return (
            f"Retrained({e} models of {n} training examples at {len(self.point_ids)} points: {', '.join(self.outputs)})"
        )

    def _repr_html_(self) -> str:
        kept, seconds = self.masks.sum(1), self.about.get("seconds")
        pairs = [
            ("models", len(self)),
            ("training examples", int(self.masks.shape[1])),
            ("kept by each", f"{int(kept.min())} to {int(kept.max())}" if len(kept) else ""),
            ("different training sets", len({mask.tobytes() for mask in self.masks})),
            ("points", len(self.point_ids)),
            *((f"outputs: {name}", " × ".join(map(str, values.shape))) for name, values in self.outputs.items()),
            ("recipe", self.about.get("recipe", "")),
            ("one by one because", self.about.get("why_sequential", "") or "(side by side)"),
        ]
        return facts(repr(self), pairs if seconds is None else [*pairs, ("trained in, s", seconds)]).html

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._output(name)[:])

    def rows(self, name: str, models: slice | np.ndarray) -> np.ndarray:
        """Output `name` of these models only, read from disk where it is lazy."""
        return np.asarray(self._output(name)[models])

    def _output(self, name: str) -> Any:
        if name not in self.outputs:
            raise DataError(
                f"This bank kept no {name!r}; it kept {', '.join(self.outputs)}.",
                f"Run it with keep=(..., {name!r}).",
            )
        return self.outputs[name]

    @property
    def hashes(self) -> list[str]:
        """sha256 of every model's set of training ids."""
        return [mask_hash(self.train_ids, mask) for mask in self.masks]

    def select(self, models: Any) -> "Retrained":
        """These models (rows or a mask over models), in memory."""
        index = np.asarray(models)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        kept = {name: self[name][index] for name in self.outputs}
        return Retrained(self.masks[index], self.seeds[index], self.train_ids, self.point_ids, kept, self.about)

    def at_points(self, ids: Sequence[Any] | np.ndarray) -> Int64[np.ndarray, " k"]:
        """Columns of the outputs for these point ids (or booleans, one per point).

        Raises DataError for a point that the bank was not run on, and for values that are no ids.
        """
        try:
            return rows_of(self.point_ids, ids)
        except DataError as error:
            cause = f"The bank has no outputs for some of these points: {error.cause}"
            raise DataError(cause, "Run the bank with these examples among its `points`.") from error

    def excluding(self, forget: Sequence[Any] | np.ndarray) -> "Retrained":
        """The models that were trained on none of the forget set (see `oracle_masks`); may be few."""
        return self.select(~np.any(self.masks[:, member_rows(self.train_ids, forget)], axis=1))

    def oracles(self, forget: Sequence[Any] | np.ndarray) -> "Retrained":
        """All models, as oracles for this forget set: each was trained on everything but it.

        Raises DataError when any was trained on some of it, or lacks anything else.
        """
        rows = member_rows(self.train_ids, forget)
        tainted = np.flatnonzero(self.masks[:, rows].any(1))
        if len(tainted):
            seen = int(self.masks[tainted[0]][rows].sum())
            raise DataError(
                f"{len(tainted)} of {len(self)} models were trained on what should be forgotten: model "
                f"{tainted[0]} (mask {self.hashes[tainted[0]][:12]}) saw {seen} of {int(rows.sum())} examples.",
                "Train oracles under oracle_masks(ids, forget, count), or take bank.excluding(forget) for a "
                "datamodel's masks.",
            )
        partial = np.flatnonzero(~self.masks[:, ~rows].all(1))
        if len(partial):
            lacking = int((~self.masks[partial[0]][~rows]).sum())
            raise DataError(
                f"{len(partial)} of {len(self)} models lack more than the forget set: model {partial[0]} "
                f"also lacks {lacking} examples that were to be kept.",
                "An oracle is trained on everything but the forget set: use oracle_masks.",
            )
        return self

    def check_hashes(self, recorded: Sequence[str]) -> "Retrained":
        """Raises CorruptEntry when the masks are not those whose hashes were recorded."""
        for e, (now, then) in enumerate(zip(self.hashes, recorded, strict=True)):
            if now != then:
                raise CorruptEntry(
                    f"The mask of model {e} hashes to {now[:12]}, recorded was {then[:12]}.",
                    "The bank's training ids or masks were altered; run it again.",
                )
        return self


@dataclass(frozen=True, eq=False)
class StoredOutput:
    """An output of a stored bank, read from disk on access: `output[models]`."""

    entry: Entry
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.entry.arrays[self.name].shape)

    def __getitem__(self, models: Any) -> np.ndarray:
        if isinstance(models, slice):
            start, stop, stride = models.indices(self.shape[0])
            if stride == 1:
                return self.entry.slice(self.name, start, stop)
            models = np.arange(start, stop, stride)
        return self.entry.rows(self.name, models)


def retrained_from(entry: Entry) -> Retrained:
    """A stored bank, its outputs read on access, its masks checked against their hashes.

    Raises CorruptEntry when the entry is no bank, or a mask is not the one whose hash was recorded.
    """
    if entry.kind != "bank":
        raise CorruptEntry(f"{entry.key[:12]} is a {entry.kind}, not a bank.", "Give the key of a bank.")
    outputs = {name: StoredOutput(entry, name) for name in entry.arrays if name not in ("mask", "seed", "mask_sha256")}
    retrained = Retrained(
        entry.read("mask"),
        entry.read("seed"),
        np.asarray(entry.about["train_ids"], np.int64),
        np.asarray(entry.about["point_ids"], np.int64),
        outputs,
        {"key": entry.key, **entry.about},
    )
    return retrained.check_hashes([bytes(row).hex() for row in entry.read("mask_sha256")])
