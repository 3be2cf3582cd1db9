"""Signed records: JSON documents that carry their own digest, and the commit record of a shard.

A commit record says that the files of one shard are whole, with the length and xxh3-128 of each under its path: a
file that was swapped, duplicated, cut or flipped no longer matches its record. The seal (see header.py) is a
digest over all commits. Both are written once.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CorruptEntry, NewerFormat
from .backend import Written
from .layout import FORMAT, Shard

DIGEST = "digest"


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def sign(document: Mapping[str, Any]) -> bytes:
    """The document as JSON bytes, with the sha256 of all the rest in its field `digest`."""
    signed = dict(document) | {DIGEST: hashlib.sha256(_text(document).encode()).hexdigest()}
    return json.dumps(signed, sort_keys=True, indent=1).encode()


def check(data: bytes, where: str) -> dict[str, Any]:
    """The signed document in these bytes. Raises NewerFormat or CorruptEntry."""
    try:
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError("not a mapping")
        digest = document.pop(DIGEST)
    except (ValueError, KeyError, RecursionError) as error:
        raise CorruptEntry(f"{where} is damaged: {error}.", "Run `whence cache repair`, then the job again.") from error
    if isinstance(document.get("format"), int) and document["format"] > FORMAT:
        raise NewerFormat(
            f"{where} has format {document['format']}; this version of Whence reads up to {FORMAT}.",
            "Update Whence, or use another WHENCE_CACHE.",
        )
    if digest != hashlib.sha256(_text(document).encode()).hexdigest() or data != sign(document):
        raise CorruptEntry(f"{where} does not match its own digest.", "Run `whence cache repair`, then the job again.")
    return document


@dataclass(frozen=True)
class Commit:
    """One shard's files, by path relative to the entry."""

    key: str
    shard: Shard
    files: Mapping[str, Written]

    def to_bytes(self) -> bytes:
        return sign(
            {
                "format": FORMAT,
                "key": self.key,
                "shard": self.shard.index,
                "start": self.shard.start,
                "stop": self.shard.stop,
                "files": {path: {"bytes": file.bytes, "xxh3_128": file.xxh3_128} for path, file in self.files.items()},
            }
        )

    @staticmethod
    def from_bytes(data: bytes, key: str, shard: Shard, paths: Iterable[str], where: str) -> "Commit":
        """The commit of this shard of this entry. Raises CorruptEntry when it belongs to another, or names other
        files than the grid does."""
        document = check(data, where)
        try:
            commit = Commit(
                document["key"],
                Shard(document["shard"], document["start"], document["stop"]),
                {path: Written(**file) for path, file in document["files"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptEntry(f"{where} is not a commit record: {error}.", "Run `whence cache repair`.") from error
        if commit.key != key or commit.shard != shard or set(commit.files) != set(paths):
            raise CorruptEntry(f"{where} belongs to another shard or entry.", "Run `whence cache repair`.")
        return commit

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


def commits_digest(records: Iterable[bytes]) -> str:
    """sha256 over commit records in shard order: what the seal attests."""
    digest = hashlib.sha256(b"commits/1")
    for record in records:
        digest.update(hashlib.sha256(record).digest())
    return digest.hexdigest()
