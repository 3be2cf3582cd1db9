"""The cache beside numpy.memmap, plain Zarr, safetensors and tensorstore: write, scan, gather, one site's slice.

    python -m benchmarks.cache [--rows 20000] [--width 2048] [--repeats 5] [--folder DIR]

Rows of `width` numbers arrive shard by shard (2048 rows). Formats take turns inside every repeat. Writes end when the
data is on the disk: memmap is flushed with msync, Zarr's and safetensors' files are synced afterwards, tensorstore
syncs itself; the cache runs its whole commit protocol. "unsynced" is the plain shard write of Zarr left to the page
cache. Scan reads 1024-row blocks in order, gather 256 sorted random rows, slice an eighth of the columns ("one site").
"First" reads come from an entry opened anew, so the cache checks its digests in them; "cold" ones after the page
cache was told to forget the files. Medians, milliseconds; ratios are memmap's time over the format's, of medians.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

SHARD, BLOCK, GATHER, SITES = 2048, 1024, 256, 8
BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Format:
    """write(folder, rows) makes it durable; open(folder) gives [start, stop) -> rows, ids -> rows, columns -> slice."""

    name: str
    write: Callable[[Path, np.ndarray], None]
    open: Callable[[Path], "Reader"]


@dataclass(frozen=True)
class Reader:
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
        parts = []  # cloned: a slice is a view of the mapped file that has read nothing yet
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


def formats() -> list[Format]:
    found = [
        Format("numpy.memmap", memmap_write, memmap_open),
        Format("whence cache", cache_write, cache_open),
        Format("zarr", zarr_write, zarr_open),
        Format("zarr, unsynced", lambda folder, rows: zarr_write(folder, rows, False), zarr_open),
        Format("safetensors", safetensors_write, safetensors_open),
    ]
    try:
        import tensorstore  # noqa: F401
    except ImportError:
        return found
    return [*found, Format("tensorstore", tensorstore_write, tensorstore_open)]


# -- measuring

COLUMNS = ("write", "first scan", "scan", "gather", "slice", "cold scan", "cold gather")


def forget(folder: Path) -> None:
    """Tell the page cache to drop the files (they are synced first, dirty pages cannot go)."""
    sync(folder)
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def measure(form: Format, folder: Path, rows: np.ndarray, ids: np.ndarray) -> dict[str, float]:
    """One repeat of everything for one format."""
    count, site = len(rows), slice(0, rows.shape[1] // SITES)

    def scan(reader: Reader) -> None:
        for start in range(0, count, BLOCK):
            reader.rows(start, min(count, start + BLOCK))

    took = {"write": timed(lambda: form.write(folder, rows))}
    reader = form.open(folder)
    took["first scan"] = timed(lambda: scan(reader))
    took["scan"] = timed(lambda: scan(reader))
    took["gather"] = statistics.median(timed(lambda: reader.gather(ids)) for _ in range(5))
    took["slice"] = timed(lambda: reader.columns(site))
    del reader
    forget(folder)
    took["cold scan"] = timed(lambda: scan(form.open(folder)))
    forget(folder)
    took["cold gather"] = timed(lambda: form.open(folder).gather(ids))
    return took


def table(dtype: str, options: argparse.Namespace) -> None:
    rows = np.random.default_rng(0).standard_normal((options.rows, options.width), dtype=np.float32)
    rows = rows.astype(BF16) if dtype == "bfloat16" else rows
    ids = np.sort(np.random.default_rng(1).choice(options.rows, min(GATHER, options.rows), replace=False))
    every = formats()
    times: dict[str, dict[str, list[float]]] = {form.name: {c: [] for c in COLUMNS} for form in every}
    for repeat in range(-1, options.repeats):
        for form in every:
            folder = Path(tempfile.mkdtemp(dir=options.folder))
            try:
                took = measure(
                    form, folder, rows if repeat >= 0 else rows[: len(ids) + 1], ids if repeat >= 0 else ids[:0]
                )
                for name, value in took.items() if repeat >= 0 else ():  # the first round warms up imports
                    times[form.name][name].append(value)
            finally:
                shutil.rmtree(folder)
    middle = {name: {c: statistics.median(v) for c, v in line.items()} for name, line in times.items()}
    print(f"\n{dtype} [{options.rows} x {options.width}], {rows.nbytes / 1e6:.0f} MB, {options.repeats} repeats, ms")
    print(f"{'':16}" + "".join(f"{c:>12}" for c in COLUMNS))
    for name, line in middle.items():
        print(f"{name:16}" + "".join(f"{line[c]:12.1f}" for c in COLUMNS))
    print(f"\n{'memmap / format':16}" + "".join(f"{c:>12}" for c in COLUMNS))
    for name, line in middle.items():
        if name != "numpy.memmap":
            ratios = (middle["numpy.memmap"][c] / line[c] for c in COLUMNS)
            print(f"{name:16}" + "".join(f"{ratio:12.2f}" for ratio in ratios))
    ours, plain = middle["whence cache"]["write"], middle["zarr, unsynced"]["write"]
    print(f"\nthe whole protocol costs {ours / plain:.2f} times a plain shard write left to the page cache,")
    print(f"and {ours / middle['zarr']['write']:.2f} times one that is synced")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where to write; the system's temporary folder by default")
    options = parser.parse_args()
    for dtype in ("float32", "bfloat16"):
        table(dtype, options)


if __name__ == "__main__":
    main()
