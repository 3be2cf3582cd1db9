"""Keeping a store in order: what is in it, is it whole, repair, collect what is old, pin what must stay.

Nothing that is pinned, named, being built or open anywhere is ever removed: an open entry holds a shared lock,
and collecting takes that lock alone. What is removed is first renamed away, so nobody sees half an entry.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import NewerFormat, ResourceError, StoreError, UsageError
from .commit import Commit
from .entry import Entry, check_seal, metadata_problem, read_seal
from .header import Header, shard_paths, zarr_metadata
from .layout import COMPLETE, ENTRY, VERSION_DIR, commit_path, entry_path, pin_path
from .local import digest_bytes
from .locks import FileLock
from .store import Store
from .writer import sweep

GRACE_SECONDS = 24 * 3600.0
TRASH = f"{VERSION_DIR}/trash"


@dataclass(frozen=True)
class Listed:
    """One line of a listing. bytes: on disk; state: complete, partial or damaged; used: unix time."""

    kind: str
    key: str
    state: str
    rows: int
    shards_done: int
    shards: int
    bytes: int
    created: float
    used: float
    names: tuple[str, ...]
    pinned: bool


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with an entry."""

    kind: str
    key: str
    path: str
    problem: str


def listing(store: Store) -> list[Listed]:
    """Every entry of a store, by kind and last use."""
    names: dict[str, list[str]] = {}
    for name, key in store.refs().items():
        names.setdefault(key, []).append(name)
    pins = set(store.files.list(f"{VERSION_DIR}/pins"))
    found = [_listed(store, kind, key, tuple(names.get(key, ())), key in pins) for kind, key in store.contents()]
    return sorted(found, key=lambda line: (line.kind, -line.used))


def _listed(store: Store, kind: str, key: str, names: tuple[str, ...], pinned: bool) -> Listed:
    base = entry_path(kind, key)
    size = sum(count for _, count in store.files.walk(base))
    used = store.files.used(f"{base}/{ENTRY}")
    try:
        header = store.header(kind, key)
    except StoreError:
        return Listed(kind, key, "damaged", 0, 0, 0, size, used, used, names, pinned)
    committed = {name for name in store.files.list(f"{base}/commits") if name.endswith(".json")}
    complete = store.files.exists(f"{base}/{COMPLETE}")
    return Listed(
        kind,
        key,
        "complete" if complete else "partial",
        header.grid.rows,
        len(committed),
        header.grid.count,
        size,
        header.created,
        used,
        names,
        pinned,
    )


# -- whole or not


def verify(store: Store, kind: str, key: str, full: bool = True) -> list[Fault]:
    """What is wrong with an entry: nothing, or the faults found. full: every byte against its digest; else
    only presence and sizes."""
    return [Fault(kind, key, path, problem) for path, problem in _faults(store, kind, key, full)]


def _faults(store: Store, kind: str, key: str, full: bool) -> Iterator[tuple[str, str]]:
    files, base = store.files, entry_path(kind, key)
    try:
        data = files.read(f"{base}/{ENTRY}")
        header = Header.from_bytes(data, kind, key, ENTRY)
    except NewerFormat:
        raise
    except (StoreError, FileNotFoundError) as error:
        yield ENTRY, _problem(error)
        return
    for path in header.metadata:
        problem = metadata_problem(files, base, header, path)
        if problem:
            yield path, problem
    seal = None
    try:
        seal = read_seal(files, base, header, data)
    except StoreError as error:
        yield COMPLETE, _problem(error)
    sound = True
    for shard in header.grid:
        path = commit_path(shard.index)
        try:
            record = files.read(f"{base}/{path}")
            commit = Commit.from_bytes(record, key, shard, shard_paths(header, shard), path)
        except FileNotFoundError:
            if seal is not None:
                sound = False
                yield path, "missing from a sealed entry"
            continue
        except StoreError as error:
            sound = False
            yield path, _problem(error)
            continue
        yield from _file_faults(store, base, header, commit, full)
    if seal is not None and sound:
        try:
            check_seal(files, base, header, seal)
        except StoreError as error:
            yield COMPLETE, _problem(error)


def _file_faults(store: Store, base: str, header: Header, commit: Commit, full: bool) -> Iterator[tuple[str, str]]:
    entry = Entry(store.files, header, None, None)
    for path, expected in commit.files.items():
        try:
            if full:
                store.files.forget(f"{base}/{path}")
                entry.verified(path, commit.shard.index)
            elif (size := store.files.size(f"{base}/{path}")) != expected.bytes:
                yield path, f"{size} bytes instead of {expected.bytes}"
        except (StoreError, FileNotFoundError) as error:
            yield path, _problem(error)


def _problem(error: Exception) -> str:
    return error.cause if isinstance(error, StoreError) else "missing"


@dataclass(frozen=True)
class Repaired:
    """What repair did: shards whose commits were dropped (to be computed again), metadata restored, whether the
    seal was taken off, whether the whole entry had to go."""

    dropped: tuple[int, ...]
    restored: tuple[str, ...]
    unsealed: bool
    removed: bool


