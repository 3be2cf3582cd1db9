"""Broadcast of a job's work to every worker process, once: to those that run now, and to those started later.

A Dask task that carried its work would carry it once per partition. A worker plugin carries it once per process, so
a model of some GB can go along, is unpickled once, and what its kernels compiled stays compiled. This is the only
file that imports distributed at its top; import it only when there is a cluster.
"""

import hashlib
import importlib.util
import logging
import os
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cloudpickle
import distributed

from ..errors import ResourceError, UsageError

log = logging.getLogger("whence.cache")
TRIES = 5


def installed_code() -> str:
    """The version of this package and a hash of its source files, in this process: "0.2.0 3f9a..."."""
    found = importlib.util.find_spec(__name__.partition(".")[0])
    assert found is not None
    assert found.origin is not None
    root, digest = Path(found.origin).parent, hashlib.sha256()
    files = [Path(folder) / f for folder, _, names in os.walk(root, followlinks=True) for f in names]
    for path in sorted(path for path in files if path.suffix == ".py"):
        digest.update(f"|{path.relative_to(root).as_posix()}|".encode() + path.read_bytes())
    try:
        number = version(__name__.partition(".")[0])
    except PackageNotFoundError:
        number = "unknown"
    return f"{number} {digest.hexdigest()[:16]}"


def check_code(expected: str, found: str, worker: str) -> None:
    """Raise ResourceError unless a worker runs this very code: it would commit other numbers under the same key."""
    if found != expected:
        raise ResourceError(
            f"The worker {worker} runs other code of whence than this process: {found}, here {expected}.",
            "Install the same version there (or restart workers after an edit), then run the same command again.",
        )


class CheckedBroadcast(distributed.WorkerPlugin):
    """A worker's own copy of some work, unpickled at its first use. code: `installed_code` of the sender, which each
    worker compares with its own."""

    def __init__(self, name: str, payload: bytes, code: str):
        self.name, self.payload, self.code = name, payload, code
        self._work: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "payload": self.payload, "code": self.code, "_work": None}

    @property
    def work(self) -> Any:
        if self._work is None:
            check_code(self.code, installed_code(), distributed.get_worker().address)
            self._work = cloudpickle.loads(self.payload)
        return self._work


def broadcast(client: Any, name: str, work: Callable[..., Any], limit: int) -> None:
    """Send `work` to every worker under a name.

    Raises UsageError if it takes more than `limit` bytes, ResourceError if workers cannot be reached. A worker of other
    code than this process raises ResourceError when it first takes up the work (`received`), before it computes.
    """
    payload = cloudpickle.dumps(work)
    if len(payload) > limit:
        raise UsageError(
            f"This job's task carries {len(payload) >> 20} MiB to every worker.",
            "Give it names and settings, and let it load models and data by them.",
        )
    plugin = CheckedBroadcast(name, payload, installed_code())
    for attempt in range(TRIES):
        try:
            client.register_plugin(plugin, name=name)
            return
        except OSError as error:  # a worker is just being lost
            log.info("broadcasting %s: %s", name, error)
            time.sleep(attempt)
        except AttributeError as error:
            withdraw(client, name)
            raise ResourceError(  # it has no class of this name
                f"A worker runs an older version of whence than this process ({plugin.code}).",
                "Install the same version there.",
            ) from error
    raise ResourceError("The cluster's workers cannot be reached.", "Look at its dashboard; start it again.")


def received(name: str) -> Any:
    """On a worker: the work of that name."""
    plugin: Any = distributed.get_worker().plugins[name]
    return plugin.work


def withdraw(client: Any, name: str) -> None:
    """Let every worker drop the work of that name."""
    try:
        client.unregister_worker_plugin(name)
    except (OSError, ValueError) as error:
        log.info("withdrawing %s: %s", name, error)
