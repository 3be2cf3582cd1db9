"""Gradients kept as they are made: per site the inputs a and output gradients g of every example, in the store.

The pair is smaller than the formed gradient wherever sequences are shorter than o i / (o + i), and serves every
question afterwards (moments, eigenvalues, scores, self-influence) without the model. Examples of one padded width
make one entry, so shapes are the model's own; sites that read the same input share one array.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NotCached
from ..jobs.partitions import run_partitions
from ..jobs.progress import progress
from ..store.bfloat16 import BFLOAT16
from ..store.entry import Entry
from ..store.layout import ArraySpec
from ..store.store import Store
from .batches import Batch, Frame, Run, widths
from .examples import Examples
from .fingerprint import model_fingerprint
from .sites import Sites


@dataclass(frozen=True)
class StoredFrames:
    """Frames of a run read from the store: the same arrays as the run's own, to the precision they are stored in.

    entries: padded width -> entry. members: padded width -> the row numbers it holds, in their order.
    """

    run: Run
    entries: dict[int, Entry]
    members: dict[int, np.ndarray]

    @property
    def examples(self) -> Examples:
        return self.run.examples

    @property
    def sites(self) -> Sites:
        return self.run.sites

    def frames(self, rows: Any = None, desc: str = "", quiet: bool = False) -> Iterator[Frame]:
        """Frames of these rows (all by default), in the order and batches of the run."""
        rows = np.arange(len(self.examples)) if rows is None else np.asarray(rows, np.int64)
        for batch in progress(self.run.plan(rows), desc=desc or "stored gradients", unit="batch", quiet=quiet):
            yield self._frame(batch)

    def _frame(self, batch: Batch) -> Frame:
        import jax.numpy as jnp

        entry = self.entries[batch.width]
        place = np.searchsorted(self.members[batch.width], batch.rows)
        contiguous = bool((np.diff(place) == 1).all())
        owners: dict[str, str] = entry.about["owners"]
        made: dict[str, Any] = {}

        def read(name: str) -> Any:
            if name not in made:
                values = entry.slice(name, int(place[0]), int(place[-1]) + 1) if contiguous else entry.rows(name, place)
                if values.dtype == BFLOAT16:
                    values = values.astype(np.float32)
                short = batch.full - len(values)
                if short:
                    values = np.concatenate([values, np.zeros((short, *values.shape[1:]), values.dtype)])
                made[name] = jnp.asarray(values)
            return made[name]

        names = self.sites.names
        return Frame(
            rows=batch.rows,
            value=entry.rows("value", place),
            inputs={name: read(f"{owners[name]}/a") for name in names},
            grads={name: read(f"{name}/g") for name in names},
            weights={name: read(f"{owners[name]}/weight") for name in names},
        )


@dataclass(frozen=True)
class _Work:
    """One shard of one width: rows of the run as arrays to keep."""

    run: Run
    members: np.ndarray
    width: int
    names: tuple[str, ...]
    dtype: str

    def __call__(self, shard: Any) -> dict[str, np.ndarray]:
        rows = self.members[shard.start : shard.stop]
        full = max(1, (self.run.positions or self.width) // self.width)
        blocks = []
        for start in range(0, len(rows), full):
            frame = self.run.frame(Batch(rows[start : start + full], self.width, full))
            blocks.append(_arrays(frame, self.names, self.dtype))
        return {name: np.concatenate([block[name] for block in blocks]) for name in self.names}


def _arrays(frame: Frame, names: tuple[str, ...], dtype: str) -> dict[str, np.ndarray]:
    count = len(frame.rows)
    out: dict[str, np.ndarray] = {"value": frame.value.astype(np.float32)}
    parts = {"a": frame.inputs, "g": frame.grads, "weight": frame.weights}
    for name in names:
        if name != "value":
            site, _, part = name.rpartition("/")
            kind = np.dtype(BFLOAT16 if dtype == "bfloat16" else dtype)
            out[name] = np.asarray(parts[part][site])[:count].astype(kind if part != "weight" else np.float32)
    return out


def _groups(run: Run) -> dict[int, np.ndarray]:
    lengths = run.examples.lengths
    allowed = np.array(widths(int(lengths.max())))
    bucket = allowed[np.searchsorted(allowed, lengths)]
    return {int(width): np.flatnonzero(bucket == width) for width in np.unique(bucket)}


def _inputs(run: Run, width: int, dtype: str) -> dict[str, Any]:
    return {
        "model": model_fingerprint(run.model).hex,
        "data": run.examples.fingerprint,
        "task": run.task.settings,
        "sites": run.sites.settings,
        "objective": run.objective,
        "seed": run.seed,
        "width": width,
        "dtype": dtype,
    }


def stored_bytes(run: Run, dtype: str = "float32") -> int:
    """Bytes the gradients of a prepared run take in the store (float32 sites; padding counted)."""
    each = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}[dtype]
    total = 0
    for width, members in _groups(run).items():
        frame = run.frame(Batch(members[:1], width, 1))
        arrays = {id(x): x for part in (frame.inputs, frame.grads) for x in part.values()}
        total += len(members) * each * sum(x.size for x in arrays.values())
    return total


def gradients(
    run: Run,
    store: Store,
    *,
    dtype: str = "float32",
    cluster: str = "inline",
    log: str | None = None,
    quiet: bool = False,
) -> StoredFrames:
    """The prepared run's inputs and output gradients in the store: opened, resumed or made.

    dtype: float32, or bfloat16 for half the size. Raises ResourceError when they would fill the disk.
    """
    entries = {}
    groups = _groups(run)
    for width, members in groups.items():
        inputs = _inputs(run, width, dtype)
        if store.has("gradients", inputs):
            entries[width] = store.open("gradients", inputs)
            continue
        frame = run.frame(Batch(members[:1], width, 1))
        first: dict[int, str] = {}
        owners = {name: first.setdefault(id(frame.inputs[name]), name) for name in run.sites.names}
        specs = {"value": ArraySpec((len(members),), "float32")}
        for name in run.sites.names:
            if owners[name] == name:
                specs[f"{name}/a"] = ArraySpec((len(members), *frame.inputs[name].shape[1:]), dtype, ("n", "s", "i"))
                specs[f"{name}/weight"] = ArraySpec((len(members), frame.weights[name].shape[1]), "float32")
            specs[f"{name}/g"] = ArraySpec((len(members), *frame.grads[name].shape[1:]), dtype, ("n", "s", "o"))
        about = {"owners": owners, "ids": run.examples.ids[members].tolist()}
        work = _Work(run, members, width, tuple(specs), dtype)
        full = max(1, (run.positions or width) // width)
        with store.writer("gradients", inputs, specs, shard_rows=min(full, len(members)), about=about) as writer:
            if not writer.complete:
                run_partitions(writer, work, cluster, log=log, desc=f"gradients, width {width}", quiet=quiet)
            entries[width] = writer.seal()
    return StoredFrames(run, entries, groups)


def open_gradients(run: Run, store: Store, dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> StoredFrames:
    """The run's gradients when all of them are in the store. Raises NotCached."""
    groups = _groups(run)
    for dtype in dtypes:
        asked = {width: _inputs(run, width, dtype) for width in groups}
        if all(store.has("gradients", inputs) for inputs in asked.values()):
            return StoredFrames(run, {w: store.open("gradients", i) for w, i in asked.items()}, groups)
    raise NotCached("The gradients of this run are not in the store.", "Make them with cache.gradients.")
