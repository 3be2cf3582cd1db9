"""Broadcast of a job's work to every worker process, once: to those that run now, and to those started later.

A Dask task that carried its work would carry it once per partition. A worker plugin carries it once per process, so
a model of some GB can go along, is unpickled once, and what its kernels compiled stays compiled. This is the only
file that imports distributed at its top; import it only when there is a cluster.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import cloudpickle
import distributed

from ..errors import ResourceError, UsageError

log = logging.getLogger("whence.cache")
TRIES = 5


class Broadcast(distributed.WorkerPlugin):
    """A worker's own copy of some work, unpickled at its first use."""

    def __init__(self, name: str, payload: bytes):
        self.name, self.payload = name, payload
        self._work: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "payload": self.payload, "_work": None}

    @property
    def work(self) -> Any:
        if self._work is None:
            self._work = cloudpickle.loads(self.payload)
        return self._work


def broadcast(client: Any, name: str, work: Callable[..., Any], limit: int) -> None:
    """Send `work` to every worker under a name. Raises UsageError if it takes more than `limit` bytes, ResourceError
    if workers cannot be reached."""
    payload = cloudpickle.dumps(work)
    if len(payload) > limit:
        raise UsageError(
            f"This job's task carries {len(payload) >> 20} MiB to every worker.",
            "Give it names and settings, and let it load models and data by them.",
        )
    plugin = Broadcast(name, payload)
    for attempt in range(TRIES):
        try:
            client.register_plugin(plugin, name=name)
            return
        except OSError as error:  # a worker is just being lost
            log.info("broadcasting %s: %s", name, error)
            time.sleep(attempt)
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
