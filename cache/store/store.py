"""The store: artefacts are found by what they are computed from, and each is computed once.

    store = Store()
    with store.writer("gradients", inputs, {"g": ArraySpec((n, d), "bfloat16")}) as w:
        for shard in w.todo():                      # none, when the entry is complete
            w.write(shard, {"g": compute(shard.start, shard.stop)})
        entry = w.seal()
    entry.rows("g", [5, 2])

An entry that exists is read, one that is incomplete is resumed, and a changed input is another key.
"""

import contextlib
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..display import Cell, Shown, table
from ..errors import NotCached, ResourceError, StoreError
from .backend import Backend
from .catalogue import LABELS, Catalogue, Hashed
from .entry import Entry
from .header import new_header
from .keys import key_of, plain
from .layout import COMPLETE, ENTRY, FORMERLY, ArraySpec, Grid, entry_path, parse_specs
from .local import TEMPORARY, LocalBackend, explained
from .locks import BuildLock, FileLock
from .writer import Writer, as_array, create_or_resume, open_writer, sweep

# the share of the free space that a job may plan to fill
FILL = 0.9
REMOTE = re.compile(r"^[a-z][a-z0-9+.-]*://")


@dataclass(frozen=True)
class Event:
    """One request for an artefact: "hit" (it existed), "built", or "resumed" (the rest of it was computed).

    rows, bytes: computed and written now, 0 for a hit; seconds: until it was available.
    """

    kind: str
    key: str
    what: str
    rows: int
    bytes: int
    seconds: float


