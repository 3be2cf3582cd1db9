"""Where the files of an entry are and how its rows are cut: array specs, the grid of shards, file names.

    <root>/v1/<kind>/<key[:2]>/<key>/
        entry.json                 the header (see header.py); written once
        data.zarr/<array>/c.<shard>.0   plain Zarr v3: the final shape from the start, NaN for missing rows
        commits/<shard>.json       the bytes and digest of every file of the shard; written once
        COMPLETE.json              the seal: a digest over all commits; written once
        building, in-use           locks (see locks.py)
    <root>/v1/refs/<name>.json     a name for a key
    <root>/v1/pins/<key>           never collect this one

A shard is a run of rows of every array, computed by one task and committed whole. It is the unit of work, of
resuming and of distribution, and is fixed when the entry is created, so a result does not depend on how many
workers computed it. A shard file has its rows in chunks of about a megabyte, uncompressed, each followed by its
crc32c (Zarr's sharding codec), so a row can be read from a memory map.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CorruptEntry, StoreError, UsageError
from .bfloat16 import BFLOAT16

FORMAT = 1
VERSION_DIR = f"v{FORMAT}"
# a new kind of artefact goes here; the store refuses any other
KINDS = (
    "activations", "gradients", "factors", "bank", "dictionary", "scores", "model", "datamodel", "condensed", "report",
    "checks",
)  # fmt: skip
# kinds that earlier versions stored under another name, which is still read
FORMERLY = {"datamodel": "scores", "condensed": "model", "report": "scores"}
SHARD_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
MOST_ROWS, MOST_BYTES = 1 << 40, 1 << 60
DATA = "data.zarr"
ENTRY, COMPLETE = "entry.json", "COMPLETE.json"

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(name)
    for name in (
        "float16", "float32", "float64", "int8", "int16", "int32", "int64",
        "uint8", "uint16", "uint32", "uint64", "bool",
    )
} | {"bfloat16": BFLOAT16}  # fmt: skip


def parse_dtype(dtype: Any) -> np.dtype:
    """A storable numpy dtype from a name, a numpy or a torch dtype. Raises UsageError for any other."""
    name = str(dtype).removeprefix("torch.") if not isinstance(dtype, (np.dtype, type)) else np.dtype(dtype).name
    if name not in DTYPES:
        raise UsageError(f"The store cannot keep dtype {name}.", f"Use one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def is_float(dtype: np.dtype) -> bool:
    return dtype == BFLOAT16 or dtype.kind == "f"


def fill_value(dtype: np.dtype) -> Any:
    """The value of what is not written: NaN, or zero for a dtype without NaN."""
    return np.asarray(np.nan if is_float(dtype) else 0).astype(dtype)[()]


@dataclass(frozen=True)
class ArraySpec:
    """One array of an entry: its full shape, dtype (bfloat16 too) and, for labelled results, its axes' names.

    >>> ArraySpec((10, 4), "bfloat16", ("n", "d")).shape
    (10, 4)
    """

    shape: tuple[int, ...]
    dtype: Any = "float32"
    dims: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "dtype", parse_dtype(self.dtype))
        object.__setattr__(self, "dims", None if self.dims is None else tuple(str(d) for d in self.dims))
        if any(size < 0 for size in self.shape):
            raise UsageError(f"An array cannot have shape {self.shape}.", "Give sizes of zero or more.")
        if max(self.shape, default=0) > MOST_ROWS or math.prod(self.shape) * self.dtype.itemsize > MOST_BYTES:
            raise UsageError(
                f"An array of shape {self.shape} is larger than any store.",
                f"An axis has at most {MOST_ROWS} elements, an array {MOST_BYTES} bytes.",
            )
        if self.dims is not None and len(self.dims) != len(self.shape):
            raise UsageError(
                f"{len(self.dims)} axis names {self.dims} for an array of shape {self.shape}.",
                "Name every axis once, or none.",
            )

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "dtype": self.dtype.name,
            "dims": None if self.dims is None else list(self.dims),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "ArraySpec":
        dims = document["dims"]
        return ArraySpec(tuple(document["shape"]), document["dtype"], None if dims is None else tuple(dims))


@dataclass(frozen=True)
class Shard:
    """Rows [start, stop) of every array of an entry: what one task computes and one commit makes durable."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Grid:
    """How the rows of an entry are cut into shards.

    whole: the arrays have no common rows, and the entry is one shard with every array whole.
    """

    rows: int
    shard_rows: int
    whole: bool = False

    @property
    def count(self) -> int:
        return -(-self.rows // self.shard_rows)

    def shard(self, index: int) -> Shard:
        if not 0 <= index < self.count:
            raise UsageError(f"There is no shard {index}.", f"This entry has shards 0 to {self.count - 1}.")
        return Shard(index, index * self.shard_rows, min(self.rows, (index + 1) * self.shard_rows))

    def __iter__(self) -> Iterator[Shard]:
        return (self.shard(index) for index in range(self.count))

    @staticmethod
    def of(arrays: Mapping[str, ArraySpec], shard_rows: int | None = None, whole: bool = False) -> "Grid":
        """The grid for these arrays: whole shards of `shard_rows` rows, about 64 MiB over all arrays when not
        given. Arrays without a common first axis are written whole, in one shard."""
        if not arrays:
            raise UsageError("An entry needs at least one array.", "Name the arrays and their shapes.")
        leading = {spec.shape[0] if spec.shape else -1 for spec in arrays.values()}
        if whole or len(leading) > 1 or -1 in leading:
            if shard_rows is not None:
                sizes = {name: spec.shape for name, spec in arrays.items()}
                raise UsageError(
                    f"Arrays without a common first axis cannot be cut into rows: {sizes}.",
                    "Leave shard_rows out, or give every array the same number of rows.",
                )
            return Grid(rows=1, shard_rows=1, whole=True)
        (rows,) = leading
        if shard_rows is None:
            shard_rows = _default_shard_rows(rows, [spec.row_bytes for spec in arrays.values()])
        if shard_rows < 1:
            raise UsageError(f"A shard of {shard_rows} rows is empty.", "Use one row or more.")
        return Grid(rows, int(min(shard_rows, max(rows, 1))))


def _default_shard_rows(rows: int, row_bytes: Sequence[int]) -> int:
    fitting = int(SHARD_BYTES // max(1, sum(row_bytes)))
    return max(1, min(1 << max(0, fitting.bit_length() - 1), rows))  # a power of two


@dataclass(frozen=True)
class Stored:
    """The layout of one array on disk: shard files of `shard_rows` rows, in chunks of `chunk_rows` rows."""

    name: str
    spec: ArraySpec
    shard_rows: int
    chunk_rows: int

    @staticmethod
    def of(name: str, spec: ArraySpec, grid: Grid) -> "Stored":
        rows = spec.shape[0] if spec.shape else 1
        shard_rows = max(1, rows if grid.whole else grid.shard_rows)
        return Stored(name, spec, shard_rows, _chunk_rows(spec.row_bytes if spec.shape else 1, shard_rows))

    @property
    def path(self) -> str:
        """The array's folder, relative to the entry."""
        return f"{DATA}/{escape(self.name)}"

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.spec.shape[1:]

    @property
    def empty(self) -> bool:
        return self.spec.nbytes == 0

    @property
    def sharded(self) -> bool:
        """Whether a shard file has more than one chunk, and so ends in an index of them."""
        return self.chunk_rows < self.shard_rows

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk without its checksum."""
        return self.chunk_rows * (self.spec.row_bytes if self.spec.shape else self.spec.dtype.itemsize)

    def file(self, shard: int) -> str:
        """The shard's file, relative to the entry."""
        if not self.spec.shape:
            return f"{self.path}/c"
        return f"{self.path}/c." + ".".join([str(shard)] + ["0"] * len(self.row_shape))

    def rows_in(self, shard: int) -> int:
        total = self.spec.shape[0] if self.spec.shape else 1
        return max(0, min(self.shard_rows, total - shard * self.shard_rows))

    def file_bytes(self, shard: int) -> int:
        """The length of the shard's file."""
        chunks = -(-self.rows_in(shard) // self.chunk_rows)
        index = 16 * (self.shard_rows // self.chunk_rows) + 4 if self.sharded else 0
        return chunks * (self.chunk_bytes + 4) + index


def _chunk_rows(row_bytes: int, shard_rows: int) -> int:
    """The largest divisor of the shard whose chunk is at most a megabyte; if only tiny ones divide it, the smallest
    with a chunk of 64 KiB or more."""
    divisors = [n for n in range(1, int(shard_rows**0.5) + 1) if shard_rows % n == 0]
    divisors = sorted({*divisors, *(shard_rows // n for n in divisors)})
    fitting = [n for n in divisors if n * row_bytes <= CHUNK_BYTES] or [1]
    if fitting[-1] * row_bytes >= CHUNK_BYTES // 16 or fitting[-1] == shard_rows:
        return fitting[-1]
    return next(n for n in divisors if n * row_bytes >= CHUNK_BYTES // 16 or n == shard_rows)


def escape(name: str) -> str:
    """A file name for any name: letters, digits, `.`, `_`, `-` stay, all else becomes %XX of its UTF-8 bytes.

    Names with another meaning for a file system or Zarr (`..`, `__x`, `zarr.json`, leading dots) get an escaped
    first character; a name too long for a file ends in its hash.
    """
    if not isinstance(name, str) or not name:
        raise UsageError(f"{name!r} cannot name anything in a store.", "Use a text of one character or more.")
    try:
        data = name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{name!r} is not valid Unicode.", "Use a name without lone surrogates.") from error
    plain = re.compile(rb"[A-Za-z0-9._-]")
    parts = [chr(c) if plain.match(bytes([c])) else f"%{c:02X}" for c in data]
    text = "".join(parts)
    if text.startswith((".", "__")) or text in ("zarr.json", "c"):
        parts[0] = f"%{data[0]:02X}"
        text = "".join(parts)
    if len(text) > 180:
        text = text[:140] + "%~" + hashlib.sha256(data).hexdigest()[:32]
    return text


KEY = re.compile(r"[0-9a-f]{64}")


def entry_path(kind: str, key: str) -> str:
    """The entry's folder, relative to the root. Raises UsageError for an unknown kind, StoreError for no key."""
    if kind not in KINDS:
        raise UsageError(f"{kind!r} is not a kind of artefact.", f"Kinds: {', '.join(KINDS)}.")
    if not KEY.fullmatch(key):
        raise StoreError(f"{key!r} is not a key.", "A key is 64 hexadecimal digits; see `whence cache ls`.")
    return f"{VERSION_DIR}/{kind}/{key[:2]}/{key}"


def commit_path(shard: int) -> str:
    return f"commits/{shard:08d}.json"


def ref_path(name: str) -> str:
    return f"{VERSION_DIR}/refs/{escape(name)}.json"


def model_path(fingerprint: str) -> str:
    """The file of a model's per-tensor hashes."""
    return f"{VERSION_DIR}/fingerprints/{fingerprint}.json"


def pin_path(key: str) -> str:
    return f"{VERSION_DIR}/pins/{key}"


def parse_specs(arrays: Mapping[str, Any]) -> dict[str, ArraySpec]:
    """Array specs from specs or (shape, dtype[, dims]) tuples; names must not collide once escaped."""
    specs = {name: spec if isinstance(spec, ArraySpec) else ArraySpec(*spec) for name, spec in arrays.items()}
    folded: dict[str, str] = {}
    for name in specs:
        other = folded.setdefault(escape(name).casefold(), name)
        if other != name:
            raise UsageError(
                f"Arrays {other!r} and {name!r} would share a file on disks that ignore case.",
                "Rename one of them.",
            )
    return specs


def specs_from_json(document: Mapping[str, Any], where: str) -> dict[str, ArraySpec]:
    try:
        return {name: ArraySpec.from_json(spec) for name, spec in document.items()}
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise CorruptEntry(f"{where} describes impossible arrays: {error}.", "Run `whence cache verify`.") from error
