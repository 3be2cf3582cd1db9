"""The store: asks for artefacts by what they are computed from, and builds each once.

    store = Store()
    with store.writer("gradients", inputs, {"g": ArraySpec((n, d), "bfloat16")}) as w:
        for shard in w.todo():                      # nothing, when it is there already
            w.write(shard, {"g": compute(shard.start, shard.stop)})
        entry = w.seal()
    entry.rows("g", [5, 2])

Asking for what exists is a read; what is half done is resumed; a changed input is another key.
"""

import contextlib
import errno
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
from ..errors import NotCached, ResourceError, StoreError, UsageError
from ..model.fingerprint import Fingerprint
from .backend import Files
from .commit import check, sign
from .entry import Entry
from .header import Header, new_header
from .keys import describe, differences, key_of, plain
from .layout import (
    COMPLETE,
    ENTRY,
    FORMAT,
    KEY,
    KINDS,
    VERSION_DIR,
    ArraySpec,
    Grid,
    entry_path,
    model_path,
    parse_specs,
    ref_path,
)
from .local import TEMPORARY, LocalFiles
from .locks import BuildLock, FileLock
from .writer import Writer, as_array, create_or_resume, open_writer, sweep

# of the free space, what a job may plan to fill
FILL = 0.9
REMOTE = re.compile(r"^[a-z][a-z0-9+.-]*://")


@dataclass(frozen=True)
class Event:
    """One artefact asked for: "hit" (it was there), "built", or "resumed" (the rest of it was built).

    rows, bytes: computed and written now, 0 for a hit; seconds: between asking and having it.
    """

    kind: str
    key: str
    what: str
    rows: int
    bytes: int
    seconds: float


