"""A Zarr store that shows an entry as its readers may see it: committed shards only, each verified before its
first byte is handed out, nothing writable. What zarr, xarray and dask read goes through here."""

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from .layout import DATA

if TYPE_CHECKING:
    from .entry import Entry


class CommittedStore(Store):
    """See the module. Keys are relative to the entry's Zarr group."""

    supports_writes = False
    supports_deletes = False
    supports_partial_writes = False
    supports_listing = True

    def __init__(self, entry: "Entry"):
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
        path = f"{DATA}/{key}"
        if path in self.entry.header.metadata:
            data = self.entry._files.read(f"{self.entry._base}/{path}")
            return prototype.buffer.from_bytes(_cut(data, byte_range))
        found = self._verified(path, key)
        if found is None:
            return None
        with open(found, "rb") as file:
            size = file.seek(0, 2)
            start, stop = _bounds(size, byte_range)
            file.seek(start)
            return prototype.buffer.from_bytes(file.read(stop - start))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        path = f"{DATA}/{key}"
        if path in self.entry.header.metadata:
            return True
        return self._verified(path, key) is not None

    def _verified(self, path: str, key: str) -> Path | None:
        """Where a chunk's file lies, checked; None for what is no committed chunk of the entry."""
        shard = _shard_of(key)
        if shard is None or shard >= self.entry.grid.count:
            return None
        known = path in self.entry.header.shard_files(shard).values()
        return self.entry.verified(path, shard) if known else None

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


def _shard_of(key: str) -> int | None:
    """The shard that a chunk key belongs to; None for a key that is no chunk's."""
    name = key.rpartition("/")[2].split(".")
    if name[0] != "c" or not all(part.isdigit() for part in name[1:]):
        return None
    return int(name[1]) if len(name) > 1 else 0


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
    raise TypeError(f"{part!r} asks for no part of a file.")


def _cut(data: bytes, part: ByteRequest | None) -> bytes:
    start, stop = _bounds(len(data), part)
    return data[start:stop]
