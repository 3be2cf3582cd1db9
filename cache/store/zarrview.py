"""A read-only Zarr store of an entry's committed, verified shards. zarr, xarray and dask read through it."""

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from .bfloat16 import as_bfloat16
from .committed import Committed
from .layout import DATA


class CommittedStore(Store):
    """The Zarr group of one entry. Keys are relative to the group."""

    supports_writes = False
    supports_deletes = False
    supports_partial_writes = False
    supports_listing = True

    def __init__(self, entry: Committed):
        super().__init__(read_only=True)
        self.entry = entry

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CommittedStore) and other.entry.key == self.entry.key

    def __hash__(self) -> int:
        return hash(self.entry.key)

    def __reduce__(self) -> Any:
        return CommittedStore, (self.entry,)

    def __str__(self) -> str:
        return f"whence://{self.entry.kind}/{self.entry.key}"

    def with_read_only(self, read_only: bool = False) -> Store:
        return self

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        data = self.entry.metadata(f"{DATA}/{key}")
        if data is not None:
            data = as_bfloat16(data)
            start, stop = _bounds(len(data), byte_range)
            return prototype.buffer.from_bytes(data[start:stop])
        found = self._chunk(key)
        if found is None:
            return None
        with open(found, "rb") as file:
            start, stop = _bounds(file.seek(0, 2), byte_range)
            file.seek(start)
            return prototype.buffer.from_bytes(file.read(stop - start))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        return f"{DATA}/{key}" in self.entry.header.metadata or self._chunk(key) is not None

    def _chunk(self, key: str) -> Path | None:
        """The checked file of a chunk; None for a key that is not a committed chunk of the entry."""
        name = key.rpartition("/")[2].split(".")
        if name[0] != "c" or not all(part.isdigit() for part in name[1:]):
            return None
        shard = int(name[1]) if len(name) > 1 else 0
        if shard >= self.entry.grid.count or f"{DATA}/{key}" not in self.entry.header.shard_files(shard).values():
            return None
        return self.entry.verified(f"{DATA}/{key}", shard)

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()

    async def delete(self, key: str) -> None:
        self._check_writable()

    def _keys(self) -> list[str]:
        shards = [s.index for s in self.entry.grid if self.entry.commit(s.index) is not None]
        files = [path for shard in shards for path in self.entry.header.shard_files(shard).values()]
        return [path.removeprefix(f"{DATA}/") for path in [*self.entry.header.metadata, *files]]

    async def list(self) -> AsyncIterator[str]:
        for key in self._keys():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self._keys():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        for name in sorted({k[len(start) :].split("/")[0] for k in self._keys() if k.startswith(start)}):
            yield name


def _bounds(size: int, part: ByteRequest | None) -> tuple[int, int]:
    match part:
        case None:
            return 0, size
        case RangeByteRequest(start, end):
            return start, min(size, end)
        case OffsetByteRequest(offset):
            return offset, size
        case SuffixByteRequest(suffix):
            return max(0, size - suffix), size
    raise TypeError(f"{part!r} is not a byte range.")
