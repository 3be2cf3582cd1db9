"""The cache: list, inspect, verify, repair, collect, pin, remove and export what was computed."""

import json as json_module
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from whence.cache.errors import CorruptEntry, UsageError
from whence.cache.jobs.progress import progress
from whence.cache.store.maintenance import collect, remove, repair, verify
from whence.cache.store.store import Store, human

Key = tyro.conf.Positional[str]
StorePath = Annotated[str | None, tyro.conf.arg(help="The store; $WHENCE_CACHE or your cache folder by default.")]


@dataclass(frozen=True)
class Ls:
    """List what is in the store.

    Example:

        whence cache ls --kind factors
    """

    kind: str | None = None
    """Only this kind of artefact."""
    json: bool = False
    """Print JSON."""
    store: StorePath = None

    def run(self) -> None:
        lines = [line for line in Store(self.store).listing() if self.kind in (None, line.kind)]
        if self.json:
            _json([asdict(line) for line in lines])
            return
        print(f"{'kind':12} {'key':12} {'rows':>10} {'size':>9} {'state':9} {'used':>8}  names")
        for line in lines:
            state = line.state if line.state != "partial" else f"{line.shards_done}/{line.shards}"
            names = ", ".join([*line.names, *(["(pinned)"] if line.pinned else [])])
            print(
                f"{line.kind:12} {line.key[:12]:12} {line.rows:>10} {human(line.bytes):>9} {state:9} "
                f"{_ago(line.used):>8}  {names}".rstrip()
            )
        print(f"{len(lines)} entries, {human(sum(line.bytes for line in lines))}")


@dataclass(frozen=True)
class Info:
    """Show what an entry was computed from, and how it differs from another.

    Where two entries were computed from different models, the tensors that differ are named.

    Example:

        whence cache info 3fa9 --json
    """

    key: Key
    """A key, its beginning, or a name."""
    other: tyro.conf.Positional[str | None] = None
    """A second entry to compare with."""
    json: bool = False
    """Print JSON."""
    store: StorePath = None

    def run(self) -> None:
        store = Store(self.store)
        kind, key = store.find(self.key)
        told = _told(store, kind, key)
        if self.other is not None:
            told["differs"] = _differs(store, (kind, key), store.find(self.other))
        if self.json:
            _json(told)
            return
        print(f"{kind} {key}")
        for name, value in told.items():
            if name not in ("kind", "key"):
                print(f"\n{name}\n" + "\n".join(f"  {line}" for line in _lines(value)))


@dataclass(frozen=True)
class Verify:
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
    """Every byte: the default, for scripts that want to say so."""
    json: bool = False
    """Print JSON."""
    store: StorePath = None

    def run(self) -> None:
        if self.quick and self.full:
            raise UsageError("--quick and --full exclude each other.", "Give one of them.")
        store = Store(self.store)
        targets = _targets(store, self.keys)
        checked = progress(targets, desc="verifying", unit="entry", quiet=self.json)
        faults = [fault for kind, key in checked for fault in verify(store, kind, key, not self.quick)]
        if self.json:
            _json({"entries": len(targets), "faults": [asdict(fault) for fault in faults]})
        else:
            for fault in faults:
                print(f"{fault.kind} {fault.key[:12]} {fault.path}: {fault.problem}")
            print(f"{len(targets)} entries, {len(faults)} faults")
        if faults:
            raise CorruptEntry(
                f"{len({fault.key for fault in faults})} entries are damaged.",
                "Run `whence cache repair`, then the jobs that made them: only what was damaged is computed.",
            )


@dataclass(frozen=True)
class Repair:
    """Drop what is damaged, so that the job that made it computes exactly that again.

    Example:

        whence cache repair
    """

    keys: tyro.conf.Positional[tuple[str, ...]] = ()
    """Keys or names; all entries by default."""
    json: bool = False
    """Print JSON."""
    store: StorePath = None

    def run(self) -> None:
        store = Store(self.store)
        told = []
        for kind, key in progress(_targets(store, self.keys), desc="repairing", unit="entry", quiet=self.json):
            done = repair(store, kind, key)
            if done.dropped or done.restored or done.unsealed or done.removed:
                told.append({"kind": kind, "key": key} | asdict(done))
        if self.json:
            _json(told)
            return
        for line in told:
            what = "removed whole" if line["removed"] else f"{len(line['dropped'])} shards to compute again"
            print(f"{line['kind']} {line['key'][:12]}: {what}")
        print(f"{len(told)} entries repaired" if told else "Nothing is damaged.")