def repair(store: Store, kind: str, key: str) -> Repaired:
    """Drop what is damaged, so that running the job again computes exactly that and nothing else."""
    files, base = store.files, entry_path(kind, key)
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
            _discard(store, kind, key)  # written by another zarr: its form cannot be made again
            return Repaired((), (), True, True)
        files.publish({f"{base}/{path}": [metadata[path]] for path in restored})
        bad = {fault.path for fault in faults} - set(restored)
        dropped = []
        for shard in header.grid:
            if bad & {commit_path(shard.index), *shard_paths(header, shard)}:
                dropped.append(shard.index)
        if bad:
            files.remove(f"{base}/{COMPLETE}")
        for index in dropped:
            files.remove(f"{base}/{commit_path(index)}")
            for path in shard_paths(header, header.grid.shard(index)):
                files.remove(f"{base}/{path}")
        sweep(files, kind, key, alone=True)
        return Repaired(tuple(dropped), tuple(restored), bool(bad), False)


# -- what may go


def pin(store: Store, kind: str, key: str, pinned: bool = True) -> None:
    """Never collect this entry (or, with pinned=False, allow it again)."""
    entry_path(kind, key)
    if pinned:
        store.files.create(pin_path(key), b"pinned\n")
    else:
        store.files.remove(pin_path(key))


def remove(store: Store, kind: str, key: str, force: bool = False) -> int:
    """Remove an entry; returns the bytes freed. Raises StoreError when it is open or being built, and, unless
    `force`, when it is pinned or named."""
    names = [name for name, named in store.refs().items() if named == key]
    if not force:
        if names:
            raise StoreError(f"{kind} {key[:12]} is called {names[0]!r}.", "Remove it with --force if you mean it.")
        if store.files.exists(pin_path(key)):
            raise StoreError(f"{kind} {key[:12]} is pinned.", "Unpin it first: whence cache pin --off KEY.")
    size = sum(count for _, count in store.files.walk(entry_path(kind, key)))
    with _alone(store, kind, key):
        _discard(store, kind, key)
    store.files.remove(pin_path(key))
    for name in names:
        store.unname(name)
    return size


def collect(
    store: Store,
    max_bytes: int | None = None,
    older_than: float | None = None,
    grace: float = GRACE_SECONDS,
    dry_run: bool = False,
) -> list[Listed]:
    """Remove entries not used for `older_than` seconds, then the least recently used until at most `max_bytes`
    are left. Never one that is pinned, named, open, being built, or used within `grace` seconds. Returns what
    was (or, with dry_run, would be) removed. Temporary files that workers left who died more than an hour ago go
    too. Raises ResourceError when `max_bytes` cannot be met.
    """
    if max_bytes is None and older_than is None:
        raise UsageError("Nothing says what may go.", "Give --max-size, --older-than, or both.")
    now, lines = time.time(), listing(store)
    left = sum(line.bytes for line in lines)
    gone = []
    for line in sorted(lines, key=lambda line: line.used):
        old = older_than is not None and now - line.used > older_than
        big = max_bytes is not None and left > max_bytes
        if not (old or big) or line.pinned or line.names or now - line.used < grace:
            continue
        if not dry_run:
            try:
                with _alone(store, line.kind, line.key):
                    _discard(store, line.kind, line.key)
            except StoreError:
                continue  # open or being built
        left -= line.bytes
        gone.append(line)
    if not dry_run:
        store.files.remove_tree(TRASH)
        for kind, key in store.contents():
            sweep(store.files, kind, key, alone=False)
    if max_bytes is not None and left > max_bytes:
        raise ResourceError(
            f"{left} bytes stay in {store.root}, {max_bytes} were asked for; {len(gone)} entries went.",
            "The rest is pinned, named, open, being built or was used within a day.",
        )
    return gone


@contextlib.contextmanager
def _alone(store: Store, kind: str, key: str) -> Iterator[None]:
    """Hold an entry that nobody builds or reads. Raises StoreError when somebody does."""
    if store.files.remote:
        yield
        return
    base = entry_path(kind, key)
    if not os.path.isdir(store.files.local(base)):
        raise StoreError(f"{kind} {key[:12]} is gone.", "See `whence cache ls`.")
    locks = [FileLock(store.files.local(f"{base}/{name}")) for name in ("building", "in-use")]
    try:
        if not locks[0].try_exclusive():
            raise StoreError(f"{kind} {key[:12]} is being built by {locks[0].holder()}.", "Wait for it.")
        if not locks[1].try_exclusive():
            raise StoreError(f"{kind} {key[:12]} is open somewhere.", "Close what reads it, and try again.")
        yield
    finally:
        for lock in locks:
            lock.release()


def _discard(store: Store, kind: str, key: str) -> None:
    """Take an entry out of sight in one step, then delete it."""
    away = f"{TRASH}/{key}-{secrets.token_hex(4)}"
    store.files.rename(entry_path(kind, key), away)
    store.files.remove_tree(away)
