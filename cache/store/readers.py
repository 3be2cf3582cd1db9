"""Ways to read an entry at length: shuffled batches for training, lazy labelled arrays for notebooks.

Shuffling rows one by one reads a store in random order, which a disk pays for. `batches` shuffles as much as
training needs and no more: short runs of rows are drawn in random order, many of them are held in memory at
once, and rows are drawn at random from those. Each row comes exactly once an epoch, and the order depends on
the seed alone.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .layout import BFLOAT16

if TYPE_CHECKING:
    import xarray

    from .entry import Entry

BUFFER_BYTES = 256 << 20
RUN_BYTES = 1 << 20


def batches(
    entry: "Entry",
    names: str | Sequence[str] | None = None,
    batch: int = 256,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    buffer_bytes: int = BUFFER_BYTES,
) -> Iterator[dict[str, np.ndarray]]:
    """One epoch of {name: [batch, ...]} over the rows of an entry, in order or shuffled.

    names: which arrays; all by default. buffer_bytes: how much is held and mixed at once when shuffling; rows
    closer than that in the store may land in one batch, so larger is more random. drop_last: leave out the
    last, smaller batch.
    """
    names = [names] if isinstance(names, str) else list(names or entry.arrays)
    for name in names:
        if name not in entry.arrays:
            raise UsageError(f"This {entry.kind} has no array {name!r}.", f"It has {', '.join(entry.arrays)}.")
    sizes = {entry.arrays[name].shape[0] if entry.arrays[name].shape else None for name in names}
    if len(sizes) != 1 or None in sizes:
        raise UsageError("These arrays have no common rows.", "Batch arrays with the same first axis.")
    if batch < 1:
        raise UsageError(f"A batch of {batch} rows is empty.", "Use one row or more.")
    (total,) = sizes
    row_bytes = max(1, sum(entry.arrays[name].row_bytes for name in names))
    left: dict[str, np.ndarray] = {}
    for buffer in _buffers(entry, names, int(total or 0), row_bytes, shuffle, seed, buffer_bytes):
        joined = {n: np.concatenate([left[n], buffer[n]]) if left else buffer[n] for n in names}
        count = len(joined[names[0]])
        whole = count - count % batch
        for start in range(0, whole, batch):
            yield {n: joined[n][start : start + batch] for n in names}
        left = {n: joined[n][whole:] for n in names} if whole < count else {}
    if left and not drop_last:
        yield left


def _buffers(
    entry: "Entry", names: list[str], total: int, row_bytes: int, shuffle: bool, seed: int, buffer_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    """The rows in memory-sized portions: in order, or runs drawn at random with their rows mixed."""
    run = max(1, min(RUN_BYTES, buffer_bytes // 16) // row_bytes)
    starts = np.arange(0, total, run)
    generator = np.random.default_rng(seed)
    if shuffle:
        starts = generator.permutation(starts)
    held = max(1, buffer_bytes // (run * row_bytes))
    for first in range(0, len(starts), held):
        runs = [(int(s), min(total, int(s) + run)) for s in starts[first : first + held]]
        count = sum(stop - start for start, stop in runs)
        order = generator.permutation(count) if shuffle else None
        portion = {}
        for name in names:
            rows = np.concatenate([entry.slice(name, start, stop) for start, stop in runs])
            portion[name] = rows if order is None else rows[order]
        yield portion


def torch_batches(entry: "Entry", names: Any = None, **options: Any) -> Iterator[dict[str, Any]]:
    """`batches` as torch tensors (bfloat16 stays bfloat16)."""
    import torch

    for arrays in batches(entry, names, **options):
        yield {
            name: torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
            if array.dtype == BFLOAT16
            else torch.from_numpy(array)
            for name, array in arrays.items()
        }


def jax_batches(entry: "Entry", names: Any = None, **options: Any) -> Iterator[dict[str, Any]]:
    """`batches` as JAX arrays, in the widths that JAX is set to (64 bits only where they are enabled)."""
    import jax
    import jax.numpy as jnp

    for arrays in batches(entry, names, **options):
        yield {
            name: jnp.asarray(array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False))
            for name, array in arrays.items()
        }


def to_xarray(entry: "Entry") -> "xarray.Dataset":
    """See `Entry.to_xarray`."""
    import dask.array
    import xarray

    coords = entry.about.get("coords", {})
    variables = {}
    for name, spec in entry.arrays.items():
        dims = spec.dims or tuple(f"{name}_{axis}" for axis in range(len(spec.shape)))
        stored = entry.header.stored[name]
        if spec.shape and not stored.empty:
            chunks = (min(stored.shard_rows, spec.shape[0]), *spec.shape[1:])
            data = dask.array.from_array(entry[name], chunks=chunks, name=f"{entry.key}-{name}")
        else:
            data = entry.read(name)
        variables[name] = (dims, data)
    used = {dim for dims, _ in variables.values() for dim in dims}
    attributes = {"kind": entry.kind, "key": entry.key} | {
        k: v for k, v in entry.about.items() if isinstance(v, (str, int, float))
    }
    return xarray.Dataset(variables, {d: v for d, v in coords.items() if d in used}, attributes)