@dataclass(frozen=True)
class Gc:
    """Remove what was not used for long, or the least recently used beyond a size.

    Never what is pinned, named, open, being built, or was used within a day.

    Example:

        whence cache gc --max-size 500GB --older-than 30d --dry-run
    """

    max_size: str | None = None
    """Keep at most this much: 500GB, 20MB."""
    older_than: str | None = None
    """Remove what was not used for this long: 30d, 12h."""
    dry_run: bool = False
    """Say what would go, and remove nothing."""
    json: bool = False
    """Print JSON."""
    store: StorePath = None

    def run(self) -> None:
        size = None if self.max_size is None else int(_measure(self.max_size, SIZES, "--max-size"))
        age = None if self.older_than is None else _measure(self.older_than, AGES, "--older-than")
        gone = collect(Store(self.store), size, age, dry_run=self.dry_run)
        if self.json:
            _json([asdict(line) for line in gone])
            return
        for line in gone:
            print(f"{line.kind} {line.key[:12]} {human(line.bytes)}, used {_ago(line.used)} ago")
        verb = "would go" if self.dry_run else "gone"
        print(f"{len(gone)} entries, {human(sum(line.bytes for line in gone))} {verb}")


@dataclass(frozen=True)
class Pin:
    """Protect an entry from collection, by a pin or under a name of its own.

    Example:

        whence cache pin 3fa9 --name best-factors
    """

    key: Key
    """A key, its beginning, or a name."""
    name: str | None = None
    """A name that commands accept in place of the key."""
    off: bool = False
    """Take the pin (or the name, when one is given) away."""
    store: StorePath = None

    def run(self) -> None:
        store = Store(self.store)
        kind, key = store.find(self.key)
        if self.name is None:
            store.pin(kind, key, not self.off)
        elif self.off:
            store.unname(self.name)
        else:
            store.name(self.name, store.get(key, partial=True))
        print(f"{kind} {key[:12]} {'released' if self.off else 'kept'}")


@dataclass(frozen=True)
class Rm:
    """Remove entries. One that is open or being built stays; a pinned or named one needs --force.

    Example:

        whence cache rm 3fa9
    """

    keys: tyro.conf.Positional[tuple[str, ...]]
    """Keys, their beginnings, or names."""
    force: bool = False
    """Remove pinned and named entries too."""
    store: StorePath = None

    def run(self) -> None:
        store = Store(self.store)
        for kind, key in [store.find(key) for key in self.keys]:
            print(f"{kind} {key[:12]} removed, {human(remove(store, kind, key, self.force))} freed")


@dataclass(frozen=True)
class Export:
    """Write an entry as safetensors or npy files into a new folder.

    Example:

        whence cache export 3fa9 out/factors --format npy
    """

    key: Key
    """A key, its beginning, or a name."""
    to: tyro.conf.Positional[Path]
    """The folder to make."""
    format: Literal["safetensors", "npy"] = "safetensors"
    """One safetensors file, or an npy file an array."""
    store: StorePath = None

    def run(self) -> None:
        from whence.cache.store.export import export

        for path in export(Store(self.store).get(self.key), self.to, self.format):
            print(f"{path} {human(path.stat().st_size)}")


SIZES = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _measure(text: str, units: dict[str, Any], option: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)", text.strip())
    if not found or found[2].lower() not in units:
        raise UsageError(
            f"{option} cannot be {text!r}.", f"Write a number and one of {', '.join(u for u in units if u)}."
        )
    return float(found[1]) * units[found[2].lower()]


def _targets(store: Store, keys: tuple[str, ...]) -> list[tuple[str, str]]:
    return [store.find(key) for key in keys] if keys else list(store.contents())


def _told(store: Store, kind: str, key: str) -> dict[str, Any]:
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
    told: dict[str, Any] = {}
    for name, a, b in differences(left.inputs, right.inputs):
        told[name] = {"this": a, "other": b}
        tensors = store.differing_tensors(a, b)
        if tensors is not None:
            told[name]["tensors"] = list(tensors)
    return told


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


def _json(value: Any) -> None:
    print(json_module.dumps(value, indent=1, default=str))


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
