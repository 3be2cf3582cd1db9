"""The cache beside numpy.memmap, plain Zarr, safetensors and tensorstore: write, scan, gather, one site's slice.

Rows of `width` numbers arrive shard by shard (2048 rows). Formats alternate inside every repeat. Writes end when the
data is on the disk: memmap is flushed with msync, Zarr's and safetensors' files are synced afterwards, tensorstore
syncs itself; the cache runs its whole commit protocol. "unsynced" is the plain shard write of Zarr left to the page
cache. Scan reads 1024-row blocks in order, gather 256 sorted random rows, slice an eighth of the columns ("one site").
"First" reads come from an entry opened anew, so the cache checks its digests in them; "cold" ones after the page
cache was told to drop the files. Medians, milliseconds; ratios are memmap's time over the format's, of medians.
"""

import importlib.util
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from .harness import Benchmark, Run
from .timing import timed

bench = Benchmark(__file__, __doc__, example="--rows 20000 --width 2048 --only 'whence*' numpy.memmap")
SHARD, BLOCK, GATHER, SITES = 2048, 1024, 256, 8
BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Format:
    """write(folder, rows) is durable when it returns; open(folder) returns a Reader."""

    write: Callable[[Path, np.ndarray], None]
    open: Callable[[Path], "Reader"]


@dataclass(frozen=True)
class Reader:
    """[start, stop) -> rows, ids -> rows, columns -> slice."""

    rows: Callable[[int, int], np.ndarray]
    gather: Callable[[np.ndarray], np.ndarray]
    columns: Callable[[slice], np.ndarray]


def shards(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(rows), SHARD):
        yield start, rows[start : start + SHARD]


def sync(folder: Path) -> None:
    """Bring every file and folder below to the disk."""
    for path in [folder, *folder.rglob("*")]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def bits(rows: np.ndarray) -> np.ndarray:
    return rows.view(np.uint16) if rows.dtype == BF16 else rows


# -- the formats


def memmap_write(folder: Path, rows: np.ndarray) -> None:
    out = np.lib.format.open_memmap(folder / "a.npy", "w+", bits(rows).dtype, rows.shape)
    for start, part in shards(bits(rows)):
        out[start : start + len(part)] = part
    out.flush()


def memmap_open(folder: Path) -> Reader:
    array = np.load(folder / "a.npy", mmap_mode="r")
    return Reader(
        lambda a, b: np.array(array[a:b]), lambda ids: array[ids], lambda s: np.ascontiguousarray(array[:, s])
    )


def cache_write(folder: Path, rows: np.ndarray) -> None:
    from whence.cache import ArraySpec, Store

    arrays = {"x": ArraySpec(rows.shape, rows.dtype)}
    with Store(folder).writer("activations", {}, arrays, SHARD) as w:
        for shard in w.todo():
            w.write(shard, {"x": rows[shard.rows]})
        w.seal().close()


def cache_open(folder: Path) -> Reader:
    from whence.cache import Store

    entry = Store(folder).open("activations", {})
    return Reader(
        lambda a, b: entry.slice("x", a, b),
        lambda ids: entry.rows("x", ids),
        lambda s: np.concatenate([view[:, s] for view in entry.views("x")]),
    )


def zarr_write(folder: Path, rows: np.ndarray, durable: bool = True) -> None:
    import zarr

    import whence.cache.store.bfloat16  # noqa: F401  registers the data type

    array = zarr.create_array(
        str(folder / "a"), shape=rows.shape, dtype=rows.dtype, chunks=(256, rows.shape[1]),
        shards=(SHARD, rows.shape[1]), compressors=None, filters=None,
    )  # fmt: skip
    for start, part in shards(rows):
        array[start : start + len(part)] = part
    if durable:
        sync(folder)


def zarr_open(folder: Path) -> Reader:
    import zarr

    array = zarr.open_array(str(folder / "a"), mode="r")
    return Reader(lambda a, b: array[a:b], lambda ids: array.oindex[ids], lambda s: array[:, s])


def safetensors_write(folder: Path, rows: np.ndarray) -> None:
    import torch
    from safetensors.torch import save_file

    for start, part in shards(rows):
        tensor = torch.from_numpy(bits(part))
        save_file({"x": tensor.view(torch.bfloat16) if rows.dtype == BF16 else tensor}, folder / f"{start:08d}")
    sync(folder)


def safetensors_open(folder: Path) -> Reader:
    from safetensors import safe_open

    files = [safe_open(path, framework="pt") for path in sorted(folder.iterdir())]
    slices = [file.get_slice("x") for file in files]

    def rows(a: int, b: int) -> Any:
        parts = []  # cloned: a slice is a view of the mapped file, nothing is read until then
        while a < b:
            file, first = divmod(a, SHARD)
            stop = min(b, (file + 1) * SHARD)
            parts.append(slices[file][first : first + stop - a].clone())
            a = stop
        return parts[0] if len(parts) == 1 else np.concatenate([part.numpy() for part in parts])

    def gather(ids: np.ndarray) -> Any:
        return [slices[i // SHARD][i % SHARD : i % SHARD + 1] for i in ids.tolist()]

    return Reader(rows, gather, lambda s: [one[:, s].clone() for one in slices])


def tensorstore_write(folder: Path, rows: np.ndarray) -> None:
    import tensorstore

    name = "bfloat16" if rows.dtype == BF16 else rows.dtype.name
    inner = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {"chunk_shape": [256, rows.shape[1]], "codecs": [inner]}
    array = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(folder / "a")},
            "metadata": {
                "shape": list(rows.shape),
                "data_type": name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SHARD, rows.shape[1]]}},
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            },
        },
        create=True,
    ).result()
    for start, part in shards(rows):
        array[start : start + len(part)].write(part).result()


