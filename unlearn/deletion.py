"""What is to be forgotten: the trained models, their data, the forget set, and a ledger of what went before."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from whence.cache import DataError, Examples, Store, Task, UsageError
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import Recipe
from whence.cache.retrain.replicas import Replicas
from whence.cache.retrain.retrained import mask_hash, member_rows


class Deleted(NamedTuple):
    """One line of the ledger. kept: the hash of the training set that was left; before: the previous line's own
    hash, so that lines cannot be dropped or reordered unseen."""

    method: str
    forgotten: tuple[int, ...]
    kept: str
    passes: float
    before: str

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


@dataclass(frozen=True)
class Ledger:
    """Deletions in order; each line holds the hash of the one before."""

    lines: tuple[Deleted, ...] = ()

    def add(
        self, method: str, train_ids: np.ndarray, left: np.ndarray, forgotten: np.ndarray, passes: float
    ) -> "Ledger":
        kept = mask_hash(train_ids, left)
        before = self.lines[-1].hash if self.lines else ""
        line = Deleted(method, tuple(int(i) for i in forgotten), kept, float(passes), before)
        return Ledger((*self.lines, line))

    @property
    def forgotten(self) -> Int64[np.ndarray, " f"]:
        """Every id deleted so far."""
        return np.array([i for line in self.lines for i in line.forgotten], np.int64)

    @property
    def passes(self) -> float:
        return sum(line.passes for line in self.lines)

    def check(self) -> None:
        """Raises DataError when a line does not follow from the one before."""
        before = ""
        for number, line in enumerate(self.lines):
            if line.before != before:
                raise DataError(
                    f"Line {number} of the deletion ledger does not follow from the line before it.",
                    "Lines were dropped, reordered or altered: restore the ledger from its last sound copy.",
                )
            before = line.hash


@dataclass(frozen=True, eq=False)
class Deletion:
    """A request to forget.

    models: one trained model or an ensemble (lanes). train: everything they were trained on. forget: ids.
    recipe: how they were trained; compute is stated against doing it again on what is kept.
    build: seed -> untrained model, for methods that retrain. seeds: one a lane.
    retain: what stands in for the kept data (condensed examples, say); the kept training examples unless given.
    unlabelled: further points whose outputs may be matched; never a point of the evaluation's validation set.
    validation: the points that are evaluated, only to check that the forget set is not among them.
    ledger: what was deleted before, which is kept out of the retained data.

    Raises DataError when the forget set is empty, everything, unknown, already deleted or part of validation.

    >>> deletion = Deletion(models, task, train, train.ids[:4], recipe)
    >>> len(deletion.kept)
    36
    """

    models: Replicas
    task: Task
    train: Examples
    forget: Int64[np.ndarray, " f"]
    recipe: Recipe
    build: Callable[[int], nn.Module] | None = None
    seeds: Int64[np.ndarray, " e"] | None = None
    retain: Examples | None = None
    unlabelled: Examples | None = None
    validation: Examples | None = None
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        member_rows(self.train.ids, self.forget)
        gone = np.intersect1d(self.forget, self.ledger.forgotten)
        if len(gone):
            raise DataError(
                f"{len(gone)} of these examples were deleted before, for instance {int(gone[0])}.",
                "Name each example once; the ledger tells what is gone.",
            )
        if not self.left.any():
            raise DataError("Nothing would be left to keep.", "Leave at least one training example.")
        if self.validation is not None:
            shared = np.intersect1d(self.forget, self.validation.ids)
            if len(shared):
                raise DataError(
                    f"{len(shared)} forgotten examples are in the validation set, for instance {int(shared[0])}.",
                    "Validation must be data that no model was trained on.",
                )

    @staticmethod
    def of_bank(
        bank: Bank, forget: np.ndarray, models: int = 32, *, seed: int = 10_000, store: Store | None = None
    ) -> "Deletion":
        """Models that a bank's recipe makes of everything (from the store when they are there), asked to forget."""
        if not isinstance(bank.recipe, Recipe):
            raise UsageError("This bank trains in its own way.", "Use a Recipe, or make the Deletion from your models.")
        lanes = bank.models(models, seed, store, quiet=True)
        seeds = seed + np.arange(models)
        return Deletion(lanes, bank.task, bank.train, np.asarray(forget), bank.recipe, bank.build, seeds)

    def __repr__(self) -> str:
        return (
            f"Deletion({len(self.forget)} of {len(self.train)} examples, {len(self.models)} models, "
            f"{len(self.ledger.lines)} deletions before)"
        )

    @property
    def lane_seeds(self) -> Int64[np.ndarray, " e"]:
        return np.arange(len(self.models)) if self.seeds is None else self.seeds

    @cached_property
    def left(self) -> np.ndarray:
        """bool [n]: training examples that stay."""
        return ~(member_rows(self.train.ids, self.forget) | np.isin(self.train.ids, self.ledger.forgotten))

    @cached_property
    def kept(self) -> Examples:
        """What methods may use as retained data."""
        return self.train.select(self.left) if self.retain is None else self.retain

    @cached_property
    def forgotten(self) -> Examples:
        return self.train.select(self.train.rows_of(self.forget))

    @property
    def retraining(self) -> int:
        """Example passes of training again on what stays."""
        return self.recipe.passes(int(self.left.sum()))

    @cached_property
    def pool(self) -> "Pool":
        return Pool.of([self.forgotten, self.kept, *([self.unlabelled] if self.unlabelled else [])])

    def next(self, models: Replicas, forget: np.ndarray, ledger: Ledger) -> "Deletion":
        """The following deletion, from the models that this one left."""
        return Deletion(
            models,
            self.task,
            self.train,
            np.asarray(forget, np.int64),
            self.recipe,
            self.build,
            self.seeds,
            self.retain,
            self.unlabelled,
            self.validation,
            ledger,
        )


class Pool(NamedTuple):
    """Forget, retain and unlabelled examples as one set of tensors; a step names rows of it.

    columns: name -> [n ...]. sizes: of the parts, in that order.
    """

    columns: dict[str, Tensor]
    sizes: tuple[int, ...]

    @staticmethod
    def of(parts: list[Examples]) -> "Pool":
        width = max(int(part.lengths.max()) for part in parts)
        batches = [part.batch(np.arange(len(part)), pad_to=width) for part in parts]
        shared = set.intersection(*(set(batch) for batch in batches))
        columns = {
            name: torch.cat([batch[name].to(batches[0][name].dtype) for batch in batches]) for name in sorted(shared)
        }
        return Pool(columns, tuple(len(part) for part in parts))

    def __len__(self) -> int:
        return sum(self.sizes)

    def rows(self, part: int) -> np.ndarray:
        """Row numbers of the forget set (0), retained (1) or unlabelled (2) examples."""
        start = sum(self.sizes[:part])
        return np.arange(start, start + self.sizes[part]) if part < len(self.sizes) else np.arange(0)
