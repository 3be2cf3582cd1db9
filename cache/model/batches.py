"""The one loop that runs a frozen model over data, and what it yields: frames.

A frame is one batch seen at the sites, already across the bridge. Sequences are put in buckets by length and
padded to a handful of widths; a last batch that is not full is filled with rows that count nothing; so JAX
compiles a handful of shapes. How many rows a batch has follows from a limit on memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import psutil
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ..errors import DataError, ResourceError
from ..jobs.progress import progress, say
from .bridge import to_jax
from .capture import Captured, called_sites, capture, position_mask
from .examples import Examples
from .sites import Site, Sites
from .task import Task

if TYPE_CHECKING:
    import jax

BATCH_POSITIONS = 8192  # more brings no speed: products are large enough
GRAPH = 4.0  # autograd keeps about this many times what the sites yield, the sites' own included
WIDTH_STEP = 1.25


class Batch(NamedTuple):
    """Row numbers of one batch, the width they are padded to, and the rows a full batch of that width has."""

    rows: Int64[np.ndarray, " b"]
    width: int
    full: int


class Frame(NamedTuple):
    """One batch at the sites, in JAX.

    rows: row numbers of the real examples; arrays have `full >= len(rows)` rows, zeros after the real ones.
    value: the objective of the real examples, [b].
    inputs, grads: site -> a [full s i] and g [full s o]. weights: site -> [full s], 1 where the position counts in
    the moments, else 0.
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


