"""What is to be forgotten: trained models, their data, the forget set, and a log of earlier deletions."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from whence.cache import DataError, Examples, Store, Task, TrainedModel, UsageError
from whence.cache.retrain.bank import Bank, OwnTraining
from whence.cache.retrain.recipe import Recipe
from whence.cache.retrain.replicas import Replicas
from whence.cache.retrain.retrained import member_rows

from .deletion_log import DeletionLog, named


@runtime_checkable
class Trains(Protocol):
    """How models were trained: a Recipe, or a callable of the caller's own that knows what it costs."""

    def passes(self, examples: int) -> int: ...


@dataclass(frozen=True, eq=False)
class UnlearningRequest:
    """Models that are to forget some of their training examples.

    Args:
        models: one trained model or an ensemble.
        task: what they were trained for.
        train: everything they were trained on.
        forget: ids of the training examples to forget, or a boolean mask over the training examples; kept as ids.
        recipe: how they were trained, or a function (model, examples, seed) -> trained model of the caller's own;
            compute is stated against doing it again on what is kept.
        build: seed -> untrained model, for methods that retrain.
        seeds: one per model.
        retain: replaces the kept data (condensed examples, for instance); by default the kept training examples.
        unlabelled: further points whose outputs may be matched; never a point of the evaluation's validation set.
        validation: the points that are evaluated, only to check that the forget set is not among them.
        log: earlier deletions, which are left out of the retained data.
        passes: example passes of training on what is kept, of a function of the caller's own.

    Raises DataError if the forget set is empty, everything, unknown, named twice, already deleted or part of
    validation; UsageError for a training of the caller's own whose passes are not given.

    >>> request = UnlearningRequest(models, task, train, train.ids[:4], recipe)
    >>> len(request.kept)
    36
    """

    models: Replicas
    task: Task
    train: Examples
    forget: np.ndarray
    recipe: Recipe | Trains | OwnTraining
    build: Callable[[int], nn.Module] | None = None
    seeds: Int64[np.ndarray, " e"] | None = None
    retain: Examples | None = None
    unlabelled: Examples | None = None
    validation: Examples | None = None
    log: DeletionLog = field(default_factory=DeletionLog)
    passes: int | None = None

    def __post_init__(self) -> None:
        check_passes(self.recipe, self.passes)
        object.__setattr__(self, "forget", named(self.train.ids, self.forget))
        self.log.check_new(self.forget)
        if not self.left.any():
            raise DataError("Nothing would be left to keep.", "Leave at least one training example.")
        if self.validation is not None:
            shared = np.intersect1d(self.forget, self.validation.ids)
            if len(shared):
                raise DataError(
                    f"{len(shared)} forgotten examples are in the validation set, for instance {int(shared[0])}.",
                    "Validate on data that no model was trained on.",
                )

    @staticmethod
    def of_bank(
        bank: Bank,
        forget: np.ndarray,
        models: int = 32,
        *,
        seed: int = 10_000,
        store: Store | None = None,
        passes: int | None = None,
    ) -> "UnlearningRequest":
        """Models that a bank trains on everything (from the store if they are there), to forget some of it. passes: of
        one training, if the bank trains by a function of the caller's own that does not say; UsageError without."""
        check_passes(bank.recipe, passes)  # before anything is trained
        forget, seeds = named(bank.train.ids, forget), seed + np.arange(models)
        replicas = bank.models(models, seed, store, quiet=True)
        recipe, build = bank.recipe, bank.build
        return UnlearningRequest(replicas, bank.task, bank.train, forget, recipe, build, seeds, passes=passes)

    def __repr__(self) -> str:
        return (
            f"UnlearningRequest({len(self.forget)} of {len(self.train)} examples, {len(self.models)} models, "
            f"{len(self.log.entries)} deletions before)"
        )

    @property
    def replica_seeds(self) -> Int64[np.ndarray, " e"]:
        return np.arange(len(self.models)) if self.seeds is None else self.seeds

    @property
    def device(self) -> torch.device:
        """Where the models are; batches and tables of targets go there."""
        return self.models.flat.device

    @cached_property
    def left(self) -> np.ndarray:
        """bool [n]: the training examples that stay."""
        return ~(member_rows(self.train.ids, self.forget) | np.isin(self.train.ids, self.log.forgotten))

    @cached_property
    def kept(self) -> Examples:
        """What methods may use as retained data."""
        return self.train.select(self.left) if self.retain is None else self.retain

    @cached_property
    def forgotten(self) -> Examples:
        return self.train.select(self.train.rows_of(self.forget))

    @cached_property
    def copies(self) -> Int64[np.ndarray, "k 2"]:
        """Pairs (id of a forgotten example, id of a kept one) whose columns are equal: what they teach stays in the
        retained data."""
        forgotten: dict[bytes, list[int]] = {}
        for row, name in zip(*self._contents(self.forgotten)):
            forgotten.setdefault(row, []).append(name)
        parts = [self.train.select(self.left), *([self.retain] if self.retain is not None else [])]
        pairs = [
            (gone, name)
            for part in parts
            for row, name in zip(*self._contents(part))
            for gone in forgotten.get(row, ())
        ]
        return np.array(sorted(set(pairs)), np.int64).reshape(-1, 2)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of its results must know, one sentence or two each."""
        if not len(self.copies):
            return ()
        gone, kept = self.copies[0].tolist()
        return (
            f"{len(np.unique(self.copies[:, 0]))} forgotten examples have the same content as a kept one under another "
            f"id, for instance {gone} and {kept}. What they teach stays; forget the copies as well to remove it.",
        )

    @staticmethod
    def _contents(examples: Examples) -> tuple[list[bytes], list[int]]:
        """The bytes of every example's columns, and its id."""
        columns = [examples.columns[name] for name in sorted(examples.columns)]
        rows = [b"|".join(np.asarray(column[row]).tobytes() for column in columns) for row in range(len(examples))]
        return rows, examples.ids.tolist()

    @property
    def retraining(self) -> int:
        """Example passes of training again on what stays."""
        return self.recipe.passes(int(self.left.sum())) if isinstance(self.recipe, Trains) else int(self.passes or 0)

    @cached_property
    def pool(self) -> "Pool":
        parts = [self.forgotten, self.kept, *([self.unlabelled] if self.unlabelled else [])]
        return Pool.of(parts, self.device, self.models.flat.dtype)

    def trained(self, replica: int = 0, **options: Any) -> TrainedModel:
        """One of the models as it is before, bound to all training data. options: as for TrainedModel (store, sites,
        quiet)."""
        return TrainedModel(self.models.module(replica), self.train, self.task, **options)

    def next(self, models: Replicas, forget: np.ndarray, log: DeletionLog) -> "UnlearningRequest":
        """The following request, to models that are the result of this one."""
        return replace(self, models=models, forget=forget, log=log)


def check_passes(recipe: Recipe | Trains | OwnTraining, passes: int | None) -> None:
    """Raise UsageError for a training of the caller's own without what it costs."""
    if not isinstance(recipe, Trains) and not passes:
        raise UsageError(
            "A training of your own does not say what it costs, which compute is compared with.",
            "Give passes: how many examples, counted once an epoch, one training goes through; or give a callable "
            "object with passes(examples).",
        )


class Pool(NamedTuple):
    """Forget, retain and unlabelled examples as one set of tensors; a step names rows of it.

    columns: name -> [n ...]. sizes: of the parts, in that order.
    """

    columns: dict[str, Tensor]
    sizes: tuple[int, ...]

    @staticmethod
    def of(parts: list[Examples], device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> "Pool":
        width = max(int(part.lengths.max()) for part in parts)
        batches = [part.batch(np.arange(len(part)), width, device, dtype) for part in parts]
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

    def batch(self, rows: np.ndarray | Tensor) -> dict[str, Tensor]:
        """These rows of every column."""
        at = torch.as_tensor(rows)
        return {name: column[at.to(column.device)] for name, column in self.columns.items()}
