"""The header of an entry: everything that is fixed when its first byte is written.

It is `entry.json`, written once and signed: kind, inputs (whose hash is the key), arrays, grid, what people
want to know beside them, provenance, and the digests of the Zarr metadata files.
"""

import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from ..errors import CorruptEntry
from .backend import Written
from .commit import check, sign
from .keys import key_of, plain
from .layout import DATA, FORMAT, ArraySpec, Grid, Shard, Stored, fill_value, parse_specs, specs_from_json

# whose versions are written down, when they are in use
LIBRARIES = ("whence", "numpy", "torch", "jax", "zarr", "transformers", "transformer-lens")


@dataclass(frozen=True)
class Header:
    """What an entry is: see the module. `metadata`: path of each Zarr metadata file -> its digest."""

    kind: str
    key: str
    inputs: Mapping[str, Any]
    grid: Grid
    arrays: Mapping[str, ArraySpec]
    about: Mapping[str, Any] = field(repr=False)
    provenance: Mapping[str, Any] = field(repr=False)
    metadata: Mapping[str, Written] = field(repr=False)
    created: float = 0.0

    @cached_property
    def stored(self) -> dict[str, Stored]:
        return {name: Stored.of(name, spec, self.grid) for name, spec in self.arrays.items()}

    def shard_files(self, shard: int) -> dict[str, str]:
        """array name -> file of this shard; arrays without elements have none."""
        return {name: stored.file(shard) for name, stored in self.stored.items() if not stored.empty}

    def shard_bytes(self, shard: int) -> int:
        """Bytes of the shard's files."""
        return sum(stored.file_bytes(shard) for stored in self.stored.values() if not stored.empty)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays when complete, checksums and metadata apart."""
        return sum(spec.nbytes for spec in self.arrays.values())

    def to_bytes(self) -> bytes:
        return sign(
            {
                "format": FORMAT,
                "kind": self.kind,
                "key": self.key,
                "inputs": self.inputs,
                "grid": {
                    "rows": self.grid.rows,
                    "shard_rows": self.grid.shard_rows,
                    "whole": self.grid.whole,
                },
                "arrays": {name: spec.to_json() for name, spec in self.arrays.items()},
                "about": self.about,
                "provenance": self.provenance,
                "metadata": {
                    path: {"bytes": file.bytes, "xxh3_128": file.xxh3_128} for path, file in self.metadata.items()
                },
                "created": self.created,
            }
        )

    @staticmethod
    def from_bytes(data: bytes, kind: str, key: str, where: str) -> "Header":
        """The header in these bytes. Raises NewerFormat, or CorruptEntry when it is damaged or not that of
        this kind and key."""
        document = check(data, where)
        try:
            header = Header(
                kind=document["kind"],
                key=document["key"],
                inputs=document["inputs"],
                grid=Grid(**document["grid"]),
                arrays=parse_specs(specs_from_json(document["arrays"], where)),
                about=document["about"],
                provenance=document["provenance"],
                metadata={path: Written(**file) for path, file in document["metadata"].items()},
                created=float(document["created"]),
            )
            expected = {f"{DATA}/zarr.json"} | {f"{stored.path}/zarr.json" for stored in header.stored.values()}
            belongs = (header.kind, header.key) == (kind, key) == (kind, key_of(kind, header.inputs))
        except CorruptEntry:
            raise
        except Exception as error:
            raise CorruptEntry(f"{where} lacks what a header has: {error}.", "Remove the entry.") from error
        if not belongs or set(header.metadata) != expected:
            raise CorruptEntry(f"{where} is not the header of {kind} {key[:12]}.", "Remove the entry.")
        return header


def new_header(
    kind: str,
    key: str,
    inputs: Mapping[str, Any],
    grid: Grid,
    arrays: Mapping[str, ArraySpec],
    about: Mapping[str, Any] | None,
    provenance: Mapping[str, Any] | None,
) -> Header:
    """A header, made now, that vouches for no Zarr metadata yet."""
    return Header(
        kind,
        key,
        plain(inputs),
        grid,
        arrays,
        plain(about or {}, "about", nan=True),
        versions() | plain(provenance or {}, "provenance", nan=True),
        {},
        time.time(),
    )


def zarr_metadata(arrays: Mapping[str, ArraySpec], grid: Grid) -> dict[str, bytes]:
    """The metadata files of the Zarr v3 group that the arrays form, as zarr-python writes them."""
    memory = MemoryStore()
    zarr.create_group(memory)
    for name, spec in arrays.items():
        stored = Stored.of(name, spec, grid)
        rest = tuple(max(1, size) for size in stored.row_shape)
        chunk = (stored.chunk_rows, *rest) if spec.shape else ()
        zarr.create_array(
            memory,
            name=stored.path.removeprefix(f"{DATA}/"),
            shape=spec.shape,
            dtype=spec.dtype,
            chunks=chunk,
            shards=(stored.shard_rows, *rest) if stored.sharded else None,
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value=fill_value(spec.dtype),
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=spec.dims,
            attributes={"name": name},
        )
    return {f"{DATA}/{path}": data.to_bytes() for path, data in memory._store_dict.items()}


def versions() -> dict[str, Any]:
    """Versions of the interpreter and of the libraries that are loaded: provenance, never part of a key."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    for name in LIBRARIES:
        if name == "whence" or name.replace("-", "_") in sys.modules:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return found


def shard_paths(header: Header, shard: Shard) -> list[str]:
    return list(header.shard_files(shard.index).values())
