"""The k most helpful and k most harmful examples of each query, in memory that does not grow with the training set.

Rows are scored in blocks; each block leaves its own k best and worst behind, in the store when there is one (so a
job that is killed goes on), and the blocks' lists are merged at the end.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from whence.cache import ArraySpec, Examples, Shard, Store, Task, UsageError, key_of, run_job

from .factors import Factors
from .method import FitOptions
from .precision import Precision
from .queries import Rank, settled_rank
from .scores import SHARD_ROWS, Pairwise, RowWork, check_model, pair_inputs, prepared_once

if TYPE_CHECKING:
    import xarray


def top(
    factors: Factors,
    model: nn.Module,
    task: Task,
    queries: Examples,
    train: Examples,
    k: int = 10,
    *,
    store: Store | None = None,
    rank: Rank = "auto",
    precision: Precision = "float32",
    train_size: int | None = None,
    options: FitOptions = FitOptions(),
) -> "xarray.Dataset":
    """The ends of every query's list: a Dataset with `helpful` and `harmful` [query, place] in nats (from the largest
    and from the smallest score on) and the examples' ids `helpful_id`, `harmful_id`; k is cut to the number of
    examples. Holds 2 k (1 + blocks) numbers a query, never [query, train]. Raises as `score`.

    >>> ends = top(factors, model, task, queries, train, k=2)
    >>> ends["helpful"].shape, bool((ends["helpful"] >= ends["harmful"]).all())
    ((3, 2), True)
    """
    import xarray

    if k < 1:
        raise UsageError(f"A list of the top {k}.", "Ask for at least 1.")
    check_model(factors, model)
    rank = settled_rank(factors, len(queries), rank, precision, options)
    inputs = {**pair_inputs(factors, task, queries, train, rank, precision), "what": "top", "k": k, "rows": SHARD_ROWS}
    pairwise = Pairwise(factors, model, task, queries, rank, precision, False, options)
    root = "" if store is None else store.root
    rows = RowWork(
        key_of("scores", inputs) + root, factors, model, task, train, (len(queries), 1), pairwise, root, options,
        "top scores",
    )  # fmt: skip
    work = _Ends(rows, len(queries), min(k, len(train)), SHARD_ROWS)
    with prepared_once():
        merged = _merge(_blocks(work, len(train), inputs, store, options), work.k)
    size = np.float32(factors.count if train_size is None else train_size)
    coords = {"query": queries.ids, "place": np.arange(1, work.k + 1)}
    arrays = {}
    for name in ("helpful", "harmful"):
        arrays[name] = (("query", "place"), merged[name] / size)
        arrays[f"{name}_id"] = (("query", "place"), train.ids[merged[f"{name}_row"]])
    attrs = {"units": "nats", "method": factors.method, "examples": len(train)}
    return xarray.Dataset(arrays, coords=coords, attrs=attrs)


@dataclass(frozen=True)
class _Ends:
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
        for name, sign in (("helpful", 1.0), ("harmful", -1.0)):
            found, places = ends(sign * scores, self.k)
            out[name] = (sign * found)[None]
            out[f"{name}_row"] = np.where(places < 0, -1, places + start)[None]
        return out


def ends(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row [q n] in falling order (ties in order of place) and their places; short rows are filled
    with -inf and place -1."""
    take = min(k, scores.shape[1])
    places = np.argsort(-scores, axis=1, kind="stable")[:, :take]
    found = np.take_along_axis(scores, places, axis=1)
    pad = ((0, 0), (0, k - take))
    return (
        np.pad(found, pad, constant_values=-np.inf).astype(np.float32),
        np.pad(places, pad, constant_values=-1).astype(np.int64),
    )


def _blocks(
    work: _Ends, examples: int, inputs: Mapping[str, Any], store: Store | None, options: FitOptions
) -> Iterator[dict[str, np.ndarray]]:
    count = -(-examples // work.block)
    if store is None:
        for block in range(count):
            yield work(Shard(block, block, block + 1))
        return
    shape = (count, work.queries, work.k)
    specs = {}
    for name in ("helpful", "harmful"):
        specs[name], specs[f"{name}_row"] = ArraySpec(shape, "float32"), ArraySpec(shape, "int64")
    entry = run_job(store, "scores", inputs, specs, work, shard_rows=1, cluster=options.cluster, log=options.log,
                    desc="top scores", quiet=options.quiet)  # fmt: skip
    for block in range(count):
        yield {name: entry.slice(name, block, block + 1) for name in specs}


def _merge(blocks: Iterator[dict[str, np.ndarray]], k: int) -> dict[str, np.ndarray]:
    merged: dict[str, np.ndarray] = {}
    for block in blocks:
        for name, sign in (("helpful", 1.0), ("harmful", -1.0)):
            values, rows = block[name][0], block[f"{name}_row"][0]
            if name in merged:
                values = np.concatenate([merged[name], values], 1)
                rows = np.concatenate([merged[f"{name}_row"], rows], 1)
            found, places = ends(sign * values, k)
            merged[name], merged[f"{name}_row"] = sign * found, np.take_along_axis(rows, places, axis=1)
    return merged