class Store(Catalogue):
    """A root folder (or object store) of artefacts.

    root: a path or URL; by default $WHENCE_CACHE, else the user's cache folder.
    events: the requests to this object, in order.
    labels: fingerprint -> what people call that model or data; entries that are created record it beside their key.

    >>> entry = store.put("scores", {"what": "an example"}, {"values": np.ones((2, 3))})
    >>> store.open("scores", {"what": "an example"}).read("values").shape
    (2, 3)
    >>> [event.what for event in store.events]
    ['built', 'hit']
    """

    def __init__(self, root: str | os.PathLike[str] | None = None):
        super().__init__(_backend_at(root))
        self.events: list[Event] = []
        self.labels: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def _repr_html_(self) -> str:
        return self.contents_table().html

    def contents_table(self) -> Shown:
        """One line per entry: kind, key, title, state, rows, size on disk and names, by kind and last use."""
        rows = [
            (e.kind, e.key[:12], self.title(e.kind, e.key), e.state, e.rows, Cell(human(e.bytes), e.bytes),
             ", ".join(e.names))
            for e in self.listing()
        ]  # fmt: skip
        caption = f"{self.root}: {len(rows)} entries, {human(sum(row[5].key for row in rows))}"
        return table(("kind", "key", "of", "state", "rows", "size", "names"), rows, caption)

    def work(self) -> Shown:
        """One line per artefact requested from this object: computed now or from the cache, size, seconds."""
        once: dict[str, Event] = {}
        for event in self.events:
            if event.key not in once or event.what != "hit":
                once[event.key] = event
        words = {"hit": "from the cache", "built": "computed now", "resumed": "finished now"}
        rows = [
            (e.kind, e.key[:12], self.title(e.kind, e.key), words[e.what], Cell(human(e.bytes), e.bytes),
             Cell(f"{e.seconds:.2f} s", e.seconds))
            for e in once.values()
        ]  # fmt: skip
        computed = sum(e.what != "hit" for e in once.values())
        caption = f"{computed} computed, {len(rows) - computed} from the cache"
        return table(("kind", "key", "of", "", "written", "time"), rows, caption)

    def __reduce__(self) -> Any:
        return Store, (self.root,)

    # -- writing

    @contextlib.contextmanager
    def writer(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        arrays: Mapping[str, ArraySpec],
        shard_rows: int | None = None,
        about: Mapping[str, Any] | None = None,
        whole: bool = False,
    ) -> Iterator[Writer]:
        """The right to build an entry, which is created, or resumed when it is incomplete.

        Args:
            kind: one of the store's kinds.
            inputs: what it is computed from, and nothing else; the key is a hash of kind and inputs.
            arrays: name -> ArraySpec.
            shard_rows: arrays with a common first axis are cut into shards of this many rows, by default about 64 MiB.
            about: for people and readers (ids, titles, settings), not part of the key.
            whole: one shard has all arrays whole, as it always is for arrays without a common first axis.

        Raises ResourceError when the arrays would fill more than 90 % of the free space; StoreError when the
        store cannot be written, or the same inputs were stored with other arrays.
        """
        began, key = time.monotonic(), key_of(kind, inputs)
        specs = parse_specs(arrays)
        grid = Grid.of(specs, shard_rows, whole)
        base = entry_path(kind, key)
        if self.backend.exists(f"{base}/{COMPLETE}") and self.backend.exists(f"{base}/{ENTRY}"):
            self._sweep_seal(kind, key)
            writer = open_writer(self.backend, kind, key)
            create_or_resume(self.backend, new_header(kind, key, inputs, grid, specs, None, None))
            self._note(writer, "hit", began)
            yield writer
            return
        with self._building(kind, key) as in_use:
            if not self.backend.exists(f"{base}/{ENTRY}"):
                self.backend.remove(f"{base}/{COMPLETE}")  # it attests a header that was lost; commits stay valid
                self._check_space(specs)
            known = {name: self.labels[str(v)] for name, v in plain(inputs).items() if str(v) in self.labels}
            labels = {LABELS: known} if known else {}
            header = create_or_resume(self.backend, new_header(kind, key, inputs, grid, specs, about, labels))
            for value in inputs.values():
                if isinstance(value, Hashed):
                    self.remember(value)
            writer = Writer(self.backend, header, in_use)
            resumed = writer.missing < writer.grid.count
            found_complete = writer.complete
            self._touch(kind, key)
            try:
                yield writer
            finally:
                self._touch(kind, key)  # an interrupted job uses it too
            if found_complete:
                self._note(writer, "hit", began)
            elif writer.complete:
                self._note(writer, "resumed" if resumed else "built", began)

    def _sweep_seal(self, kind: str, key: str) -> None:
        """Delete what a process left that died between giving the seal its name and removing the temporary file."""
        if self.backend.remote:
            return  # an object is whole or absent
        if any(name.startswith(TEMPORARY) for name in self.backend.list(entry_path(kind, key))):
            with self._building(kind, key):
                pass  # whoever may build sweeps first

    @contextlib.contextmanager
    def _building(self, kind: str, key: str) -> Iterator[FileLock | None]:
        """Take the build lock and mark the entry as in use."""
        if self.backend.remote:
            yield None
            return
        base = entry_path(kind, key)
        self.backend.make_folder(base)
        with explained(self.root, f"locking {base}"):
            lock = BuildLock(self.backend.local(f"{base}/building"), f"the {kind} {key[:12]}")
            in_use = FileLock(self.backend.local(f"{base}/in-use"))
            lock.acquire()
        try:
            alone = in_use.try_exclusive()
            sweep(self.backend, base, alone)
            in_use.try_shared()
            yield in_use
        finally:
            in_use.release()
            lock.release()

    def join(self, kind: str, key: str) -> Writer:
        """A writer for a worker process, for shards of an entry that another process is building."""
        in_use = None
        if not self.backend.remote:
            in_use = FileLock(self.backend.local(f"{entry_path(kind, key)}/in-use"))
            with explained(self.root, f"locking {kind} {key[:12]}"):
                in_use.try_shared()
        return open_writer(self.backend, kind, key, in_use)

    def put(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        arrays: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
        dims: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Entry:
        """Store whole arrays at once, unless the entry exists, and open it.

        dims: array name -> names of its axes. Otherwise see `writer`.
        """
        values = {name: as_array(value, str(name)) for name, value in arrays.items()}
        specs = {name: ArraySpec(value.shape, value.dtype, (dims or {}).get(name)) for name, value in values.items()}
        with self.writer(kind, inputs, specs, about=about, whole=True) as writer:
            for shard in writer.todo():
                writer.write(shard, values)
            return writer.seal()

    def _check_space(self, specs: Mapping[str, ArraySpec]) -> None:
        needed, free = sum(spec.nbytes for spec in specs.values()), self.backend.free_bytes()
        if free is not None and needed > FILL * free:
            raise ResourceError(
                f"This takes {human(needed)}; {human(free)} are free under {self.root}.",
                _smaller(specs, needed, FILL * free),
            )

    # -- reading

    def open(self, kind: str, inputs: Mapping[str, Any], partial: bool = False) -> Entry:
        """The artefact of these inputs. Raises NotCached, naming the nearest one and the inputs that differ.

        partial: open an incomplete one too; `entry.mask` then says which rows are committed.
        """
        began = time.monotonic()
        found = self._stored_as(kind, inputs, ENTRY)
        if found is None:
            raise NotCached(f"This {kind} is not in {self.root}.", self.nearest(kind, inputs))
        return self._open(*found, partial, began)

    def has(self, kind: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the artefact of these inputs is complete."""
        return self._stored_as(kind, inputs, COMPLETE) is not None

    def get(self, key: str, partial: bool = False) -> Entry:
        """The entry with this key or name, or the only one whose key starts so. Raises NotCached, or UsageError when
        several do."""
        began = time.monotonic()
        return self._open(*self.find(key), partial, began)

    def _stored_as(self, kind: str, inputs: Mapping[str, Any], file: str) -> tuple[str, str] | None:
        """(kind, key) of the entry of these inputs that has this file, under its kind or the kind's former name."""
        for name in (kind, FORMERLY.get(kind)):
            if name is not None:
                key = key_of(name, inputs)
                if all(self.backend.exists(f"{entry_path(name, key)}/{each}") for each in {ENTRY, file}):
                    return name, key
        return None

    def _open(self, kind: str, key: str, partial: bool, began: float) -> Entry:
        entry = Entry.open(self.backend, kind, key, partial)
        self._touch(kind, key)
        self.events.append(Event(kind, key, "hit", 0, 0, time.monotonic() - began))
        return entry

    def _note(self, writer: Writer, what: str, began: float) -> None:
        self._touch(writer.kind, writer.key)
        work = writer.work
        seconds = time.monotonic() - began
        self.events.append(Event(writer.kind, writer.key, what, work.rows, work.bytes, seconds))

    def _touch(self, kind: str, key: str) -> None:
        """Record that the entry was used now, for collection by age."""
        self.backend.touch(f"{entry_path(kind, key)}/{ENTRY}")


def _backend_at(root: str | os.PathLike[str] | None) -> Backend:
    if root is None:
        import platformdirs

        root = os.environ.get("WHENCE_CACHE") or platformdirs.user_cache_dir("whence")
    text = os.fspath(root).removeprefix("file://")
    if REMOTE.match(text):
        from .remote import connect_to

        return connect_to(text)
    path = Path(os.path.realpath(os.path.expanduser(text)))
    with explained(path, "opening it", "read"):
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file.", "Give a folder for the store.")
    return LocalBackend(path)


def human(size: int | float) -> str:
    """Bytes for people: 1.4 GB."""
    if abs(size) < 1000:
        return f"{size:.0f} B"
    power = min(5, int(math.log10(abs(size)) // 3))
    return f"{size / 1000**power:.1f} {['', 'kB', 'MB', 'GB', 'TB', 'PB'][power]}"


def _smaller(specs: Mapping[str, ArraySpec], needed: int, limit: float) -> str:
    """The setting with which it fits."""
    if all(spec.dtype.name in ("float32", "float64") for spec in specs.values()):
        half = sum(int(np.prod(spec.shape)) * 2 for spec in specs.values())
        if half <= limit:
            return f"Stored as bfloat16 it takes {human(half)} and fits; or use a root on a larger disk."
    rows = {spec.shape[0] for spec in specs.values() if spec.shape}
    if len(rows) == 1:
        (count,) = rows
        return f"{int(count * limit / needed)} of the {count} rows fit; or use a root on a larger disk."
    return "Use a root on a larger disk, or fewer or narrower arrays."
