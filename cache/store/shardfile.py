"""The bytes of one shard file: encoded in the layout of Zarr's sharding codec, and read without a copy.

A file is chunks of rows, each uncompressed, little-endian, followed by its crc32c; when there is more than one
chunk, an index at the end: (offset, length) of each as two uint64, then the index's own crc32c. A shard is
encoded into pieces that point into the caller's array, so nothing is copied on the way to the disk.
"""

import struct
from collections.abc import Iterator

import google_crc32c
import numpy as np

from .backend import Piece
from .layout import Stored, fill_value

MISSING = 2**64 - 1


def encode(stored: Stored, shard: int, rows: np.ndarray) -> Iterator[Piece]:
    """The file's pieces in order. rows: [rows of this shard, ...] in the spec's dtype, checked by the caller."""
    rows = np.ascontiguousarray(rows)
    if rows.dtype.byteorder == ">":
        rows = rows.astype(rows.dtype.newbyteorder("<"))
    data = rows.reshape(-1).view(np.uint8)  # an array: the checksum takes no memoryview
    size = stored.chunk_bytes
    for start in range(0, len(data), size):
        chunk = data[start : start + size]
        if len(chunk) < size:
            chunk = np.concatenate([chunk, _filling(stored, size - len(chunk))])
        yield chunk.data
        yield struct.pack("<I", google_crc32c.value(chunk))
    if stored.sharded:
        index = _index(stored, -(-len(data) // size))
        yield index
        yield struct.pack("<I", google_crc32c.value(index))


def _filling(stored: Stored, size: int) -> np.ndarray:
    one = np.asarray(fill_value(stored.spec.dtype), stored.spec.dtype)
    return np.full(size // one.itemsize, one).view(np.uint8)


def _index(stored: Stored, chunks: int) -> bytes:
    length = stored.chunk_bytes + 4
    index = np.full((stored.shard_rows // stored.chunk_rows, 2), MISSING, "<u8")
    index[:chunks, 0] = np.arange(chunks, dtype=np.uint64) * length
    index[:chunks, 1] = length
    return index.tobytes()


def rows_in(stored: Stored, shard: int, file: np.ndarray) -> np.ndarray:
    """The rows as [chunk, row of the chunk, ...], a view of the file's bytes (uint8 [bytes]).

    Rows of the last chunk beyond the end of the shard contain the fill value.
    """
    chunks = -(-stored.rows_in(shard) // stored.chunk_rows)
    itemsize, row_shape = stored.spec.dtype.itemsize, stored.row_shape
    inner = np.cumprod((itemsize, *row_shape[::-1]))[::-1]  # row bytes, ..., item bytes
    strides = (stored.chunk_bytes + 4, *(int(step) for step in inner))
    return np.ndarray((chunks, stored.chunk_rows, *row_shape), stored.spec.dtype, file.data, 0, strides)
