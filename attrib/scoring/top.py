"""The k most helpful and k most harmful examples of each query, in memory that does not grow with the training set.

Rows are scored in blocks. Each block stores its own k largest and smallest scores (so a job that is killed resumes),
and the blocks' lists are merged.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.cache import ArraySpec, Examples, TrainedModel, UsageError
from whence.cache.errors import enough_memory
from whence.cache.store.layout import Shard

from ..curvature import Curvature
from .precision import Precision
from .queries import Rank, resolved_rank
from .rows import SHARD_ROWS, RowWork, gradients_in
from .scores import Pairwise

if TYPE_CHECKING:
    import xarray

NAMES = ("helpful", "harmful")


def top(
    factors: Curvature, queries: Examples, train: Examples, k: int, *, rank: Rank, precision: Precision
) -> "xarray.Dataset":
    """See Factors.top."""
    if k < 1:
        raise UsageError(f"k = {k}.", "Give a k of at least 1.")
    factors.check_model()
    rank = resolved_rank(factors, len(queries), rank, precision)
    pairwise = Pairwise(factors, queries, rank, precision)
    inputs = {**pairwise.inputs(train), "what": "top", "k": k, "rows": SHARD_ROWS}
    scored = RowWork(pairwise.groups(train), train, (len(queries), 1), "top scores", gradients_in(inputs))
    work = _Extremes(scored, len(queries), min(k, len(train)), SHARD_ROWS)
    merged = _merge(_blocks(work, len(train), inputs, factors.trained), work.k)
    size = np.float32(factors.train_size)
    rows = {name: merged[f"{name}_row"] for name in NAMES}
    return factors.extremes({name: merged[name] / size for name in NAMES}, rows, queries, train)


@dataclass(frozen=True)
class _Extremes:
    """The best and worst k of one block of rows, as the one row of its shard."""

    rows: RowWork
    queries: int
    k: int
    block: int

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        start = shard.start * self.block
        stop = min(start + self.block, len(self.rows.train))
        scores = self.rows(Shard(shard.index, start, stop))["values"][..., 0].T  # [q rows]
        out = {}
        for name, sign in zip(NAMES, (1.0, -1.0)):
            found, places = largest(sign * scores, self.k)
            out[name] = (sign * found)[None]
            out[f"{name}_row"] = np.where(places < 0, -1, places + start)[None]
        return out


def largest(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row [q n] in falling order (ties in order of place) and their places; short rows are padded
    with -inf and place -1."""
    n = scores.shape[1]
    take, negated = min(k, n), -scores
    places = np.empty((len(scores), take), np.int64)
    limits = np.partition(negated, take - 1, axis=1)[:, take - 1] if take else np.zeros(len(scores))
    for row, (values, limit) in enumerate(zip(negated, limits)):
        near = np.flatnonzero(values <= limit) if limit == limit else np.arange(n)  # the k-th is not a number
        places[row] = near[np.argsort(values[near], kind="stable")][:take]
    found = np.take_along_axis(scores, places, axis=1)
    pad = ((0, 0), (0, k - take))
    return (
        np.pad(found, pad, constant_values=-np.inf).astype(np.float32),
        np.pad(places, pad, constant_values=-1).astype(np.int64),
    )


def _blocks(
    work: _Extremes, examples: int, inputs: Mapping[str, Any], trained: TrainedModel
) -> Iterator[dict[str, np.ndarray]]:
    count = -(-examples // work.block)
    if trained.store is None:
        for block in range(count):
            with enough_memory("top scores"):
                found = work(Shard(block, block, block + 1))
            yield found
        return
    shape = (count, work.queries, work.k)
    specs = {}
    for name in NAMES:
        specs[name], specs[f"{name}_row"] = ArraySpec(shape, "float32"), ArraySpec(shape, "int64")
    entry = trained.job("scores", inputs, specs, work, shard_rows=1, desc="top scores")
    for block in range(count):
        yield {name: entry.slice(name, block, block + 1) for name in specs}


def _merge(blocks: Iterator[dict[str, np.ndarray]], k: int) -> dict[str, np.ndarray]:
    merged: dict[str, np.ndarray] = {}
    for block in blocks:
        for name, sign in zip(NAMES, (1.0, -1.0)):
            values, rows = block[name][0], block[f"{name}_row"][0]
            if name in merged:
                values = np.concatenate([merged[name], values], 1)
                rows = np.concatenate([merged[f"{name}_row"], rows], 1)
            found, places = largest(sign * values, k)
            merged[name], merged[f"{name}_row"] = sign * found, np.take_along_axis(rows, places, axis=1)
    return merged
