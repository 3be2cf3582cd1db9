"""Maintenance of a store: verify entries, repair them, remove them, collect old ones.

An entry that is pinned, named, being built or open anywhere is never collected: an open entry has a shared lock,
and collection takes that lock exclusively. What is removed is first renamed away, so nobody sees half an entry.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from ..errors import NewerFormat, NotCached, ResourceError, StoreError, UsageError
from .backend import digest_bytes
from .catalogue import Catalogue, Listed
from .commit import Commit
from .committed import Committed
from .header import Header, check_seal, metadata_problem, read_seal, zarr_metadata
from .layout import COMPLETE, ENTRY, VERSION_DIR, commit_path, entry_path, pin_path
from .local import explained
from .locks import FileLock
from .writer import sweep

GRACE_SECONDS = 24 * 3600.0
MISSING_NAMED = 100
TRASH = f"{VERSION_DIR}/trash"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with an entry."""

    kind: str
    key: str
    path: str
    problem: str


def verify(store: Catalogue, kind: str, key: str, full: bool = True) -> list[Fault]:
    """The faults of an entry; none for a sound one.

    full: check every byte against its digest, rather than presence and sizes only. Raises NewerFormat.
    """
    return [Fault(kind, key, path, problem) for path, problem in _faults(store, kind, key, full)]


def _faults(store: Catalogue, kind: str, key: str, full: bool) -> Iterator[tuple[str, str]]:
    backend, base = store.backend, entry_path(kind, key)
    try:
        header = store.header(kind, key)
    except NewerFormat:
        raise
    except StoreError as error:
        yield ENTRY, _problem(error)
        return
    for path in header.metadata:
        problem = metadata_problem(backend, header, path)
        if problem:
            yield path, problem
    seal, sound = None, True
    try:
        seal = read_seal(backend, header)
    except StoreError as error:
        yield COMPLETE, _problem(error)
    committed, missing = _shards(store, header)
    if seal is not None and missing:
        sound = False
        yield from ((commit_path(index), "missing from a sealed entry") for index in missing)
    for index in committed:
        shard, path = header.grid.shard(index), commit_path(index)
        try:
            commit = Commit.from_bytes(backend.read(f"{base}/{path}"), key, shard, header.shard_paths(shard), path)
        except (StoreError, FileNotFoundError) as error:
            sound = False
            yield path, _problem(error)
            continue
        yield from _file_faults(store, header, commit, full)
    if seal is not None and sound:
        try:
            check_seal(backend, header, seal)
        except StoreError as error:
            yield COMPLETE, _problem(error)


def _shards(store: Catalogue, header: Header) -> tuple[list[int], list[int]]:
    """The shards that have a commit, and the first of those that have none (a header may claim any number)."""
    names = {f"commits/{name}" for name in store.backend.list(f"{header.base}/commits")}
    numbers = [int(name[8:-5]) for name in names if name[8:-5].isdecimal()]
    committed = sorted(n for n in numbers if n < header.grid.count and commit_path(n) in names)
    every = range(header.grid.count)
    return committed, list(islice((n for n in every if commit_path(n) not in names), MISSING_NAMED))


def _file_faults(store: Catalogue, header: Header, commit: Commit, full: bool) -> Iterator[tuple[str, str]]:
    entry = Committed(store.backend, header)
    for path, expected in commit.files.items():
        try:
            if full:
                store.backend.forget(f"{header.base}/{path}")
                entry.mapped(path, commit.shard.index)
            elif (size := store.backend.size(f"{header.base}/{path}")) != expected.bytes:
                yield path, f"{size} bytes instead of {expected.bytes}"
        except (StoreError, FileNotFoundError) as error:
            yield path, _problem(error)


def _problem(error: Exception) -> str:
    return error.cause if isinstance(error, StoreError) and not isinstance(error, NotCached) else "missing"


@dataclass(frozen=True)
class Repaired:
    """What `repair` did.

    dropped: shards to be computed again. restored: metadata files. unsealed: whether the seal was removed.
    removed: whether the whole entry was.
    """

    dropped: tuple[int, ...]
    restored: tuple[str, ...]
    unsealed: bool
    removed: bool


def repair(store: Catalogue, kind: str, key: str) -> Repaired:
    """Drop what is damaged, so that the job, run again, computes exactly that. Raises StoreError for an entry that is
    open or being built."""
    backend, base = store.backend, entry_path(kind, key)
    faults = verify(store, kind, key, full=True)
    if not faults:
        return Repaired((), (), False, False)
    with _alone(store, kind, key):
        if any(fault.path == ENTRY for fault in faults):
            _discard(store, kind, key)
            return Repaired((), (), True, True)
        header = store.header(kind, key)
        metadata = zarr_metadata(header.arrays, header.grid)
        restored = [fault.path for fault in faults if fault.path in header.metadata]
        if any(digest_bytes(metadata[path]) != header.metadata[path] for path in restored):
            _discard(store, kind, key)  # written by another version of zarr: it cannot be written again
            return Repaired((), (), True, True)
        backend.publish({f"{base}/{path}": [metadata[path]] for path in restored})
        bad = {fault.path for fault in faults} - set(restored)
        shards = [header.grid.shard(index) for part in _shards(store, header) for index in part]
        files_of = {shard.index: [commit_path(shard.index), *header.shard_paths(shard)] for shard in shards}
        dropped = tuple(shard for shard, paths in files_of.items() if bad & {*paths})
        if bad:
            backend.remove(f"{base}/{COMPLETE}")
        for path in (path for shard in dropped for path in files_of[shard]):
            backend.remove(f"{base}/{path}")
        sweep(backend, base, alone=True)
        return Repaired(dropped, tuple(restored), bool(bad), False)


