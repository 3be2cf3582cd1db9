"""What a root contains: entries by kind and key, names and pins that protect them, hashes of models."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..errors import CorruptEntry, NewerFormat, NotCached, StoreError, UsageError
from .backend import Backend
from .commit import check, sign
from .committed import Committed
from .header import Header, read_header
from .keys import describe, differences, plain
from .layout import COMPLETE, ENTRY, FORMAT, KEY, KINDS, VERSION_DIR, entry_path, model_path, pin_path, ref_path

LABELS = "labels"  # in an entry's provenance: input -> what people call that model or data


@runtime_checkable
class Hashed(Protocol):
    """A model's fingerprint."""

    @property
    def hex(self) -> str: ...

    @property
    def leaves(self) -> Mapping[str, str]:
        """tensor name -> hash"""


@dataclass(frozen=True)
class Listed:
    """One line of a listing. bytes: on disk; state: complete, partial or damaged; used: unix time; of: what the inputs
    call it, and the model and data by name where they are known."""

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
    of: str = ""


def titled(header: Header) -> str:
    """What an entry's inputs call it, then its model and data by name where they were known: "ekfac: demo, texts"."""
    inputs, known = header.inputs, header.provenance.get(LABELS, {})
    value = next((inputs[name] for name in ("stage", "what", "method", "at") if inputs.get(name)), "")
    said = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return ": ".join(part for part in (said, ", ".join(dict.fromkeys(known.values()))) if part)


