"""What every worker of a job needs, given to each once: those at work now, and those that are started later.

A Dask task that carried its work would carry it once a partition; a worker plugin carries it once a process, so a
model of some GB can go along, is unpickled once, and what its kernels compiled stays compiled. The only import of
distributed at the top of a file: this one is imported where there is a cluster.
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


class HandOut(distributed.WorkerPlugin):
    """A worker's own copy of some work, unpickled when it is first called for."""

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


def hand_out(client: Any, name: str, work: Callable[..., Any], limit: int) -> None:
    """Give `work` to every worker under a name. Raises UsageError where it takes more than `limit` bytes,
    ResourceError where workers cannot be reached."""
    payload = cloudpickle.dumps(work)
    if len(payload) > limit:
        raise UsageError(
            f"This job's task carries {len(payload) >> 20} MiB to every worker.",
            "Let it hold names and settings, and load models and data by them.",
        )
    plugin = HandOut(name, payload)
    for attempt in range(TRIES):
        try:
            client.register_plugin(plugin, name=name)
            return
        except OSError as error:  # a worker that is just being lost
            log.info("handing out %s: %s", name, error)
            time.sleep(attempt)
    raise ResourceError("The cluster's workers cannot be reached.", "Look at its dashboard; start it again.")


def handed(name: str) -> Any:
    """On a worker: the work of that name."""
    plugin: Any = distributed.get_worker().plugins[name]
    return plugin.work


def take_back(client: Any, name: str) -> None:
    """Let every worker forget it; one that is gone has."""
    try:
        client.unregister_worker_plugin(name)
    except (OSError, ValueError) as error:
        log.info("taking back %s: %s", name, error)
