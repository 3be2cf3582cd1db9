"""Clusters: partitions run in this process, on workers of this machine, or on any Dask cluster.

    inline            one after the other, here (the default)
    local:N           N worker processes on this machine, one for each GPU where there are GPUs
    dask:ADDRESS      a Dask scheduler that is running
    slurm:FILE        jobs on SLURM; FILE is TOML with the arguments of dask_jobqueue.SLURMCluster and `jobs`

Workers need the same packages and the same store (a shared folder, or an object store). They compute with as
many threads as this process, so that arithmetic, and with it every bit of the result, is the same.
"""

import ast
import contextlib
import inspect
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ResourceError, UsageError, did_you_mean
from .progress import say

HEARTBEAT_SECONDS = 120
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Cluster:
    """Workers to run partitions on.

    client: a `distributed.Client`, None for this very process. revive: restarts workers that are lost for good.
    """

    address: str
    client: Any = None
    revive: Callable[[], Any] = field(default=lambda: None, compare=False)

    @property
    def workers(self) -> int:
        return 1 if self.client is None else len(self.client.scheduler_info(n_workers=-1)["workers"])


INLINE = Cluster("inline")


@contextlib.contextmanager
def connect(address: "str | Cluster" = "inline", heartbeat: int | float = HEARTBEAT_SECONDS) -> Iterator[Cluster]:
    """The workers at this address, inside the block; a Cluster is passed through.

    Args:
        address: inline, local:N, dask:ADDRESS or slurm:FILE.toml.
        heartbeat: seconds of silence after which a worker counts as hung and is replaced, and its partitions go to
            others (on local clusters).

    Raises UsageError for an address of another form, and for local workers that are started by a script outside
    `if __name__ == "__main__":`; ResourceError when no scheduler answers there, or a local worker dies at its start.
    """
    if isinstance(address, Cluster):
        yield address
        return
    form, _, rest = address.partition(":")
    if form not in ("inline", "local", "dask", "slurm") or (form != "inline") != bool(rest):
        raise UsageError(f"{address!r} is not a cluster.", "Use inline, local:N, dask:ADDRESS or slurm:FILE.toml.")
    if form == "inline":
        yield INLINE
        return
    try:
        import distributed
    except ImportError as error:
        raise ResourceError(
            "Running on several workers needs dask.distributed, which is not installed.",
            "pip install 'whence[cluster]', or run with --cluster inline.",
        ) from error
    with contextlib.ExitStack() as stack:
        if form == "dask":
            try:
                client = stack.enter_context(distributed.Client(rest, timeout=30))
            except (OSError, TimeoutError, ValueError) as error:
                raise ResourceError(
                    f"No Dask scheduler answers at {rest}.", "Start one, or correct the address."
                ) from error
            revive = INLINE.revive
        else:
            if form == "local":
                check_main_guard()
            started, revive = local_cluster(rest, heartbeat) if form == "local" else slurm_cluster(rest)
            client = stack.enter_context(distributed.Client(stack.enter_context(started)))
        say(f"Workers: {address}. Dashboard: {client.dashboard_link}")
        yield Cluster(address, client, revive)