class Catalogue:
    """The entries of one root, and the names, pins and model hashes beside them."""

    def __init__(self, backend: Backend):
        self.backend = backend

    @property
    def root(self) -> str:
        return self.backend.address

    # -- entries

    def contents(self) -> Iterator[tuple[str, str]]:
        """(kind, key) of every entry, complete or not: what has a header, a seal or a commit."""
        for kind in KINDS:
            for prefix in self.backend.list(f"{VERSION_DIR}/{kind}"):
                for key in self.backend.list(f"{VERSION_DIR}/{kind}/{prefix}"):
                    if KEY.fullmatch(key) and key[:2] == prefix and self._begun(entry_path(kind, key)):
                        yield kind, key

    def _begun(self, base: str) -> bool:
        return not {ENTRY, COMPLETE}.isdisjoint(self.backend.list(base)) or bool(self.backend.list(f"{base}/commits"))

    def header(self, kind: str, key: str) -> Header:
        """What an entry is, without opening its arrays. Raises NotCached, NewerFormat or CorruptEntry."""
        return read_header(self.backend, kind, key)

    def find(self, key: str) -> tuple[str, str]:
        """(kind, full key) of the entry whose key is, or starts with, `key`, or that has this name.

        Raises NotCached when there is none, UsageError when several keys start so.
        """
        key = self.refs().get(key, key)
        if not re.fullmatch(r"[0-9a-f]{4,64}", key):
            raise NotCached(f"No entry is called {key!r} in {self.root}.", "See `whence cache ls`.")
        found = [(kind, full) for kind, full in self.contents() if full.startswith(key)]
        if not found:
            raise NotCached(f"No entry has a key that starts with {key!r}.", "See `whence cache ls`.")
        if len(found) > 1:
            raise UsageError(f"{len(found)} entries have keys that start with {key!r}.", "Give more digits of the key.")
        return found[0]

    def nearest(self, kind: str, inputs: Mapping[str, Any]) -> str:
        """A sentence that names the entry with the fewest other inputs, and those."""
        wanted, best = plain(inputs), None
        for found_kind, key in self.contents():
            if found_kind != kind:
                continue
            try:
                differing = differences(wanted, self.header(kind, key).inputs)
            except (StoreError, OSError):
                continue
            if best is None or len(differing) < len(best[1]):
                best = (key, differing)
        if best is None:
            return f"There is no {kind} here at all: build it first."
        return f"The nearest is {best[0][:12]}, which differs in {describe(best[1])}."

    def title(self, kind: str, key: str) -> str:
        """What an entry's inputs call it, for tables; empty if they do not."""
        try:
            return titled(self.header(kind, key))
        except StoreError:
            return ""

    def listing(self) -> list[Listed]:
        """Every entry, by kind and last use."""
        names: dict[str, list[str]] = {}
        for name, key in self.refs().items():
            names.setdefault(key, []).append(name)
        pins = set(self.backend.list(f"{VERSION_DIR}/pins"))
        lines = [self._line(kind, key, tuple(names.get(key, ())), key in pins) for kind, key in self.contents()]
        return sorted(lines, key=lambda line: (line.kind, -line.used))

    def _line(self, kind: str, key: str, names: tuple[str, ...], pinned: bool) -> Listed:
        base = entry_path(kind, key)
        size = sum(count for _, count in self.backend.walk(base))
        used = next((when for name in (ENTRY, COMPLETE) if (when := self._used(f"{base}/{name}"))), 0.0)
        try:
            header = self.header(kind, key)
        except StoreError:
            return Listed(kind, key, "damaged", 0, 0, 0, size, used, used, names, pinned)
        state = "complete" if self.backend.exists(f"{base}/{COMPLETE}") else "partial"
        done = sum(name.endswith(".json") for name in self.backend.list(f"{base}/commits"))
        rows, shards = header.grid.rows, header.grid.count
        return Listed(kind, key, state, rows, done, shards, size, header.created, used, names, pinned, titled(header))

    def _used(self, path: str) -> float:
        try:
            return self.backend.used(path)
        except FileNotFoundError:
            return 0.0

    # -- names and pins

    def name(self, name: str, entry: Committed) -> None:
        """Give an entry a name; another entry of that name loses it. A named entry is never collected."""
        document = {"format": FORMAT, "name": name, "kind": entry.kind, "key": entry.key}
        self.backend.publish({ref_path(name): [sign(document)]})

    def unname(self, name: str) -> None:
        """Remove a name; the entry stays."""
        self.backend.remove(ref_path(name))

    def refs(self) -> dict[str, str]:
        """name -> key, of every name whose file is sound."""
        found = ((path, self._document(path)) for path in self._files("refs"))
        return {d["name"]: d["key"] for path, d in found if d is not None and _names(d, path)}

    def damaged(self) -> list[str]:
        """Paths of the damaged files of names and of models' hashes."""
        found = []
        for path in [*self._files("refs"), *self._files("fingerprints")]:
            with contextlib.suppress(NewerFormat):
                document = self._document(path)
                sound = document is not None and (_names(document, path) or isinstance(document.get("leaves"), dict))
                found += [] if sound else [path]
        return found

    def perhaps_named(self) -> set[str]:
        """Keys that damaged names may have been for: those that their files still mention."""
        files = [path for path in self.damaged() if path.startswith(f"{VERSION_DIR}/refs/")]
        return {key for path in files for key in KEY.findall(self.backend.read(path).decode(errors="replace"))}

    def _files(self, folder: str) -> list[str]:
        names = self.backend.list(f"{VERSION_DIR}/{folder}")
        return [f"{VERSION_DIR}/{folder}/{n}" for n in names if n.endswith(".json") and not n.startswith(".")]

    def _document(self, path: str) -> dict[str, Any] | None:
        """The signed document in a file; None if it is damaged or gone. Raises NewerFormat."""
        try:
            return check(self.backend.read(path), path)
        except (CorruptEntry, FileNotFoundError):
            return None

    def pin(self, kind: str, key: str, pinned: bool = True) -> None:
        """Never collect this entry (or, with pinned=False, allow it again)."""
        entry_path(kind, key)
        if pinned:
            self.backend.create(pin_path(key), b"pinned\n")
        else:
            self.backend.remove(pin_path(key))

    # -- models

    def remember(self, model: Hashed) -> None:
        """Keep a model's per-tensor hashes, so that two models can be compared when neither is loaded. A writer does it
        for every fingerprint in its inputs."""
        path = model_path(model.hex)
        if not self.backend.exists(path):
            self.backend.create(path, sign({"format": FORMAT, "leaves": dict(model.leaves)}))

    def differing_tensors(self, one: Any, two: Any) -> tuple[str, ...] | None:
        """Names of the tensors that differ between two models, given by the hex of their fingerprints.

        None unless both are remembered.
        """
        leaves = []
        for model in (one, two):
            if not isinstance(model, str) or not KEY.fullmatch(model):
                return None
            document = self._document(model_path(model))
            if document is None or "leaves" not in document:
                return None
            leaves.append(document["leaves"])
        first, second = leaves
        return tuple(name for name in sorted({*first, *second}) if first.get(name) != second.get(name))


def _names(document: Mapping[str, Any], path: str) -> bool:
    """Whether a document names an entry, and is the one of this path."""
    name, key = document.get("name"), document.get("key")
    return isinstance(name, str) and isinstance(key, str) and bool(KEY.fullmatch(key)) and ref_path(name) == path