class Store:
    """A root folder (or object store) of artefacts.

    root: a path or URL; $WHENCE_CACHE, else the user's cache folder, when not given.
    events: what was asked of this object, in order.
    Raises NewerFormat when the root was made by a later version.

    >>> entry = store.put("scores", {"what": "an example"}, {"values": np.ones((2, 3))})
    >>> store.open("scores", {"what": "an example"}).read("values").shape
    (2, 3)
    >>> [event.what for event in store.events]
    ['built', 'hit']
    """

    def __init__(self, root: str | os.PathLike[str] | None = None):
        self.files: Files = _files_at(root)
        self.events: list[Event] = []

    @property
    def root(self) -> str:
        return self.files.address

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def _repr_html_(self) -> str:
        return self.contents_table().html

    def contents_table(self) -> Shown:
        """Every entry: kind, key, what it is of, state, rows, size on disk, names; one line each, by kind and use."""
        from .maintenance import listing

        rows = [
            (e.kind, e.key[:12], self._called(e.kind, e.key), e.state, e.rows, Cell(human(e.bytes), e.bytes),
             ", ".join(e.names))
            for e in listing(self)
        ]  # fmt: skip
        caption = f"{self.root}: {len(rows)} entries, {human(sum(row[5].key for row in rows))}"
        return table(("kind", "key", "of", "state", "rows", "size", "names"), rows, caption)

    def work(self) -> Shown:
        """What was asked of this object, an artefact a line: computed now or from the cache, its size, how long."""
        once: dict[str, Event] = {}
        for event in self.events:
            if event.key not in once or event.what != "hit":
                once[event.key] = event
        told = {"hit": "from the cache", "built": "computed now", "resumed": "finished now"}
        rows = [
            (e.kind, e.key[:12], self._called(e.kind, e.key), told[e.what], Cell(human(e.bytes), e.bytes),
             Cell(f"{e.seconds:.2f} s", e.seconds))
            for e in once.values()
        ]  # fmt: skip
        computed = sum(e.what != "hit" for e in once.values())
        caption = f"{computed} computed, {len(rows) - computed} from the cache"
        return table(("kind", "key", "of", "", "written", "time"), rows, caption)

    def _called(self, kind: str, key: str) -> str:
        """What an artefact's inputs call it, empty where they do not."""
        try:
            inputs = self.header(kind, key).inputs
        except StoreError:
            return ""
        for name in ("stage", "what", "method", "at"):
            if inputs.get(name):
                value = inputs[name]
                return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        return ""

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
        provenance: Mapping[str, Any] | None = None,
        whole: bool = False,
        timeout: int | float | None = None,
    ) -> Iterator[Writer]:
        """The right to build an entry; creates it, or resumes what is half done.

        Waits, with a message, while another process builds the same key (up to `timeout` seconds).
        inputs: what it is computed from, and nothing else; with the kind it makes the key.
        arrays: name -> ArraySpec; when all have the same first axis it is cut into shards of `shard_rows` rows
            (about 64 MiB by default), else (or when `whole`) everything is one shard, written at once.
        about: for people and readers (ids, titles, settings), outside the key. provenance: more of the same,
            beside the library versions that are always written down.
        Raises ResourceError when the arrays would fill more than 90 % of the free space; StoreError when the
        store cannot be written, or the same inputs were stored with other arrays.
        """
        began, key = time.monotonic(), key_of(kind, inputs)
        specs = parse_specs(arrays)
        grid = Grid.of(specs, shard_rows, whole)
        base = entry_path(kind, key)
        if self.files.exists(f"{base}/{COMPLETE}"):
            self._sweep_seal(kind, key, timeout)
            writer = open_writer(self.files, kind, key)
            create_or_resume(self.files, new_header(kind, key, inputs, grid, specs, None, None))
            self._note(writer, "hit", began)
            yield writer
            return
        with self._building(kind, key, timeout) as in_use:
            if not self.files.exists(f"{base}/{ENTRY}"):
                self._check_space(specs)
            header = create_or_resume(self.files, new_header(kind, key, inputs, grid, specs, about, provenance))
            for value in inputs.values():
                if isinstance(value, Fingerprint):
                    self.remember(value)
            writer = Writer(self.files, header, in_use)
            resumed = writer.missing < writer.grid.count
            found_complete = writer.complete
            self._touch(kind, key)
            try:
                yield writer
            finally:
                self._touch(kind, key)  # half done and stopped is used too
            if found_complete:
                self._note(writer, "hit", began)
            elif writer.complete:
                self._note(writer, "resumed" if resumed else "built", began)

    def _sweep_seal(self, kind: str, key: str, timeout: int | float | None) -> None:
        """Delete what a process left that died between giving the seal its name and taking the temporary one off."""
        if self.files.remote:
            return  # an object is whole or not there
        if any(name.startswith(TEMPORARY) for name in self.files.list(entry_path(kind, key))):
            with self._building(kind, key, timeout):
                pass  # whoever may build sweeps first

    @contextlib.contextmanager
    def _building(self, kind: str, key: str, timeout: int | float | None = None) -> Iterator[FileLock | None]:
        """Hold the build lock and the sign that the entry is in use."""
        if self.files.remote:
            yield None
            return
        base = entry_path(kind, key)
        self.files.make_folder(base)
        with _lockable(self.root):
            lock = BuildLock(self.files.local(f"{base}/building"), f"the {kind} {key[:12]}")
            in_use = FileLock(self.files.local(f"{base}/in-use"))
            lock.acquire(timeout)
        try:
            alone = in_use.try_exclusive()
            sweep(self.files, kind, key, alone)
            in_use.try_shared()
            yield in_use
        finally:
            in_use.release()
            lock.release()

    def join(self, kind: str, key: str) -> Writer:
        """A writer for a worker process: it may write shards of an entry that another process is building."""
        in_use = None
        if not self.files.remote:
            in_use = FileLock(self.files.local(f"{entry_path(kind, key)}/in-use"))
            in_use.try_shared()
        return open_writer(self.files, kind, key, in_use)

    def put(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        arrays: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
        dims: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Entry:
        """Store whole arrays at once (already there: they are not written again) and open the entry.

        dims: array name -> names of its axes.
        """
        values = {name: as_array(value, str(name)) for name, value in arrays.items()}
        specs = {name: ArraySpec(value.shape, value.dtype, (dims or {}).get(name)) for name, value in values.items()}
        with self.writer(kind, inputs, specs, about=about, whole=True) as writer:
            for shard in writer.todo():
                writer.write(shard, values)
            return writer.seal()

    def _check_space(self, specs: Mapping[str, ArraySpec]) -> None:
        needed, free = sum(spec.nbytes for spec in specs.values()), self.files.free_bytes()
        if free is not None and needed > FILL * free:
            raise ResourceError(
                f"This would take {human(needed)}; {human(free)} are free under {self.root}.",
                _smaller(specs, needed, FILL * free),
            )

    # -- asking

    def open(self, kind: str, inputs: Mapping[str, Any], partial: bool = False) -> Entry:
        """The artefact of these inputs. Raises NotCached, naming the nearest one and the fields that differ.

        partial: open what is half done too; `entry.mask` then tells the rows that are there.
        """
        began, key = time.monotonic(), key_of(kind, inputs)
        if not self.files.exists(f"{entry_path(kind, key)}/{ENTRY}"):
            raise NotCached(f"This {kind} is not in {self.root}.", self._nearest(kind, inputs))
        entry = Entry.open(self.files, kind, key, partial)
        self._touch(kind, key)
        self.events.append(Event(kind, key, "hit", 0, 0, time.monotonic() - began))
        return entry

    def has(self, kind: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the artefact of these inputs is there, complete."""
        return self.files.exists(f"{entry_path(kind, key_of(kind, inputs))}/{COMPLETE}")

    def get(self, key: str, partial: bool = False) -> Entry:
        """The entry with this key, or the only one whose key starts so. Raises NotCached, or UsageError when
        several do."""
        kind, full = self.find(key)
        began = time.monotonic()
        entry = Entry.open(self.files, kind, full, partial)
        self._touch(kind, full)
        self.events.append(Event(kind, full, "hit", 0, 0, time.monotonic() - began))
        return entry

    def find(self, key: str) -> tuple[str, str]:
        """(kind, full key) of the entry whose key is, or starts with, `key`, or that a name refers to."""
        key = self.refs().get(key, key)
        if not re.fullmatch(r"[0-9a-f]{4,64}", key):
            raise NotCached(f"Nothing is called {key!r} in {self.root}.", "See `whence cache ls`.")
        found = [(kind, full) for kind, full in self.contents() if full.startswith(key)]
        if not found:
            raise NotCached(f"No entry has a key that starts with {key!r}.", "See `whence cache ls`.")
        if len(found) > 1:
            raise UsageError(f"{len(found)} entries have keys that start with {key!r}.", "Give more digits of the key.")
        return found[0]

    def contents(self) -> Iterator[tuple[str, str]]:
        """(kind, key) of every entry that has a header, complete or not."""
        for kind in KINDS:
            for prefix in self.files.list(f"{VERSION_DIR}/{kind}"):
                for key in self.files.list(f"{VERSION_DIR}/{kind}/{prefix}"):
                    proper = re.fullmatch(r"[0-9a-f]{64}", key) and key[:2] == prefix
                    if proper and self.files.exists(f"{entry_path(kind, key)}/{ENTRY}"):
                        yield kind, key

    def header(self, kind: str, key: str) -> Header:
        """What an entry is, without opening its arrays."""
        where = f"{entry_path(kind, key)}/{ENTRY}"
        return Header.from_bytes(self.files.read(where), kind, key, where)

    # -- names

    def name(self, name: str, entry: Entry) -> None:
        """Give an entry a name; the name moves when another entry had it. What has a name is never collected."""
        document = {"format": FORMAT, "name": name, "kind": entry.kind, "key": entry.key}
        self.files.publish({ref_path(name): [sign(document)]})

    def unname(self, name: str) -> None:
        """Take a name away; the entry stays."""
        self.files.remove(ref_path(name))

    def refs(self) -> dict[str, str]:
        """name -> key, of every name."""
        found = {}
        for file in self.files.list(f"{VERSION_DIR}/refs"):
            if file.endswith(".json") and not file.startswith("."):
                document = check(self.files.read(f"{VERSION_DIR}/refs/{file}"), f"refs/{file}")
                found[str(document["name"])] = str(document["key"])
        return found

    def ref(self, name: str) -> Entry:
        """The entry of this name. Raises NotCached."""
        refs = self.refs()
        if name not in refs:
            raise NotCached(f"Nothing is called {name!r} in {self.root}.", f"Names: {', '.join(refs) or 'none'}.")
        return self.get(refs[name])

    # -- models

    def remember(self, fingerprint: Fingerprint) -> None:
        """Keep a model's per-tensor hashes, so that two models can be compared when both are gone. Done for
        every Fingerprint that stands in the inputs of a writer."""
        path = model_path(fingerprint.hex)
        if not self.files.exists(path):
            self.files.create(path, sign({"format": FORMAT, "leaves": dict(fingerprint.leaves)}))

    def differing_tensors(self, one: Any, two: Any) -> tuple[str, ...] | None:
        """Names of the tensors in which two remembered models differ; None unless both are remembered."""
        found = []
        for model in (one, two):
            if not isinstance(model, str) or not KEY.fullmatch(model):
                return None
            path = model_path(model)
            try:
                document = check(self.files.read(path), path)
            except FileNotFoundError:
                return None
            found.append(Fingerprint(model, document["leaves"]))
        return found[0].differs(found[1])

    # -- inside

    def _nearest(self, kind: str, inputs: Mapping[str, Any]) -> str:
        asked, best = plain(inputs), None
        for found_kind, key in self.contents():
            if found_kind != kind:
                continue
            try:
                header = self.header(kind, key)
            except (StoreError, OSError):
                continue
            differing = differences(asked, header.inputs)
            if best is None or len(differing) < len(best[1]):
                best = (key, differing)
        if best is None:
            return f"There is no {kind} here at all: build it first."
        return f"The nearest is {best[0][:12]}, which differs in {describe(best[1])}."

    def _note(self, writer: Writer, what: str, began: float) -> None:
        self._touch(writer.kind, writer.key)
        work = writer.work
        seconds = time.monotonic() - began
        self.events.append(Event(writer.kind, writer.key, what, work.rows, work.bytes, seconds))

    def _touch(self, kind: str, key: str) -> None:
        """Note that the entry was used now, for collection by age."""
        self.files.touch(f"{entry_path(kind, key)}/{ENTRY}")


def reopen(files: Files, kind: str, key: str, partial: bool) -> Entry:
    """Open an entry in another process; what an Entry is pickled as."""
    return Entry.open(files, kind, key, partial)


@contextlib.contextmanager
def _lockable(root: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StoreError(
                f"The store at {root} cannot be written ({error.strerror}).",
                "Change its permissions, or point WHENCE_CACHE at a folder of your own.",
            ) from error
        raise


def _files_at(root: str | os.PathLike[str] | None) -> Files:
    if root is None:
        root = os.environ.get("WHENCE_CACHE") or _user_folder()
    text = os.fspath(root)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if REMOTE.match(text):
        from .remote import connect_to

        return connect_to(text)
    path = Path(os.path.realpath(os.path.expanduser(text)))
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file.", "Give a folder for the store.")
    return LocalFiles(path)


def _user_folder() -> str:
    import platformdirs

    return platformdirs.user_cache_dir("whence")


def human(size: int | float) -> str:
    """Bytes for people: 1.4 GB."""
    if abs(size) < 1000:
        return f"{size:.0f} B"
    power = min(5, int(math.log10(abs(size)) // 3))
    return f"{size / 1000**power:.1f} {['', 'kB', 'MB', 'GB', 'TB', 'PB'][power]}"


def _smaller(specs: Mapping[str, ArraySpec], needed: int, limit: float) -> str:
    """The setting that would make it fit."""
    if all(spec.dtype.name in ("float32", "float64") for spec in specs.values()):
        half = sum(int(np.prod(spec.shape)) * 2 for spec in specs.values())
        if half <= limit:
            return f"Stored as bfloat16 it takes {human(half)} and fits; or use a root on a larger disk."
    rows = {spec.shape[0] for spec in specs.values() if spec.shape}
    if len(rows) == 1:
        (count,) = rows
        return f"{int(count * limit / needed)} of the {count} rows fit; or use a root on a larger disk."
    return "Use a root on a larger disk, or fewer or narrower arrays."
