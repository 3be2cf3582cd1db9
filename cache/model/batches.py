"""Batches: how data are cut into padded batches of few shapes, and a batch as captured at the sites, in JAX.

Sequences are put in buckets by length and padded to a handful of widths. A last batch that is not full is filled with
rows of zeros, which count nothing, so JAX compiles a handful of shapes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import DataError
from .bridge import to_jax, to_numpy
from .capture import Captured, position_mask
from .examples import Examples, wider
from .sites import Sites
from .stateless import widened

if TYPE_CHECKING:
    import jax

BATCH_POSITIONS = 8192  # larger batches are not faster: products are large enough


class PlannedBatch(NamedTuple):
    """Row numbers of one batch, the width they are padded to, and the rows of a full batch of that width."""

    rows: Int64[np.ndarray, " b"]
    width: int
    full: int


class CapturedBatch(NamedTuple):
    """One batch at the sites, in JAX.

    rows: row numbers of the real examples. Arrays have `full >= len(rows)` rows, zeros after the real ones.
    value: the objective of the real examples, [b].
    inputs, grads: site -> a [full s i] and g [full s o].
    weights: site -> [full s], 1 if the position counts in the moments, else 0.
    """

    rows: Int64[np.ndarray, " b"]
    value: np.ndarray
    inputs: dict[str, "jax.Array"]
    grads: dict[str, "jax.Array"]
    weights: dict[str, "jax.Array"]

    @property
    def nbytes(self) -> int:
        seen = {id(a): a.nbytes for part in (self.inputs, self.grads, self.weights) for a in part.values()}
        return sum(seen.values())

    @property
    def owners(self) -> dict[str, str]:
        """site -> the first site that reads the same input."""
        return owners(self.inputs)


class BatchSource(ABC):
    """What yields captured batches: a pass of the model, a pass whose batches are kept, or the store. A subclass says
    in which batches rows are run, and where a batch comes from."""

    examples: Examples
    sites: Sites
    trained: Any  # TrainedModel

    @abstractmethod
    def walk(self, rows: Any, desc: str) -> Iterator[PlannedBatch]:
        """The batches that these rows (None: all) are run in, under a progress bar."""

    @abstractmethod
    def captured(self, planned: PlannedBatch) -> CapturedBatch:
        """One planned batch at the sites."""

    def batches(self, rows: Any = None, desc: str = "") -> Iterator[CapturedBatch]:
        """Captured batches of these rows (all by default), under a progress bar."""
        for planned in self.walk(rows, desc):
            yield self.captured(planned)


def owners(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Name -> the first name of the very same array."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(array), name) for name, array in arrays.items()}


def check_examples(examples: Examples, what: str = "data set") -> None:
    """Raise DataError for an empty data set, or for examples without a single position."""
    if len(examples) == 0:
        raise DataError(f"The {what} is empty.", "Give at least one example.")
    if (examples.lengths == 0).any():
        empty = examples.ids[examples.lengths == 0][:5].tolist()
        raise DataError(f"Examples without a single token, ids {empty}.", "Leave them out.")


def widths(longest: int) -> list[int]:
    """The widths that sequences are padded to: multiples of 8 growing by a quarter, and the longest length."""
    found = [8]
    while found[-1] < longest:
        found.append(wider(found[-1]))
    return [*[w for w in found if w < longest], longest]


def padded_widths(lengths: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The width that each example is padded to."""
    allowed = np.array(widths(int(lengths.max())))
    return allowed[np.searchsorted(allowed, lengths)]


def plan_batches(lengths: Int64[np.ndarray, " n"], rows: Int64[np.ndarray, " k"], positions: int) -> list[PlannedBatch]:
    """Batches of rows of about equal length and at most `positions` positions, in order of width and then of row. Rows
    that do not fill half a batch join those of the next width where one batch takes them: a shape of their own would
    take longer to compile than their padding takes to compute."""
    if len(rows) == 0:
        return []
    bucket = padded_widths(lengths)[rows]
    plan: list[PlannedBatch] = []
    done, wide = 0, sorted(set(bucket.tolist()))
    for width, following in zip(wide, [*wide[1:], None]):
        members = rows[(done < bucket) & (bucket <= width)]
        if following is not None and 2 * len(members) * width < positions and len(members) * following <= positions:
            continue
        full = max(1, min(positions // width, len(members)))
        plan += [PlannedBatch(members[start : start + full], width, full) for start in range(0, len(members), full)]
        done = width
    return plan


def to_captured_batch(
    planned: PlannedBatch, seen: Captured, positions: Tensor | Sequence[Tensor], sites: Sites
) -> CapturedBatch:
    """What a batch's forward and backward gave, in JAX, filled up with zero rows to `planned.full`."""
    missing = planned.full - len(planned.rows)
    crossed: dict[int, Any] = {}
    masks: dict[int, Tensor] = {}

    def cross(t: Tensor) -> Any:
        if id(t) not in crossed:  # sites that share an input share the array
            whole = torch.cat([t, t.new_zeros(missing, *t.shape[1:])]) if missing else t
            crossed[id(t)] = to_jax(widened(whole))
        return crossed[id(t)]

    def weight(name: str) -> Any:
        if name in seen.weights:
            return cross(seen.weights[name])
        a = seen.inputs[name]
        if a.shape[1] not in masks:
            masks[a.shape[1]] = position_mask(positions, a.shape[1]).to(a.dtype)
        return cross(masks[a.shape[1]])

    return CapturedBatch(
        rows=planned.rows,
        value=to_numpy(seen.value),
        inputs={name: cross(seen.inputs[name]) for name in sites.names},
        grads={name: cross(seen.grads[name]) for name in sites.names},
        weights={name: weight(name) for name in sites.names},
    )