def verify_names(store: Catalogue) -> list[Fault]:
    """The damaged files beside the entries: names, and hashes of models."""
    return [Fault("name", "", path, "is damaged") for path in store.damaged()]


def repair_names(store: Catalogue) -> list[str]:
    """Remove the damaged files beside the entries; returns their paths. Their entries stay, without the name."""
    damaged = store.damaged()
    for path in damaged:
        store.backend.remove(path)
    return damaged


def remove(store: Catalogue, kind: str, key: str, force: bool = False) -> int:
    """Remove an entry; returns the bytes freed.

    Raises StoreError when it is open or being built and, unless `force`, when it is pinned or named.
    """
    names = [name for name, named in store.refs().items() if named == key]
    if not force:
        if names:
            raise StoreError(f"{kind} {key[:12]} is called {names[0]!r}.", "To remove it all the same, add --force.")
        if store.backend.exists(pin_path(key)):
            raise StoreError(f"{kind} {key[:12]} is pinned.", "Unpin it first: whence cache pin --off KEY.")
    size = sum(count for _, count in store.backend.walk(entry_path(kind, key)))
    with _alone(store, kind, key):
        _discard(store, kind, key)
    store.backend.remove(pin_path(key))
    for name in names:
        store.unname(name)
    return size


def collect(
    store: Catalogue,
    max_bytes: int | None = None,
    older_than: float | None = None,
    grace: float = GRACE_SECONDS,
    dry_run: bool = False,
) -> list[Listed]:
    """Remove old entries; returns those that were (or, with dry_run, would be) removed.

    An entry that is pinned, named, open or being built is kept, and one that a damaged name mentions. Temporary files
    of processes that died more than an hour ago are deleted too.

    Args:
        store: where.
        max_bytes: remove the least recently used until at most this many bytes are left.
        older_than: remove what was not used for this many seconds.
        grace: keep what was used within this many seconds.
        dry_run: remove nothing.

    Raises UsageError without any limit, ResourceError when `max_bytes` cannot be met.
    """
    if max_bytes is None and older_than is None:
        raise UsageError("No eviction limit is given.", "Give --max-size, --older-than, or both.")
    now, lines = time.time(), store.listing()
    left = sum(line.bytes for line in lines)
    removed, named = [], store.perhaps_named()
    for line in sorted(lines, key=lambda line: line.used):
        old = older_than is not None and now - line.used > older_than
        big = max_bytes is not None and left > max_bytes
        if not (old or big) or line.pinned or line.names or line.key in named or now - line.used < grace:
            continue
        if not dry_run:
            try:
                with _alone(store, line.kind, line.key):
                    _discard(store, line.kind, line.key)
            except StoreError:
                continue  # open or being built
        left -= line.bytes
        removed.append(line)
    if not dry_run:
        store.backend.remove_tree(TRASH)
        sweep(store.backend, VERSION_DIR, alone=False)
    if max_bytes is not None and left > max_bytes:
        raise ResourceError(
            f"{left} bytes are left in {store.root}, more than {max_bytes}; {len(removed)} entries were removed.",
            "The rest is pinned, named, open, being built or was used within a day.",
        )
    return removed


@contextlib.contextmanager
def _alone(store: Catalogue, kind: str, key: str) -> Iterator[None]:
    """Take the locks of an entry. Raises StoreError when it is being built or open."""
    if store.backend.remote:
        yield
        return
    base = entry_path(kind, key)
    if not os.path.isdir(store.backend.local(base)):
        raise StoreError(f"{kind} {key[:12]} no longer exists.", "See `whence cache ls`.")
    locks = [FileLock(store.backend.local(f"{base}/{name}")) for name in ("building", "in-use")]
    try:
        with explained(store.root, f"locking {kind} {key[:12]}"):
            if not locks[0].try_exclusive():
                raise StoreError(f"{kind} {key[:12]} is being built by {locks[0].holder()}.", "Wait for it.")
            if not locks[1].try_exclusive():
                raise StoreError(f"{kind} {key[:12]} is open in some process.", "Close what reads it, then try again.")
        yield
    finally:
        for lock in locks:
            lock.release()


def _discard(store: Catalogue, kind: str, key: str) -> None:
    """Rename an entry away in one step, then delete it."""
    away = f"{TRASH}/{key}-{secrets.token_hex(4)}"
    store.backend.rename(entry_path(kind, key), away)
    store.backend.remove_tree(away)
