"""The same store on an object store (s3://, gs://, az://, memory://): whole objects, conditional writes, and a
read-through folder on the local disk from which arrays are mapped.

An upload is whole or not there, and `create` is a conditional put, which one of several racing writers wins; so
the commit protocol is that of the local disk without its syncs. There are no locks: two builders of one entry
share its work shard by shard, and collection spares what was used within a day instead of what is open.
Credentials and endpoints come from the environment, as for any program that talks to that provider.
"""

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import ResourceError, StoreError, UsageError
from .backend import Files, Piece, Written
from .local import digest_bytes

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "memory")
UPLOADS = 8
_memories: dict[str, Any] = {}


def connect_to(url: str) -> "RemoteFiles":
    """The files at a URL. Raises UsageError for a scheme that no object store has."""
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise UsageError(
            f"{url!r} is no store: {scheme}:// takes no conditional writes.",
            f"Use a folder, or one of {', '.join(name + '://' for name in SCHEMES)}.",
        )
    return RemoteFiles(url.rstrip("/"))


@dataclass(frozen=True)
class RemoteFiles(Files):
    """A prefix of a bucket."""

    url: str
    remote: bool = field(default=True, init=False)

    @property
    def address(self) -> str:
        return self.url

    @cached_property
    def _bucket(self) -> Any:
        try:
            from obstore.store import MemoryStore, from_url
        except ImportError as error:
            raise ResourceError(
                "Remote stores need obstore, which is not installed.", "pip install 'whence[remote]'."
            ) from error
        if self.address.startswith("memory://"):
            return _memories.setdefault(self.address, MemoryStore())
        with _explained(self.address, "connecting"):
            return from_url(self.address)

    @cached_property
    def _mirror(self) -> Path:
        """Where copies of shards lie: $WHENCE_READ_THROUGH, else the user's cache folder."""
        import platformdirs

        root = os.environ.get("WHENCE_READ_THROUGH") or os.path.join(
            platformdirs.user_cache_dir("whence"), "read-through"
        )
        return Path(os.path.realpath(root)) / sha256(self.address.encode()).hexdigest()[:16]

    def __reduce__(self) -> Any:
        return connect_to, (self.address,)

    def _key(self, path: str) -> str:
        if any(part in ("", ".", "..") or "\0" in part for part in path.split("/")):
            raise StoreError(f"{path!r} is no path inside a store.", "Remove what wrote it, and verify.")
        return path

    # -- reading

    def read(self, path: str) -> bytes:
        import obstore

        with _explained(self.address, f"reading {path}"):
            return bytes(obstore.get(self._bucket, self._key(path)).bytes())

    def exists(self, path: str) -> bool:
        try:
            self._head(path)
        except FileNotFoundError:
            return False
        return True

    def _head(self, path: str) -> Any:
        import obstore

        with _explained(self.address, f"looking for {path}"):
            return obstore.head(self._bucket, self._key(path))

    def size(self, path: str) -> int:
        return int(self._head(path)["size"])

    def used(self, path: str) -> float:
        for name in (f"{path}.used", path):
            with contextlib.suppress(FileNotFoundError):
                return float(self._head(name)["last_modified"].timestamp())
        raise FileNotFoundError(path)

    def touch(self, path: str) -> None:
        import obstore

        with contextlib.suppress(StoreError), _explained(self.address, f"touching {path}"):
            obstore.put(self._bucket, f"{self._key(path)}.used", b"")

    def list(self, path: str) -> list[str]:
        import obstore

        with _explained(self.address, f"listing {path}"):
            found = obstore.list_with_delimiter(self._bucket, f"{self._key(path)}/")
        names = [str(entry["path"]).rpartition("/")[2] for entry in found["objects"]]
        names += [str(prefix).rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"]]
        return sorted(names)

    def walk(self, path: str) -> Iterator[tuple[str, int]]:
        import obstore

        with _explained(self.address, f"listing {path}"):
            for page in obstore.list(self._bucket, f"{self._key(path)}/"):
                for entry in page:
                    yield str(entry["path"]), int(entry["size"])

    def local(self, path: str) -> Path:
        """A copy of the file on the local disk, fetched when it is not there yet. Objects never change, so a
        copy stays good; readers check it against its commit as they do any file."""
        copy = self._mirror.joinpath(*self._key(path).split("/"))
        if not copy.exists():
            data = self.read(path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            temporary = copy.parent / f".{secrets.token_hex(8)}"
            temporary.write_bytes(data)
            os.rename(temporary, copy)
        return copy

    def forget(self, path: str) -> bool:
        copy = self._mirror.joinpath(*self._key(path).split("/"))
        with contextlib.suppress(FileNotFoundError):
            copy.unlink()
            return True
        return False

    # -- writing

    def publish(self, files: Mapping[str, Iterable[Piece]], once: bool = False) -> dict[str, Written]:
        def upload(item: tuple[str, Iterable[Piece]]) -> Written:
            path, data = item[0], b"".join(item[1])
            if not self._put(path, data, create=once):
                return digest_bytes(self.read(path))
            self.forget(path)
            return digest_bytes(data)

        with ThreadPoolExecutor(UPLOADS) as pool:
            return dict(zip(files, pool.map(upload, files.items())))

    def create(self, path: str, data: bytes) -> bool:
        return self._put(path, data, create=True)

    def _put(self, path: str, data: bytes, create: bool) -> bool:
        import obstore

        with _explained(self.address, f"writing {path}"):
            try:
                obstore.put(self._bucket, self._key(path), data, mode="create" if create else "overwrite")
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def make_folder(self, path: str) -> None:
        """Nothing to do: object stores have no folders."""

    def remove(self, path: str) -> None:
        import obstore

        with contextlib.suppress(FileNotFoundError), _explained(self.address, f"deleting {path}"):
            obstore.delete(self._bucket, self._key(path))
        self.forget(path)

    def rename(self, path: str, to: str) -> None:
        """Move all objects below a path; header first, so that nobody opens what is half moved."""
        import obstore

        moving = sorted((key for key, _ in self.walk(path)), key=lambda key: not key.endswith("/entry.json"))
        for key in moving:
            with _explained(self.address, f"moving {key}"):
                obstore.copy(self._bucket, key, f"{self._key(to)}{key[len(path) :]}")
            self.remove(key)

    def remove_tree(self, path: str) -> None:
        for key in [key for key, _ in self.walk(path)]:
            self.remove(key)

    def free_bytes(self) -> int | None:
        return None


@contextlib.contextmanager
def _explained(address: str, doing: str) -> Iterator[None]:
    import obstore

    try:
        yield
    except (FileNotFoundError, obstore.exceptions.NotFoundError) as error:
        raise FileNotFoundError(doing) from error
    except obstore.exceptions.BaseError as error:
        raise StoreError(
            f"{address} did not do as asked ({doing}): {str(error).splitlines()[0][:200]}.",
            "Check the address, the credentials in the environment, and the network.",
        ) from error
