"""The cache: list, inspect, verify, repair, collect, pin, remove and export what was computed."""

import json as json_module
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from whence.cache.errors import CorruptEntry, UsageError, did_you_mean
from whence.cache.jobs.progress import progress
from whence.cache.store.maintenance import collect, remove, repair, repair_names, verify, verify_names
from whence.cache.store.store import Store, human
from whence.options import Age, Size

from ._shared import Printed, Stored, Tabled, read_bytes, read_seconds

Key = tyro.conf.Positional[str]


@dataclass(frozen=True)
class Ls(Stored, Tabled):
    """List what is in the store.

    Example:

        whence cache ls --kind factors
    """

    kept = ""
    kind: str | None = None
    """Only this kind of artefact."""

    def run(self) -> None:
        every = self.open_store().listing()
        lines = [line for line in every if self.kind in (None, line.kind)]
        text = [f"{'kind':12} {'key':12} {'rows':>10} {'size':>9} {'state':9} {'used':>8}  of, names"]
        for line in lines:
            state = line.state if line.state != "partial" else f"{line.shards_done}/{line.shards}"
            names = "  ".join([line.of, *line.names, *(["(pinned)"] if line.pinned else [])])
            text.append(
                f"{line.kind:12} {line.key[:12]:12} {line.rows:>10} {human(line.bytes):>9} {state:9} "
                f"{_ago(line.used):>8}  {names}".rstrip()
            )
        kinds = {line.kind for line in every}
        if self.kind is not None and kinds and self.kind not in kinds:
            text = [f"Nothing here is of the kind {self.kind!r}. {did_you_mean(self.kind, sorted(kinds), 'There are')}"]
        text.append(f"{len(lines)} entries, {human(sum(line.bytes for line in lines))}")
        rows = [asdict(line) for line in lines]
        self.show_table(rows, "\n".join(text), rows)


@dataclass(frozen=True)
class Info(Stored, Printed):
    """Show what an entry was computed from, and how it differs from another.

    If two entries were computed from different models, the tensors that differ are named.

    Example:

        whence cache info 3fa9 --json
    """

    key: Key
    """A key, its beginning, or a name."""
    other: tyro.conf.Positional[str | None] = None
    """A second entry to compare with."""

    def run(self) -> None:
        store = self.open_store()
        kind, key = store.find(self.key)
        facts = _facts(store, kind, key)
        if self.other is not None:
            facts["differs"] = _differs(store, (kind, key), store.find(self.other))
        parts = [f"{kind} {key}"]
        for name, value in facts.items():
            if name not in ("kind", "key"):
                parts.append(f"{name}\n" + "\n".join(f"  {line}" for line in _lines(value)))
        self.show(facts, "\n\n".join(parts))


@dataclass(frozen=True)
class Verify(Stored, Printed):
    """Check entries against the digests of their commits; every byte, unless --quick.

    Exit code 1 when something is damaged.

    Example:

        whence cache verify --quick
    """

    keys: tyro.conf.Positional[tuple[str, ...]] = ()
    """Keys or names; all entries by default."""
    quick: bool = False
    """Presence and sizes only."""
    full: bool = False
    """Every byte: the default, for scripts that state it."""

    def run(self) -> None:
        if self.quick and self.full:
            raise UsageError("--quick and --full exclude each other.", "Give one of them.")
        store = self.open_store()
        targets = _targets(store, self.keys)
        checked = progress(targets, desc="verifying", unit="entry", quiet=self.json)
        faults = [fault for kind, key in checked for fault in verify(store, kind, key, not self.quick)]
        faults += [] if self.keys else verify_names(store)
        lines = [f"{fault.kind} {fault.key[:12]} {fault.path}: {fault.problem}" for fault in faults]
        lines.append(f"{len(targets)} entries, {len(faults)} faults")
        self.show({"entries": len(targets), "faults": [asdict(fault) for fault in faults]}, "\n".join(lines))
        if faults:
            raise CorruptEntry(
                f"{len({fault.key or fault.path for fault in faults})} entries or names are damaged.",
                "Run `whence cache repair`, then the jobs that computed them: only what was damaged is computed again.",
            )


@dataclass(frozen=True)
class Repair(Stored, Printed):
    """Drop what is damaged; the job that computed it then computes exactly that again.

    Example:

        whence cache repair
    """

    keys: tyro.conf.Positional[tuple[str, ...]] = ()
    """Keys or names; all entries by default."""

    def run(self) -> None:
        store = self.open_store()
        repaired = []
        for kind, key in progress(_targets(store, self.keys), desc="repairing", unit="entry", quiet=self.json):
            done = repair(store, kind, key)
            if done.dropped or done.restored or done.unsealed or done.removed:
                repaired.append({"kind": kind, "key": key} | asdict(done))
        lines = []
        for line in repaired:
            what = "removed whole" if line["removed"] else f"{len(line['dropped'])} shards to compute again"
            lines.append(f"{line['kind']} {line['key'][:12]}: {what}")
        names = [] if self.keys else repair_names(store)
        lines += [f"{path}: removed" for path in names]
        lines.append(f"{len(repaired)} entries repaired" if repaired or names else "Nothing is damaged.")
        self.show(repaired + [{"removed": True, "path": path} for path in names], "\n".join(lines))


