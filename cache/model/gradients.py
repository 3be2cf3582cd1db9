"""Gradients in the store: per site the inputs a and output gradients g of every example.

The pair is smaller than the formed gradient if sequences are shorter than o i / (o + i), and serves every
question afterwards (moments, eigenvalues, scores, self-influence) without the model. Examples of one padded width
make one entry, so shapes are the model's own; sites that read the same input share one array.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NotCached, ResourceError
from ..jobs.progress import progress
from ..store.bfloat16 import BFLOAT16
from ..store.entry import Entry
from ..store.layout import ArraySpec
from ..store.store import Store
from .batches import CapturedBatch, PlannedBatch, padded_widths
from .capture import row_bucket
from .trained import ModelPass, PassBatches

DTYPES = ("float32", "bfloat16")  # that gradients are stored in, the first preferred


class StoredBatches(PassBatches):
    """Batches of a pass, each of one width, read from the store: arrays as the pass computes them, to the precision
    that they are stored in.

    entries: padded width -> entry. members: padded width -> the row numbers in it, in their order.
    """

    def __init__(self, run: ModelPass, entries: dict[int, Entry], members: dict[int, np.ndarray]):
        super().__init__(run)
        self.entries, self.members = entries, members

    def walk(self, rows: Any, desc: str) -> Iterator[PlannedBatch]:
        rows = np.arange(len(self.examples)) if rows is None else np.asarray(rows, np.int64)
        plan = [each for members in self.members.values() for each in self.run.plan(rows[np.isin(rows, members)])]
        yield from progress(plan, desc=desc, unit="batch", quiet=self.trained.quiet)

    def captured(self, planned: PlannedBatch) -> CapturedBatch:
        import jax.numpy as jnp

        entry = self.entries[planned.width]
        place = np.searchsorted(self.members[planned.width], planned.rows)
        contiguous = bool((np.diff(place) == 1).all())
        owners: dict[str, str] = entry.about["owners"]
        found: dict[str, Any] = {}

        def read(name: str) -> Any:
            if name not in found:
                values = entry.slice(name, int(place[0]), int(place[-1]) + 1) if contiguous else entry.rows(name, place)
                if values.dtype == BFLOAT16:
                    values = values.astype(np.float32)
                short = planned.full - len(values)
                if short:
                    values = np.concatenate([values, np.zeros((short, *values.shape[1:]), values.dtype)])
                found[name] = jnp.asarray(values)
            return found[name]

        names = self.sites.names
        return CapturedBatch(
            rows=planned.rows,
            value=entry.rows("value", place),
            inputs={name: read(f"{owners[name]}/a") for name in names},
            grads={name: read(f"{name}/g") for name in names},
            weights={name: read(f"{owners[name]}/weight") for name in names},
        )


@dataclass(frozen=True)
class _Work:
    """One shard of one width: rows of the run, in batches of `full`, as arrays to keep."""

    run: ModelPass
    members: np.ndarray
    width: int
    full: int
    names: tuple[str, ...]
    dtype: str
    rows: dict[str, int]

    def __call__(self, shard: Any) -> dict[str, np.ndarray]:
        rows = self.members[shard.start : shard.stop]
        blocks = []
        for start in range(0, len(rows), self.full):
            batch = self.run.captured(PlannedBatch(rows[start : start + self.full], self.width, self.full))
            blocks.append(_arrays(batch, self.names, self.dtype, self.rows))
        return {name: np.concatenate([block[name] for block in blocks]) for name in self.names}


def _arrays(batch: CapturedBatch, names: tuple[str, ...], dtype: str, rows: dict[str, int]) -> dict[str, np.ndarray]:
    count = len(batch.rows)
    out: dict[str, np.ndarray] = {"value": batch.value.astype(np.float32)}
    parts = {"a": batch.inputs, "g": batch.grads, "weight": batch.weights}
    for name in names:
        if name != "value":
            site, _, part = name.rpartition("/")
            kind = np.dtype(BFLOAT16 if dtype == "bfloat16" else dtype)
            values = np.asarray(parts[part][site])[:count].astype(kind if part != "weight" else np.float32)
            missing = rows[site] - values.shape[1]  # an expert's rows: as many as the batch's positions at most
            if missing < 0:
                raise ResourceError(
                    f"{site} has {values.shape[1]} rows an example, where {rows[site]} can be kept.",
                    "Do not store the gradients of this site: it is called several times on one position.",
                )
            out[name] = np.pad(values, [(0, 0), (0, missing)] + [(0, 0)] * (values.ndim - 2)) if missing else values
    return out


def _rows(run: ModelPass, width: int, batch: CapturedBatch) -> dict[str, int]:
    """Rows an example that each site has in the store: as in a batch, but for experts, whose number is another in each
    batch."""
    most = row_bucket(width)
    found = {name: a.shape[1] for name, a in batch.inputs.items()}
    return {site.name: max(most, found[site.name]) if site.routed else found[site.name] for site in run.sites}


def _groups(run: ModelPass) -> dict[int, np.ndarray]:
    """Padded width -> the row numbers of the examples of that width."""
    bucket = padded_widths(run.examples.lengths)
    return {int(width): np.flatnonzero(bucket == width) for width in np.unique(bucket)}


def _inputs(run: ModelPass) -> dict[int, dict[str, Any]]:
    """Padded width -> what the entry of its gradients is computed from, but for the type that they are stored in."""
    shared = run.inputs()
    return {width: {**shared, "width": width} for width in _groups(run)}


def stored_bytes(run: ModelPass) -> int:
    """Bytes that the gradients of a pass take in the store in float32, padding counted."""
    total = 0
    for width, members in _groups(run).items():
        batch = run.captured(PlannedBatch(members[:1], width, 1))
        arrays = {id(x): x for part in (batch.inputs, batch.grads) for x in part.values()}
        total += len(members) * 4 * sum(x.size for x in arrays.values())
    return total


def gradients(run: ModelPass, store: Store, *, dtype: str = "float32") -> StoredBatches:
    """The inputs and output gradients of a pass in the store: opened, resumed or computed.

    dtype: as stored; float32, or bfloat16 for half the size. Raises ResourceError when they would fill the disk.
    """
    groups, entries = _groups(run), {}
    for width, shared in _inputs(run).items():
        inputs = {**shared, "dtype": dtype}
        if store.has("gradients", inputs):
            entries[width] = store.open("gradients", inputs)
            continue
        members = groups[width]
        batch = run.captured(PlannedBatch(members[:1], width, 1))
        owners, rows = batch.owners, _rows(run, width, batch)
        specs = {"value": ArraySpec((len(members),), "float32")}
        for name, own in owners.items():
            shape = (len(members), rows[name])
            if own == name:
                specs[f"{name}/a"] = ArraySpec((*shape, batch.inputs[name].shape[2]), dtype, ("n", "s", "i"))
                specs[f"{name}/weight"] = ArraySpec(shape, "float32")
            specs[f"{name}/g"] = ArraySpec((*shape, batch.grads[name].shape[2]), dtype, ("n", "s", "o"))
        full = max(1, (run.positions or width) // width)
        work = _Work(run, members, width, full, tuple(specs), dtype, rows)
        entries[width] = run.trained.job(
            "gradients", inputs, specs, work, store=store, shard_rows=min(full, len(members)),
            about={"owners": owners, "ids": run.examples.ids[members].tolist()}, desc=f"gradients, width {width}",
        )  # fmt: skip
    return StoredBatches(run, entries, groups)


def stored_dtype(run: ModelPass, store: Store, dtypes: tuple[str, ...] = DTYPES) -> str | None:
    """The first of these types in which all gradients of a pass are in the store; None if there is none."""
    each = _inputs(run).values()
    found = (d for d in dtypes if all(store.has("gradients", {**inputs, "dtype": d}) for inputs in each))
    return next(found, None)


def open_gradients(run: ModelPass, store: Store, dtypes: tuple[str, ...] = DTYPES) -> StoredBatches:
    """The run's gradients when all of them are in the store. Raises NotCached."""
    dtype = stored_dtype(run, store, dtypes)
    if dtype is None:
        raise NotCached("The gradients of this run are not in the store.", "Compute them with cache.gradients.")
    return gradients(run, store, dtype=dtype)