def local_cluster(count: str, heartbeat: int | float = HEARTBEAT_SECONDS) -> tuple[Any, Callable[[], Any]]:
    """A Dask cluster of this many processes, and what revives it; worker i sees GPU i modulo their number."""
    import dask
    import distributed

    if not count.isdecimal() or int(count) < 1:
        raise UsageError(f"{count!r} is not a valid worker count.", "Write local:2, for instance.")
    threads, gpus = _arithmetic()
    settings_of_threads = {name: os.environ.get(name, str(threads)) for name in THREAD_SETTINGS}
    workers = {}
    for number in range(int(count)):
        seen = {"CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus else {}
        options = {"nthreads": 1, "host": "127.0.0.1", "memory_limit": 0, "env": settings_of_threads | seen}
        workers[number] = {"cls": distributed.Nanny, "options": options}
    scheduler = {"host": "127.0.0.1", "dashboard": True, "dashboard_address": "127.0.0.1:0"}
    settings = {
        "distributed.scheduler.worker-ttl": f"{heartbeat}s",
        # how many workers a partition may take down before it counts as the culprit
        "distributed.scheduler.allowed-failures": 10,
        "distributed.deploy.lost-worker-timeout": "5s",
    }
    spec = {"cls": distributed.Scheduler, "options": scheduler}
    with dask.config.set(settings):
        try:
            cluster = distributed.SpecCluster(workers=workers, scheduler=spec)
        except RuntimeError as error:
            raise ResourceError(
                f"A worker process ended while it was started ({error}).",
                "Look for its own error above; it may lack memory. Try fewer workers, or --cluster inline.",
            ) from error
    # Dask looks for silent workers once per heartbeat, and so would find one only after up to two
    here: Any = cluster.scheduler
    here.periodic_callbacks["worker-ttl"].callback_time = 1000.0
    return cluster, lambda: cluster.scale(int(count))


def check_main_guard() -> None:
    """Raise UsageError if a script starts worker processes at its top level: each of them would run the script again.

    The line of the script that is running must be under an `if` that names `__name__`.
    """
    main = sys.modules.get("__main__")
    path, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if path is None or (spec is not None and spec.name.endswith("__main__")):
        return  # a notebook, a prompt, or `python -m package`: workers do not run it
    frame = sys._getframe()
    while not (frame.f_code.co_name == "<module>" and frame.f_globals is vars(main)):
        if frame.f_back is None:
            return
        frame = frame.f_back
    try:
        body = ast.parse(Path(path).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return
    running = next((s for s in body if s.lineno <= frame.f_lineno <= (s.end_lineno or s.lineno)), None)
    guards = ast.walk(running.test) if isinstance(running, ast.If) else ()
    if running is not None and not any(isinstance(n, ast.Name) and n.id == "__name__" for n in guards):
        raise UsageError(
            f"{path} starts worker processes at its top level (line {frame.f_lineno}), and each would run it again.",
            'Put it under `if __name__ == "__main__":`.',
        )


def _arithmetic() -> tuple[int, int]:
    """(threads, GPUs) that this process computes with: torch's, when another layer has loaded it."""
    torch = sys.modules.get("torch")
    return (os.cpu_count() or 1, 0) if torch is None else (torch.get_num_threads(), torch.cuda.device_count())


def slurm_settings(path: str) -> tuple[int, dict[str, Any]]:
    """(jobs, arguments of SLURMCluster) from a TOML file. Raises UsageError for an argument that SLURMCluster does not
    have, naming the nearest one that it has."""
    from dask_jobqueue import SLURMCluster
    from dask_jobqueue.core import Job
    from dask_jobqueue.slurm import SLURMJob

    try:
        settings = tomllib.loads(Path(path).read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}.", "See the README for an example.") from error
    known = {"jobs"}
    for kind in (SLURMCluster, SLURMJob, Job):
        known |= set(inspect.signature(kind.__init__).parameters)
    known -= {"self", "job_kwargs", "base_class_kwargs", "loop", "asynchronous", "job_cls", "n_workers"}
    for name in settings:
        if name not in known:
            cure = did_you_mean(name, sorted(known), "Settings:")
            raise UsageError(f"{path}: SLURM clusters have no setting {name!r}.", cure)
    jobs = settings.pop("jobs", 1)
    for name in ("cores", "memory"):
        if name not in settings:
            raise UsageError(f"{path} lacks {name!r}.", 'Say what one job takes: cores = 8, memory = "32GB".')
    return int(jobs), settings


def slurm_cluster(path: str) -> tuple[Any, Callable[[], Any]]:
    """A dask_jobqueue.SLURMCluster as the file describes, with its jobs submitted, and what submits lost ones again."""
    from dask_jobqueue import SLURMCluster

    jobs, settings = slurm_settings(path)
    cluster = SLURMCluster(**{"scheduler_options": {"dashboard_address": ":0"}} | settings)
    say(cluster.job_script())
    cluster.scale(jobs=jobs)
    return cluster, lambda: cluster.scale(jobs=jobs)
