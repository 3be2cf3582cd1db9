"""The protocol of an attribution method, and what every method of it shares."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from whence.cache import Cluster, Examples, Sites, Store, Task, find_sites
from whence.cache.model.batches import Run
from whence.cache.model.fingerprint import model_fingerprint

from .factors import Factors


@runtime_checkable
class Method(Protocol):
    """Fit once, score often: `fit` looks at the model and its data and returns state that is never changed; scores
    are products of that state with gradients. A new method is one file in `methods/` and one line in its index."""

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: "FitOptions" = ...,
    ) -> Factors: ...


@dataclass(frozen=True)
class FitOptions:
    """How a fit is run; none of it changes the result beyond rounding, so none of it is in a key.

    memory: bytes that may be held (default: half of what is free). positions: positions in a batch (default: from
    `memory`). spill: bytes of inputs and gradients that the first pass of a fit may leave in the store for the
    second, where memory does not hold them. quiet: no progress bars. device: where the model and its batches are.
    cluster: where partitions are computed: "inline", "local:2", "dask:ADDRESS", "slurm:FILE" (see cache.cluster);
    needs a store. log: a file that gets one JSON line a partition.
    """

    memory: int | None = None
    positions: int | None = None
    spill: int = 4 << 30
    quiet: bool = False
    device: Any = None
    cluster: str | Cluster = "inline"
    log: str | None = None

    def __getstate__(self) -> dict[str, Any]:  # a worker has no workers of its own
        return {**self.__dict__, "cluster": "inline"}


def make_run(
    model: nn.Module,
    task: Task,
    examples: Examples,
    sites: Sites | None,
    objective: str,
    seed: int,
    options: FitOptions,
) -> Run:
    """A prepared run: sites found when not given, batch size measured."""
    chosen = find_sites(model, quiet=options.quiet) if sites is None else sites
    device = options.device or next((p.device for p in model.parameters()), torch.device("cpu"))
    run = Run(model, task, examples, chosen, objective, seed, options.positions, options.memory, device)
    return run.prepared()


def inputs_of(run: Run, **more: Any) -> dict[str, Any]:
    """What a result of this run is computed from: the part of its key that every kind shares."""
    return {
        "model": model_fingerprint(run.model).hex,
        "data": run.examples.fingerprint,
        "task": run.task.settings,
        "sites": run.sites.settings,
        "objective": run.objective,
        "seed": run.seed,
        **more,
    }
