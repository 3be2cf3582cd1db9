"""Activations at hook points, kept in the store one row a position.

An entry holds, for every hook point, an array [positions d] in the order of the examples, and beside them
`example` (id), `position` and `token` of every row, so that whatever is found in a row can be traced to its text.
Padding is never stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import NumericalError
from ..store.entry import Entry
from ..store.layout import ArraySpec, Shard
from ..store.store import Store
from .batches import BATCH_POSITIONS, check_examples
from .bridge import to_numpy
from .examples import Examples
from .names import known_as
from .row_layout import Layout, layouts, outputs, real_positions
from .task import Classification, LanguageModelling, Regression
from .task_key import task_settings
from .trained import TrainedModel

SHARD_BYTES = 32 << 20  # of all arrays of a shard, which are in memory at once
COORDINATES = ("example", "position", "token")
STANDARD = (LanguageModelling, Classification, Regression)


def activations(
    trained: TrainedModel,
    at: str | Sequence[str],
    examples: Examples | None = None,
    *,
    store: Store | None = None,
    dtype: str = "float32",
) -> Entry:
    """Outputs of the named modules or hook points on every real position of the examples: opened, resumed or computed.

    What a row is depends on the shape of the output, for b examples of s positions: [b s d] and [b s h d] give a row of
    d or h*d numbers per real position, as does [b*s d]; [b d] and [b c h w] give a row per example, flattened; [b m d]
    where m does not depend on the text (patches, latents) gives m rows per example.

    Args:
        trained: the model; examples default to its training data.
        at: one hook point or several, by any of its names, all filled in one pass, with the forward pass cut short
            after the deepest. The entry's arrays have the names of the tree of modules (`cache.model.names.known_as`).
        store: where the entry is; by default the trained model's store, or the user's if it has none.
        dtype: as stored; "bfloat16" halves the size.

    Raises ModelError for a name that the model does not have, with near names, for an output of another shape, and if a
    few examples alone do not give the rows that they give in a batch; NumericalError if an activation is not finite,
    with the example's id; DataError for no data, and for an example that the model cannot run, with its id.

    >>> activations(trained, "1", store=store).read("1").shape  # one position per example
    (12, 8)
    """
    examples = trained.train if examples is None else examples
    store = store or trained.store or Store()
    check_examples(examples)
    names = [known_as(trained.model, name) for name in ([at] if isinstance(at, str) else at)]
    inputs: dict[str, Any] = {"model": trained.fingerprint(), "data": examples.fingerprint, "at": names, "dtype": dtype}
    if type(trained.task) not in STANDARD:  # a task of one's own may run the model in its own way
        inputs["task"] = task_settings(trained.task)
    if store.has("activations", inputs):
        return store.open("activations", inputs)
    found = layouts(trained, examples, names)
    (block,) = row_blocks(trained, examples, found, np.arange(1))
    widths = {name: block[name].shape[1] for name in names}
    each = found[names[0]].each
    ends = np.cumsum(examples.real_positions if each is None else np.full(len(examples), each, np.int64))
    total = int(ends[-1])
    specs = {name: ArraySpec((total, widths[name]), dtype) for name in names}
    specs |= {name: ArraySpec((total,), "int64") for name in COORDINATES}
    row = sum(spec.nbytes for spec in specs.values()) // max(total, 1)
    shard = int(min(total, max(1, SHARD_BYTES // max(row, 1))))
    about = {"ids": examples.ids.tolist(), "ends": ends.tolist(), "at": names}
    work = _Rows(trained, examples, found, ends, specs)
    return trained.job(
        "activations", inputs, specs, work, store=store, shard_rows=shard, about=about, desc="activations"
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Rows:
    """A shard's rows, from the examples that reach into it."""

    trained: TrainedModel
    examples: Examples
    found: Mapping[str, Layout]
    ends: np.ndarray
    specs: Mapping[str, ArraySpec]

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        starts = self.ends - np.diff(self.ends, prepend=0)
        first, last = np.searchsorted(self.ends, shard.start, "right"), np.searchsorted(starts, shard.stop, "left")
        rows = {n: np.empty((len(shard), *spec.shape[1:]), spec.dtype) for n, spec in self.specs.items()}
        at = int(starts[first]) - shard.start  # of a block's first row in the shard
        for block in row_blocks(self.trained, self.examples, self.found, np.arange(first, last)):
            count = len(block["example"])
            low, high = max(at, 0), min(at + count, len(shard))
            for name, array in rows.items():
                array[low:high] = block[name][low - at : high - at]
            at += count
        return rows


def row_blocks(
    trained: TrainedModel, examples: Examples, found: Mapping[str, Layout], rows: np.ndarray
) -> Iterator[dict[str, np.ndarray]]:
    """Consecutive examples' activations by hook point, real positions only, and `example`, `position` and `token` of
    every row, as numpy."""
    lengths, place = examples.lengths, 0
    while place < len(rows):
        count = max(1, int(np.searchsorted(np.cumsum(lengths[rows[place:]]), BATCH_POSITIONS, "right")))
        batch_rows = rows[place : place + count]
        place += count
        batch = trained.batch(examples, batch_rows)
        seen, real = outputs(trained, list(found), batch), real_positions(batch)
        block = {name: to_numpy(found[name].rows(value, real).float()) for name, value in seen.items()}
        where = _coordinates(examples, batch_rows, batch, real, next(iter(found.values())).each)
        for name, values in block.items():
            bad = ~np.isfinite(values).all(axis=1)
            if bad.any():
                ids = list(dict.fromkeys(where["example"][bad].tolist()))
                raise NumericalError(
                    f"{name} is not finite for {len(ids)} examples, ids {ids[:5]}.",
                    "Leave these examples out, or run the model in float32.",
                )
        yield block | where


def _coordinates(
    examples: Examples, rows: np.ndarray, batch: dict[str, Tensor], real: Tensor | None, each: int | None
) -> dict[str, np.ndarray]:
    """Example, position and token (-1 where a row is no token) of every row."""
    if each is not None:
        example, position = np.repeat(examples.ids[rows], each), np.tile(np.arange(each), len(rows))
        return {"example": example, "position": position, "token": np.full(len(position), -1, np.int64)}
    assert real is not None
    position = to_numpy((real.cumsum(1) - 1)[real])
    example = np.repeat(examples.ids[rows], to_numpy(real.sum(1)))
    token = to_numpy(batch["input_ids"][real]) if "input_ids" in batch else np.full(len(position), -1, np.int64)
    return {"example": example, "position": position, "token": token}