@dataclass(frozen=True)
class Run:
    """Everything that fixes what a model yields on data: the frames of the same run are always the same.

    objective: "sampled" (labels drawn from the model), "loss" (the data's own) or "measurement".
    positions: positions (rows times width) in a batch; found from `memory` bytes when None.
    """

    model: nn.Module
    task: Task
    examples: Examples
    sites: Sites
    objective: str = "loss"
    seed: int = 0
    positions: int | None = None
    memory: int | None = None
    device: Any = "cpu"

    def of(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The objective of each example of a batch, [b]."""
        if self.objective == "sampled":
            return self.task.sampled_loss(model, batch, self.seed)
        return (self.task.loss if self.objective == "loss" else self.task.measurement)(model, batch)

    def batch_positions(self) -> int:
        """Positions a batch may have: measured on the longest example against the memory limit."""
        if self.positions is not None:
            return self.positions
        longest = int(np.argmax(self.examples.lengths))
        seen = capture(self.model, self.sites, self.examples.batch([longest], device=self.device), self.of)
        arrays = {id(t): t for part in (seen.inputs, seen.grads) for t in part.values()}
        each = GRAPH * sum(t.numel() * 4 for t in arrays.values())
        limit = memory_limit(self.memory) / 4  # a quarter for the batch in hand, the rest for what is kept
        width = int(self.examples.lengths[longest])
        if each > limit:
            raise ResourceError(
                f"One example of {width} positions needs about {each / 1e9:.1f} GB at these sites, over the limit of "
                f"{limit / 1e9:.1f} GB for one batch.",
                "Raise the memory limit, choose fewer sites, or cut the sequences shorter.",
            )
        return int(min(max(limit // max(each, 1), 1) * width, max(BATCH_POSITIONS, width)))

    def prepared(self) -> "Run":
        """The same run with its batch size measured, over the sites that the model really calls; says which it
        does not. Raises DataError where there is nothing to run over."""
        check_examples(self.examples)
        first = self.examples.batch([0], device=self.device)
        called = called_sites(self.model, self.sites, first, self.of)
        run = self
        if len(called) < len(self.sites):
            unused = [name for name in self.sites.names if name not in called]
            say(f"{len(unused)} sites are never called by the forward pass and are left out: {', '.join(unused)}")
            run = replace(self, sites=self.sites.only(called))
        return replace(run, positions=run.batch_positions())

    def frames(self, rows: Any = None, desc: str = "", quiet: bool = False) -> Iterator[Frame]:
        """Frames of these rows (all by default), batch after batch, under a progress bar."""
        rows = np.arange(len(self.examples)) if rows is None else np.asarray(rows, np.int64)
        for batch in progress(self.plan(rows), desc=desc or self.objective, unit="batch", quiet=quiet):
            yield self.frame(batch)

    def plan(self, rows: Int64[np.ndarray, " k"]) -> list[Batch]:
        """The batches that these rows are run in."""
        return plan_batches(self.examples.lengths, rows, self.batch_positions())

    def frame(self, batch: Batch) -> Frame:
        tensors = self.examples.batch(batch.rows, pad_to=batch.width, device=self.device)
        return _to_frame(self, batch, tensors, capture(self.model, self.sites, tensors, self.of))


def memory_limit(limit: int | None) -> int:
    """Bytes a job may hold: as given, else half of what is free now."""
    return int(psutil.virtual_memory().available // 2) if limit is None else int(limit)


def check_examples(examples: Examples, what: str = "data set") -> None:
    """Raise DataError for an empty data set, or one with examples that have no position."""
    if len(examples) == 0:
        raise DataError(f"The {what} is empty.", "Give at least one example.")
    if (examples.lengths == 0).any():
        empty = examples.ids[examples.lengths == 0][:5].tolist()
        raise DataError(f"Examples without a single token, ids {empty}.", "Leave them out.")


def widths(longest: int) -> list[int]:
    """The widths that sequences are padded to: multiples of 8 growing by a quarter, the longest at the end."""
    found = [8]
    while found[-1] < longest:
        found.append(max(found[-1] + 8, int(found[-1] * WIDTH_STEP) // 8 * 8))
    return [*[w for w in found if w < longest], longest]


def plan_batches(lengths: Int64[np.ndarray, " n"], rows: Int64[np.ndarray, " k"], positions: int) -> list[Batch]:
    """Batches of rows of about equal length, in order of width and then of row."""
    if len(rows) == 0:
        return []
    allowed = np.array(widths(int(lengths.max())))
    bucket = allowed[np.searchsorted(allowed, lengths[rows])]
    plan = []
    for width in sorted(set(bucket.tolist())):
        members = rows[bucket == width]
        full = max(1, min(positions // width, len(members)))
        plan += [Batch(members[start : start + full], width, full) for start in range(0, len(members), full)]
    return plan


def _to_frame(run: Run, batch: Batch, tensors: dict[str, Tensor], seen: Captured) -> Frame:
    positions = run.task.positions(tensors)
    missing = batch.full - len(batch.rows)
    crossed: dict[int, Any] = {}

    def cross(t: Tensor) -> Any:
        if id(t) not in crossed:  # sites that share an input share the array
            whole = torch.cat([t, t.new_zeros(missing, *t.shape[1:])]) if missing else t
            crossed[id(t)] = to_jax(whole.float() if whole.dtype in (torch.float16, torch.bfloat16) else whole)
        return crossed[id(t)]

    masks: dict[int, Tensor] = {}

    def weight(site: Site) -> Any:
        a = seen.inputs[site.name]
        if a.shape[1] not in masks:
            masks[a.shape[1]] = position_mask(positions, a.shape[1]).to(a.dtype)
        return cross(masks[a.shape[1]])

    return Frame(
        rows=batch.rows,
        value=seen.value.cpu().numpy(),
        inputs={site.name: cross(seen.inputs[site.name]) for site in run.sites},
        grads={site.name: cross(seen.grads[site.name]) for site in run.sites},
        weights={site.name: weight(site) for site in run.sites},
    )


@runtime_checkable
class FrameSource(Protocol):
    """Whatever yields the frames of a run: the run itself, a replay of it, or the store."""

    @property
    def examples(self) -> Examples: ...
    @property
    def sites(self) -> Sites: ...
    def frames(self, rows: Any = None, desc: str = "", quiet: bool = False) -> Iterator[Frame]: ...


class Replay:
    """Frames of a run, kept after the first time they are made as far as `limit` bytes reach.

    The passes of a fit look at the same inputs and gradients; what is not computed twice decides its time.
    """

    def __init__(self, run: Run, limit: int):
        self.run, self.limit = run, limit
        self._kept: dict[bytes, Frame] = {}
        self._bytes = 0

    def __reduce__(self) -> Any:  # another process makes its own
        return Replay, (self.run, self.limit)

    @property
    def examples(self) -> Examples:
        return self.run.examples

    @property
    def sites(self) -> Sites:
        return self.run.sites

    def frames(self, rows: Any = None, desc: str = "", quiet: bool = False) -> Iterator[Frame]:
        rows = np.arange(len(self.examples)) if rows is None else np.asarray(rows, np.int64)
        for batch in progress(self.run.plan(rows), desc=desc, unit="batch", quiet=quiet):
            key = batch.rows.tobytes()
            if key in self._kept:
                yield self._kept[key]
                continue
            frame = self.run.frame(batch)
            if self._bytes + frame.nbytes <= self.limit:
                self._kept[key] = frame
                self._bytes += frame.nbytes
            yield frame

    def forget(self) -> None:
        self._kept.clear()
        self._bytes = 0
