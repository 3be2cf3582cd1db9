"""The header and the seal of an entry.

The header is everything that is fixed when the entry's first byte is written: kind, inputs (whose hash is the key),
arrays, grid, descriptions for people, provenance, and the digests of the Zarr metadata files. It is `entry.json`,
written once and signed. The seal, `COMPLETE.json`, attests the header and all commits.
"""

import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from ..errors import CorruptEntry, NotCached
from .backend import Backend, Written, digest_bytes
from .bfloat16 import BFLOAT16, LOGICAL_DTYPE
from .commit import check, commits_digest, sign
from .keys import key_of, plain
from .layout import (
    COMPLETE,
    DATA,
    ENTRY,
    FORMAT,
    ArraySpec,
    Grid,
    Shard,
    Stored,
    commit_path,
    entry_path,
    fill_value,
    parse_specs,
    specs_from_json,
)

# whose versions are recorded when they are loaded
LIBRARIES = ("whence", "numpy", "torch", "jax", "zarr", "transformers", "transformer-lens")


@dataclass(frozen=True)
class Header:
    """What an entry is: see the module.

    metadata: path of each Zarr metadata file -> its digest. digest: of entry.json itself, empty until it is read.
    """

    kind: str
    key: str
    inputs: Mapping[str, Any]
    grid: Grid
    arrays: Mapping[str, ArraySpec]
    about: Mapping[str, Any] = field(repr=False)
    provenance: Mapping[str, Any] = field(repr=False)
    metadata: Mapping[str, Written] = field(repr=False)
    created: float = 0.0
    digest: str = field(default="", repr=False, compare=False)

    @cached_property
    def base(self) -> str:
        """The entry's folder, relative to the root."""
        return entry_path(self.kind, self.key)

    @cached_property
    def stored(self) -> dict[str, Stored]:
        return {name: Stored.of(name, spec, self.grid) for name, spec in self.arrays.items()}

    def shard_files(self, shard: int) -> dict[str, str]:
        """array name -> file of this shard; arrays without elements have none."""
        return {name: stored.file(shard) for name, stored in self.stored.items() if not stored.empty}

    def shard_paths(self, shard: Shard) -> list[str]:
        return list(self.shard_files(shard.index).values())

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
                digest=digest_bytes(data).xxh3_128,
            )
            rows = None if header.grid.whole else header.grid.shard_rows
            if header.grid != Grid.of(header.arrays, rows, header.grid.whole):
                raise CorruptEntry(f"{where} cuts its arrays into impossible shards.", "Remove the entry.")
            expected = {f"{DATA}/zarr.json"} | {f"{stored.path}/zarr.json" for stored in header.stored.values()}
            belongs = (header.kind, header.key) == (kind, key) == (kind, key_of(kind, header.inputs))
        except CorruptEntry:
            raise
        except Exception as error:
            raise CorruptEntry(f"{where} is not a header: {error}.", "Remove the entry.") from error
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
    """A header created now, without digests of Zarr metadata yet."""
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
    """path -> bytes of the metadata files of the arrays' Zarr v3 group, as zarr-python writes them."""
    memory = MemoryStore()
    zarr.create_group(memory)
    for name, spec in arrays.items():
        stored = Stored.of(name, spec, grid)
        rest = tuple(max(1, size) for size in stored.row_shape)
        chunk = (stored.chunk_rows, *rest) if spec.shape else ()
        bits = spec.dtype == BFLOAT16  # plain Zarr has no such type, and cannot list a group that contains one
        zarr.create_array(
            memory,
            name=stored.path.removeprefix(f"{DATA}/"),
            shape=spec.shape,
            dtype=np.dtype(np.uint16) if bits else spec.dtype,
            chunks=chunk,
            shards=(stored.shard_rows, *rest) if stored.sharded else None,
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value=fill_value(spec.dtype).view(np.uint16) if bits else fill_value(spec.dtype),
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=spec.dims,
            attributes={"name": name, **({LOGICAL_DTYPE: "bfloat16"} if bits else {})},
        )
    return {f"{DATA}/{path}": data.to_bytes() for path, data in memory._store_dict.items()}


def versions() -> dict[str, Any]:
    """Versions of the interpreter and of the loaded libraries: provenance, never part of a key."""
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


def read_header(backend: Backend, kind: str, key: str) -> Header:
    """The header of an entry. Raises NotCached when the entry does not exist, NewerFormat or CorruptEntry."""
    where = f"{entry_path(kind, key)}/{ENTRY}"
    try:
        data = backend.read(where)
    except FileNotFoundError as error:
        raise NotCached(f"There is no {kind} {key[:12]} here.", "See `whence cache ls`.") from error
    return Header.from_bytes(data, kind, key, where)


def metadata_problem(backend: Backend, header: Header, path: str) -> str:
    """What is wrong with one Zarr metadata file; empty when it is sound."""
    try:
        found = digest_bytes(backend.read(f"{header.base}/{path}"))
    except FileNotFoundError:
        return "is missing"
    return "" if found == header.metadata[path] else "is not what was written"


def check_metadata(backend: Backend, header: Header) -> None:
    """Raise CorruptEntry unless every Zarr metadata file has the digest in the header."""
    for path in header.metadata:
        problem = metadata_problem(backend, header, path)
        if problem:
            raise CorruptEntry(f"{header.base}/{path} {problem}.", "Run `whence cache repair`.")


def read_seal(backend: Backend, header: Header) -> dict[str, Any] | None:
    """The seal; None when the entry is not sealed. Raises CorruptEntry when it belongs to another entry."""
    where = f"{header.base}/{COMPLETE}"
    try:
        seal = check(backend.read(where), where)
    except FileNotFoundError:
        return None
    if (seal.get("key"), seal.get("entry")) != (header.key, header.digest):
        raise CorruptEntry(f"{where} seals another entry.", "Run `whence cache repair`.")
    return seal


def check_seal(backend: Backend, header: Header, seal: Mapping[str, Any]) -> None:
    """Raise CorruptEntry unless the seal's digest is that of the commits on disk."""
    records = [backend.read(f"{header.base}/{commit_path(shard.index)}") for shard in header.grid]
    if commits_digest(records) != seal.get("commits"):
        raise CorruptEntry(f"{header.base}: the commits are not the sealed ones.", "Run `whence cache repair`.")
