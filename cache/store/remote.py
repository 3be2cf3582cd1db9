"""The backend on an object store (s3://, gs://, az://, memory://): whole objects, conditional writes, and a
read-through folder on the local disk from which arrays are mapped.

An upload is whole or absent, and `create` is a conditional put, which one of several racing writers wins; so the
commit protocol is that of the local disk without its syncs. There are no locks: two builders of one entry share
its work shard by shard, and collection spares what was used within a day instead of what is open. Credentials and
endpoints come from the environment, as for any program that talks to that provider.
"""

import contextlib
import importlib.util
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import ResourceError, StoreError, UsageError
from .backend import Backend, Piece, Written, digest_bytes, parts_of

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "memory")
UPLOADS = 8


def connect_to(url: str) -> "RemoteBackend":
    """The backend at a URL. Raises UsageError for a scheme that no object store has, ResourceError when the package
    for object stores is not installed."""
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise UsageError(
            f"{url!r} cannot be a store: {scheme}:// has no conditional writes.",
            f"Use a folder, or one of {', '.join(name + '://' for name in SCHEMES)}.",
        )
    if importlib.util.find_spec("obstore") is None:
        raise ResourceError("Remote stores need obstore, which is not installed.", "pip install 'whence[remote]'.")
    return RemoteBackend(url.rstrip("/"))


@dataclass(frozen=True)
class RemoteBackend(Backend):
    """A prefix of a bucket."""

    url: str
    remote: bool = field(default=True, init=False)

    @property
    def address(self) -> str:
        return self.url

    @cached_property
    def _bucket(self) -> Any:
        from obstore.store import from_url

        if self.address.startswith("memory://"):
            return _memory(self.address)
        with self._explained("connecting"):
            return from_url(self.address)

    @cached_property
    def _mirror(self) -> Path:
        """The folder of the copies: $WHENCE_READ_THROUGH, else the user's cache folder."""
        import platformdirs

        root = os.environ.get("WHENCE_READ_THROUGH") or os.path.join(
            platformdirs.user_cache_dir("whence"), "read-through"
        )
        return Path(os.path.realpath(root)) / sha256(self.address.encode()).hexdigest()[:16]

    def __reduce__(self) -> Any:
        return connect_to, (self.address,)

    def _key(self, path: str) -> str:
        return "/".join(parts_of(path))

    def _copy(self, path: str) -> Path:
        return self._mirror.joinpath(*parts_of(path))

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        from obstore.exceptions import BaseError, NotFoundError

        try:
            yield
        except (FileNotFoundError, NotFoundError) as error:
            raise FileNotFoundError(doing) from error
        except BaseError as error:
            raise StoreError(
                f"{self.address} failed while {doing}: {str(error).splitlines()[0][:200]}.",
                "Check the address, the credentials in the environment, and the network.",
            ) from error

    # -- reading

    def read(self, path: str) -> bytes:
        with self._explained(f"reading {path}"):
            return bytes(self._bucket.get(self._key(path)).bytes())

    def exists(self, path: str) -> bool:
        try:
            self._head(path)
        except FileNotFoundError:
            return False
        return True

    def _head(self, path: str) -> Any:
        with self._explained(f"looking for {path}"):
            return self._bucket.head(self._key(path))

    def size(self, path: str) -> int:
        return int(self._head(path)["size"])

    def used(self, path: str) -> float:
        for name in (f"{path}.used", path):
            with contextlib.suppress(FileNotFoundError):
                return float(self._head(name)["last_modified"].timestamp())
        raise FileNotFoundError(path)

    def touch(self, path: str) -> None:
        with contextlib.suppress(StoreError), self._explained(f"touching {path}"):
            self._bucket.put(f"{self._key(path)}.used", b"")

    def list(self, path: str) -> list[str]:
        with self._explained(f"listing {path}"):
            found = self._bucket.list_with_delimiter(f"{self._key(path)}/")
        names = [str(entry["path"]).rpartition("/")[2] for entry in found["objects"]]
        names += [str(prefix).rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"]]
        return sorted(names)

    def walk(self, path: str) -> Iterator[tuple[str, int]]:
        with self._explained(f"listing {path}"):
            for page in self._bucket.list(f"{self._key(path)}/"):
                for entry in page:
                    yield str(entry["path"]), int(entry["size"])

    def local(self, path: str) -> Path:
        """A copy of the file on the local disk, fetched when there is none yet. Objects never change, so a copy
        stays valid; readers check it against its commit like any other file."""
        copy = self._copy(path)
        if not copy.exists():
            data = self.read(path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            temporary = copy.parent / f".{secrets.token_hex(8)}"
            temporary.write_bytes(data)
            os.rename(temporary, copy)
        return copy

    def forget(self, path: str) -> bool:
        copy = self._copy(path)
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
        with self._explained(f"writing {path}"):
            from obstore.exceptions import AlreadyExistsError

            try:
                self._bucket.put(self._key(path), data, mode="create" if create else "overwrite")
            except AlreadyExistsError:
                return False
        return True

    def make_folder(self, path: str) -> None:
        """No-op: object stores have no folders."""

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._explained(f"deleting {path}"):
            self._bucket.delete(self._key(path))
        self.forget(path)

    def rename(self, path: str, to: str) -> None:
        """Move all objects below a path, the header first, so that nobody opens an entry that is half moved."""
        moving = sorted((key for key, _ in self.walk(path)), key=lambda key: not key.endswith("/entry.json"))
        for key in moving:
            with self._explained(f"moving {key}"):
                self._bucket.copy(key, f"{self._key(to)}{key[len(path) :]}")
            self.remove(key)

    def remove_tree(self, path: str) -> None:
        for key in [key for key, _ in self.walk(path)]:
            self.remove(key)

    def free_bytes(self) -> int | None:
        return None


@cache
def _memory(address: str) -> Any:
    """The one object store in this process's memory with this address."""
    from obstore.store import MemoryStore

    return MemoryStore()
