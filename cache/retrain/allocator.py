"""Memory that a tight loop frees and takes again stays with the process meanwhile.

The C library gives large blocks back to the system when they are freed, and the system clears every page of the
next one: for tensors of a few megabytes that costs as much as the arithmetic on them.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# mallopt's parameters in malloc.h of glibc; the later values are where its own adaptation ends
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST, AFTERWARDS = 1 << 30, 32 << 20


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, blocks of up to 1 GiB are not given back when freed; at the end they are. Does nothing where the C
    library is not glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt, trim = getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)
    if mallopt is None or trim is None:
        yield
        return
    mallopt(MMAP_THRESHOLD, LARGEST)
    mallopt(TRIM_THRESHOLD, LARGEST)
    try:
        yield
    finally:
        mallopt(MMAP_THRESHOLD, AFTERWARDS)
        mallopt(TRIM_THRESHOLD, 2 * AFTERWARDS)
        trim(0)
