"""Activations at hook points, kept in the store one row a position.

An entry holds, for every hook point, an array [positions d] in the order of the examples, and beside them
`example` (id), `position` and `token` of every row, so that whatever is found in a row can be traced to its text.
Padding is never stored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import NumericalError
from ..jobs.partitions import run_job
from ..store.entry import Entry
from ..store.layout import ArraySpec, Shard
from ..store.store import Store
from .batches import check_examples
from .bridge import to_numpy
from .capture import outputs_at
from .examples import Examples
from .task import Classification, LanguageModelling
from .trained import TrainedModel

SHARD_BYTES = 64 << 20
BATCH_POSITIONS = 8192
COORDINATES = ("example", "position", "token")


def activations(
    trained: TrainedModel,
    at: str | Sequence[str],
    examples: Examples | None = None,
    *,
    store: Store | None = None,
    dtype: str = "float32",
) -> Entry:
    """Outputs of the named modules or hook points on every real position of the examples: opened, resumed or computed.

    Args:
        trained: the model; examples default to its training data.
        at: one hook point or several, all filled in one pass, with the forward pass cut short after the deepest.
        store: where the entry is; by default the trained model's store, or the user's if it has none.
        dtype: as stored; "bfloat16" halves the size.

    Raises ModelError for a name that the model does not have, with near names; NumericalError if an activation is not
    finite, with the example's id; DataError for no data.

    >>> activations(trained, "1", store=store).read("1").shape  # one position per example
    (12, 8)
    """
    examples = trained.train if examples is None else examples
    store = store or trained.store or Store()
    check_examples(examples)
    names = [at] if isinstance(at, str) else list(at)
    inputs = {"model": trained.fingerprint(), "data": examples.fingerprint, "at": names, "dtype": dtype}
    if store.has("activations", inputs):
        return store.open("activations", inputs)
    per_example, shapes = _probe(trained, examples, names)
    ends = np.cumsum(per_example)
    total = int(ends[-1])
    specs = {name: ArraySpec((total, *shapes[name]), dtype) for name in names}
    specs |= {name: ArraySpec((total,), "int64") for name in COORDINATES}
    width = sum(int(np.prod(shapes[name])) for name in names) * (2 if dtype in ("bfloat16", "float16") else 4)
    shard = int(min(total, max(1, SHARD_BYTES // max(width, 1))))
    about = {"ids": examples.ids.tolist(), "ends": ends.tolist(), "at": names}
    work = _Rows(trained, examples, names, ends, dtype, tuple(specs))
    return run_job(
        store, "activations", inputs, specs, work, shard_rows=shard, about=about,
        cluster=trained.cluster, log=trained.log, desc="activations", quiet=trained.quiet,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Rows:
    """A shard's rows, from the examples that reach into it."""

    trained: TrainedModel
    examples: Examples
    names: list[str]
    ends: np.ndarray
    dtype: str
    arrays: tuple[str, ...]

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        starts = self.ends - np.diff(self.ends, prepend=0)
        first, last = np.searchsorted(self.ends, shard.start, "right"), np.searchsorted(starts, shard.stop, "left")
        blocks = list(_blocks(self.trained, self.examples, self.names, np.arange(first, last)))
        skip = shard.start - int(starts[first])
        rows = {}
        for name in self.arrays:
            whole = np.concatenate([block[name] for block in blocks])[skip : skip + len(shard)]
            rows[name] = whole if name in COORDINATES else _stored(whole, self.dtype)
        return rows


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        import ml_dtypes

        return values.astype(ml_dtypes.bfloat16)
    return values.astype(dtype)


def _blocks(
    trained: TrainedModel, examples: Examples, names: list[str], rows: np.ndarray
) -> Iterator[dict[str, np.ndarray]]:
    """Consecutive examples' rows, real positions only, as numpy."""
    lengths, place = examples.lengths, 0
    while place < len(rows):
        count = max(1, int(np.searchsorted(np.cumsum(lengths[rows[place:]]), BATCH_POSITIONS, "right")))
        batch_rows = rows[place : place + count]
        place += count
        batch = trained.batch(examples, batch_rows)
        seen = outputs_at(trained.model, names, partial(_forward, trained.model, batch))
        mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
        block = {name: to_numpy(_rows(value, mask).float()) for name, value in seen.items()}
        for name in names:
            if not np.isfinite(block[name]).all():
                raise NumericalError(
                    f"{name} is not finite for some of the examples with ids {examples.ids[batch_rows][:5].tolist()}.",
                    "Leave these examples out, or run the model in float32.",
                )
        yield block | _coordinates(examples, batch_rows, batch, mask, len(block[names[0]]))


def _coordinates(
    examples: Examples, rows: np.ndarray, batch: dict[str, Tensor], mask: Tensor | None, count: int
) -> dict[str, np.ndarray]:
    each = count // len(rows)
    position = np.tile(np.arange(each), len(rows))
    example, token = np.repeat(examples.ids[rows], each), np.full(count, -1, np.int64)
    if "input_ids" in batch:
        real = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask
        token = to_numpy(batch["input_ids"][real])
        example = np.repeat(examples.ids[rows], to_numpy(real.sum(1)))
        position = to_numpy((real.cumsum(1) - 1)[real])
    return {"example": example.astype(np.int64), "position": position.astype(np.int64), "token": token}


def _rows(value: Tensor, mask: Tensor | None) -> Tensor:
    """[positions ...]: real positions of sequences, every row of [b s d], one row of anything else."""
    if mask is not None and value.ndim >= 3 and value.shape[:2] == mask.shape:
        return value[mask]
    return value.flatten(0, 1) if value.ndim == 3 else value.flatten(1)


def _forward(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    task = LanguageModelling() if "input_ids" in batch else Classification()
    return task.logits(model, batch)


def _probe(
    trained: TrainedModel, examples: Examples, names: list[str]
) -> tuple[np.ndarray, dict[str, tuple[int, ...]]]:
    """Rows each example yields, and the shape of one row at every hook point."""
    (block,) = _blocks(trained, examples, names, np.arange(1))
    each = len(block[names[0]])
    per_example = examples.lengths if "input_ids" in examples.columns else np.full(len(examples), each, np.int64)
    return per_example, {name: block[name].shape[1:] for name in names}