@dataclass(frozen=True)
class Gc(Stored, Printed):
    """Remove entries that were not used for long, or the least recently used ones beyond a size.

    Entries that are pinned, named, open, being written, or were used within a day stay.

    Example:

        whence cache gc --max-size 500GB --older-than 30d --dry-run
    """

    max_size: Size | None = None
    """Keep at most this much: 500GB, 20MB."""
    older_than: Age | None = None
    """Remove what was not used for this long: 30d, 12h."""
    dry_run: bool = False
    """List what would be removed, and remove nothing."""

    def run(self) -> None:
        size, age = read_bytes(self.max_size, "--max-size"), read_seconds(self.older_than, "--older-than")
        gone = collect(self.open_store(), size, age, dry_run=self.dry_run)
        lines = [f"{line.kind} {line.key[:12]} {human(line.bytes)}, used {_ago(line.used)} ago" for line in gone]
        verb = "would be removed" if self.dry_run else "removed"
        lines.append(f"{len(gone)} entries, {human(sum(line.bytes for line in gone))} {verb}")
        self.show([asdict(line) for line in gone], "\n".join(lines))


@dataclass(frozen=True)
class Pin(Stored):
    """Protect an entry from collection, by a pin or by a name.

    Example:

        whence cache pin 3fa9 --name best-factors
    """

    key: Key
    """A key, its beginning, or a name."""
    name: str | None = None
    """A name that commands accept instead of the key."""
    off: bool = False
    """Remove the pin (or the name, if one is given)."""

    def run(self) -> None:
        store = self.open_store()
        kind, key = store.find(self.key)
        if self.name is None:
            store.pin(kind, key, not self.off)
        elif self.off:
            store.unname(self.name)
        else:
            store.name(self.name, store.get(key, partial=True))
        print(f"{kind} {key[:12]} {'released' if self.off else 'kept'}")


@dataclass(frozen=True)
class Rm(Stored):
    """Remove entries. One that is open or being written stays; a pinned or named one needs --force.

    Example:

        whence cache rm 3fa9
    """

    keys: tyro.conf.Positional[tuple[str, ...]]
    """Keys, their beginnings, or names."""
    force: bool = False
    """Remove pinned and named entries too."""

    def run(self) -> None:
        store = self.open_store()
        for kind, key in dict.fromkeys(store.find(key) for key in self.keys):
            print(f"{kind} {key[:12]} removed, {human(remove(store, kind, key, self.force))} freed")


@dataclass(frozen=True)
class Export(Stored):
    """Write an entry as safetensors or npy files into a new folder.

    Example:

        whence cache export 3fa9 out/factors --format npy
    """

    key: Key
    """A key, its beginning, or a name."""
    to: tyro.conf.Positional[Path]
    """The folder to create."""
    format: Literal["safetensors", "npy"] = "safetensors"
    """One safetensors file, or one npy file per array."""

    def run(self) -> None:
        from whence.cache.store.export import export

        for path in export(self.open_store().get(self.key), self.to, self.format):
            print(f"{path} {human(path.stat().st_size)}")


def _targets(store: Store, keys: tuple[str, ...]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(store.find(key) for key in keys)) if keys else list(store.contents())


def _facts(store: Store, kind: str, key: str) -> dict[str, Any]:
    header = store.header(kind, key)
    line = next(line for line in store.listing() if line.key == key)
    return {
        "kind": kind,
        "key": key,
        "state": line.state,
        "names": list(line.names),
        "size": human(line.bytes),
        "created": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(header.created)),
        "inputs": dict(header.inputs),
        "arrays": {name: f"{list(spec.shape)} {spec.dtype.name}" for name, spec in header.arrays.items()},
        "shards": f"{line.shards_done} of {line.shards}, {header.grid.shard_rows} rows each",
        "provenance": dict(header.provenance),
    }


def _differs(store: Store, one: tuple[str, str], two: tuple[str, str]) -> dict[str, Any]:
    from whence.cache.store.keys import differences

    left, right = store.header(*one), store.header(*two)
    found: dict[str, Any] = {}
    for name, a, b in differences(left.inputs, right.inputs):
        found[name] = {"this": a, "other": b}
        tensors = store.differing_tensors(a, b)
        if tensors is not None:
            found[name]["tensors"] = list(tensors)
    return found


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        text = json_module.dumps
        return [f"{name}: {item if isinstance(item, str) else text(item)}" for name, item in value.items()] or ["-"]
    if isinstance(value, list):
        return [str(item) for item in value] or ["-"]
    return [str(value)]


def _ago(when: float) -> str:
    seconds = max(0.0, time.time() - when)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


COMMANDS = {
    "ls": Ls,
    "info": Info,
    "verify": Verify,
    "repair": Repair,
    "gc": Gc,
    "pin": Pin,
    "rm": Rm,
    "export": Export,
}