def tensorstore_open(folder: Path) -> Reader:
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "a")}}
    array = tensorstore.open(spec, read=True).result()
    return Reader(
        lambda a, b: array[a:b].read().result(),
        lambda ids: array[ids].read().result(),
        lambda s: array[:, s].read().result(),
    )


FORMATS = {
    "numpy.memmap": Format(memmap_write, memmap_open),
    "whence cache": Format(cache_write, cache_open),
    "zarr": Format(zarr_write, zarr_open),
    "zarr, unsynced": Format(lambda folder, rows: zarr_write(folder, rows, False), zarr_open),
    "safetensors": Format(safetensors_write, safetensors_open),
}
if importlib.util.find_spec("tensorstore"):
    FORMATS["tensorstore"] = Format(tensorstore_write, tensorstore_open)

# -- measuring

COLUMNS = ("write", "first scan", "scan", "gather", "slice", "cold scan", "cold gather")


def drop(folder: Path) -> None:
    """Tell the page cache to drop the files (they are synced first, dirty pages cannot go)."""
    sync(folder)
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def measure(form: Format, rows: np.ndarray, ids: np.ndarray, under: str | None) -> dict[str, float]:
    """One repeat of everything for one format, milliseconds."""
    count, site = len(rows), slice(0, rows.shape[1] // SITES)
    folder = Path(tempfile.mkdtemp(dir=under))

    def ms(work: Callable[[], Any]) -> float:
        return 1e3 * timed(work)[0]

    def scan(reader: Reader) -> None:
        for start in range(0, count, BLOCK):
            reader.rows(start, min(count, start + BLOCK))

    def warm(reader: Reader) -> None:
        took["first scan"] = ms(lambda: scan(reader))
        took["scan"] = ms(lambda: scan(reader))
        took["gather"] = statistics.median(ms(lambda: reader.gather(ids)) for _ in range(5))
        took["slice"] = ms(lambda: reader.columns(site))

    try:
        took = {"write": ms(lambda: form.write(folder, rows))}
        warm(form.open(folder))
        drop(folder)
        took["cold scan"] = ms(lambda: scan(form.open(folder)))
        drop(folder)
        took["cold gather"] = ms(lambda: form.open(folder).gather(ids))
        return took
    finally:
        shutil.rmtree(folder)


@bench.case(quick={"rows": 2500, "width": 64, "repeats": 2})
def formats(
    run: Run,
    rows: int = 20_000,
    width: int = 2048,
    repeats: int = 5,
    folder: str | None = None,
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16"),
) -> None:
    """Every format, float32 and bfloat16.

    Args:
        rows: of the array.
        width: numbers in a row.
        repeats: rounds, formats interleaved.
        folder: where to write; the system's temporary folder by default.
        dtypes: data types.
    """
    names = run.selected(FORMATS)
    for dtype in dtypes:
        x = np.random.default_rng(0).standard_normal((rows, width), dtype=np.float32)
        x = x.astype(BF16) if dtype == "bfloat16" else x
        ids = np.sort(np.random.default_rng(1).choice(rows, min(GATHER, rows), replace=False))
        for name in names:  # imports
            measure(FORMATS[name], x[: len(ids) + 1], ids[:0], folder)
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(repeats):
            for name in names:
                taken[name].append(measure(FORMATS[name], x, ids, folder))
        middle = {n: {c: statistics.median(one[c] for one in of) for c in COLUMNS} for n, of in taken.items()}
        title = f"{dtype} [{rows} x {width}], {x.nbytes / 1e6:.0f} MB, {repeats} repeats, ms"
        table = run.table("format", *(f"{c}|.1f" for c in COLUMNS), title=title)
        for name, line in middle.items():
            table.row(name, *line.values())
        if {"numpy.memmap", "whence cache", "zarr", "zarr, unsynced"} <= set(names):
            table = run.table("memmap / format", *(f"{c}|.2f" for c in COLUMNS))
            for name in names[1:]:
                table.row(name, *(middle["numpy.memmap"][c] / middle[name][c] for c in COLUMNS))
            ours, plain, synced = (middle[n]["write"] for n in ("whence cache", "zarr, unsynced", "zarr"))
            run.say(f"\nthe whole protocol costs {ours / plain:.2f} times a plain shard write left to the page cache,")
            run.say(f"and {ours / synced:.2f} times one that is synced")


if __name__ == "__main__":
    bench.main()
