"""A trained model, bound to the data, loss, device and store that every question about it needs.

`TrainedModel` is built once and passed to everything. `ModelPass` is one pass of it over data: the batches that its
sites see under one objective.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ..errors import ModelError, ResourceError, enough_memory
from ..jobs.cluster import Cluster
from ..jobs.partitions import Work, run_job
from ..jobs.progress import progress, say
from ..store.entry import Entry
from ..store.layout import ArraySpec
from ..store.store import Store, human
from .batches import BATCH_POSITIONS, BatchSource, CapturedBatch, PlannedBatch, plan_batches, to_captured_batch
from .bridge import idle_bytes
from .capture import capture
from .checkpoints import models_at
from .checks import checked, probe_rows
from .data_checks import check_data
from .examples import Examples
from .finding import Pattern, find_sites
from .fingerprint import model_fingerprint
from .placing import placed
from .runs import TrainingRun, open_run
from .sites import Sites
from .stateless import copied, devices_of, own_type, unwrapped
from .task import Task
from .task_key import task_settings

Objective = Literal["loss", "sampled", "measurement"]
GRAPH = 4.0  # autograd keeps about this many times what the sites yield, the sites' own included


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model, the data and the loss it was trained with, where it runs and where its artefacts are kept.

    Args:
        model: any torch module. It is borrowed: hooks, training mode and requires_grad come back as they were.
        train: the examples it was trained on.
        task: the training loss and the measurement of a query (LanguageModelling, Classification, ...).
        sites: the layers that are attributed: a glob over their names ("*.mlp.*"), several, or a `Sites`.
        store: where artefacts are kept; None keeps nothing.
        device: where the model and its batches are; by default where the model is. Another one gets a copy. A model on
            several devices (accelerate's device_map) stays on them: batches begin on the first, and what the sites see
            meets there.
        dtype: the type of the parameters; by default the model's own. Another one gets a copy.
        memory: bytes that a job may hold on that device beside the model; by default half of what is free there.
        positions: positions (rows times padded width) in a batch; by default measured against `memory`.
        spill: bytes of captured batches that a fit may keep in the store between its two passes.
        quiet: show no progress bars and no notes.
        cluster: where partitions are computed: "inline", "local:2", "dask:ADDRESS", "slurm:FILE"; needs a store.
        log: a file that gets one JSON line per partition.
        training: how it was trained, as recorded; `from_run` sets it. Methods that follow training use it.
        check: check the model on a few examples before its first use (see `TrainedModel.check`); False skips it, and
            results are labelled `checked = "no"`.

    Of these only model, train, task and sites change a result, and only they enter keys; what a method takes from
    `training` enters its own.

    Raises ModelError for a dtype or device that the model cannot be moved to, and for offloaded parameters.

    >>> trained = TrainedModel(model, train, task, quiet=True)
    >>> trained.find().names
    ('0', '2')
    """

    model: nn.Module
    train: Examples
    task: Task
    _: KW_ONLY
    sites: Sites | Pattern | Sequence[Pattern] = "*"
    store: Store | None = None
    device: Any = None
    dtype: torch.dtype | None = None
    memory: int | None = None
    positions: int | None = None
    spill: int = 4 << 30
    quiet: bool = False
    cluster: str | Cluster = "inline"
    log: str | None = None
    training: TrainingRun | None = None
    check: InitVar[Any] = True  # the method of this name is its default, so False alone says no
    checks: bool = field(init=False, repr=False, default=True)
    verdicts: dict[str, tuple[str, nn.Module]] = field(default_factory=dict, repr=False)

    def __post_init__(self, check: Any) -> None:
        object.__setattr__(self, "checks", check is not False)
        object.__setattr__(self, "model", unwrapped(self.model))
        own_device, own_dtype = own_type(self.model)
        device = torch.device(own_device if self.device is None else self.device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
        dtype = self.dtype or own_dtype
        places = devices_of(self.model)
        if any(place.type == "meta" for place in places):
            raise ModelError(
                "Parameters of the model are on no device (meta): it does not fit, and they were offloaded.",
                "Load it on more devices, or in bfloat16, or with device='cpu'.",
            )
        if len(places) > 1 and (own_device != device or dtype != own_dtype):
            raise ModelError(
                f"The model is on several devices: {', '.join(map(str, places))}. It is not moved.",
                "Leave device and dtype out, and load it in that type and with another device_map.",
            )
        if own_device != device or dtype != own_dtype:
            try:
                with enough_memory(f"the model in {dtype} on {device}"):
                    moved = copied(self.model).to(device)
                    object.__setattr__(self, "model", moved if self.dtype is None else moved.to(dtype))
            except (RuntimeError, AssertionError) as error:
                raise ModelError(
                    f"The model cannot be moved to {device} in {dtype}: {str(error).splitlines()[0]}",
                    "Leave the device out, or install a torch that sees it (docs/gpu.md); the type is a floating one.",
                ) from error
        object.__setattr__(self, "device", device)
        object.__setattr__(self, "dtype", dtype)

    def __getstate__(self) -> dict[str, Any]:  # a worker has no workers of its own
        return {**self.__dict__, "cluster": "inline"}

    @classmethod
    def from_run(
        cls, folder: str | Path, model: nn.Module, train: Examples, task: Task, **options: Any
    ) -> "TrainedModel":
        """The model at the end of a recorded run, with what is known of its training (`cache.runs` records one).

        Args:
            folder: where the run was recorded.
            model: a model of the architecture, which is not changed. Its weights do not matter, but for those that were
                frozen in the run: adapters (PEFT) are given on their base.
            train: the examples that it was trained on.
            task: the training loss.
            options: the other arguments of a TrainedModel.

        Raises UsageError for a folder without a run; DataError for a run that is damaged or unfinished, or that saw
        other examples; ModelError for another architecture, or other frozen weights.
        """
        return cls(unwrapped(model), train, task, **options).after(folder)

    def after(self, folder: str | Path) -> "TrainedModel":
        """The same at the end of the run recorded in this folder. Errors are those of `from_run`."""
        run = open_run(folder).of_data(self.model, self.train.ids)
        return self.at(run.checkpoints[-1].read()).replace(training=run)

    def replace(self, **changes: Any) -> "TrainedModel":
        """The same with some arguments changed."""
        return replace(self, **{"check": self.checks} | changes)

    def check(  # type: ignore[no-redef, misc]  # noqa: F811
        self, queries: Examples | None = None, sites: Sites | Pattern | Sequence[Pattern] | None = None
    ) -> str:
        """Check on up to four examples of different lengths that the loss of each alone equals its loss in a padded
        batch, and that the gradients captured per example are autograd's at every covered parameter, for the data's
        labels and for sampled ones. It is also done before the first use, once per model, data, task and sites.

        Args:
            queries: checked too, with the measurement.
            sites: as for `find`.

        Returns the verdicts, a line each. Raises ModelError that names the site, the likely cause and the cure.

        >>> trained.check().count("batching changes nothing")
        2
        """
        found = self.find(sites)
        runs = [ModelPass(self, self.train, found, objective) for objective in ("loss", "sampled")]
        runs += [] if queries is None else [ModelPass(self, queries, found, "measurement")]
        return "\n".join(checked(run) for run in runs)

    def at(self, weights: nn.Module | Mapping[str, Tensor]) -> "TrainedModel":
        """The same data, task and sites at another checkpoint: a module, or a state_dict of this architecture."""
        (model,) = models_at(self.model, [weights])
        return self.replace(model=model)

    def fingerprint(self) -> str:
        """The hash of the weights and the architecture as they are now, which stands for the model in keys."""
        return model_fingerprint(self.model).hex

    def memory_limit(self) -> int:
        """Bytes that a job may hold on the device beside the model: as given, else half of what is free there now, or
        on the fullest of several devices."""
        return min(memory_limit(self.memory, place) for place in {self.device, *devices_of(self.model)})

    def batch(self, examples: Examples, rows: Any, pad_to: int | None = None) -> dict[str, Tensor]:
        """These rows of some examples as tensors on the device, floating-point columns in the model's type."""
        return examples.batch(rows, pad_to, self.device, self.dtype)

    def planned(
        self, examples: Examples, desc: str, positions: int = BATCH_POSITIONS
    ) -> Iterator[tuple[PlannedBatch, dict[str, Tensor]]]:
        """The batches that all of these examples are run in, each with its tensors, under a progress bar."""
        plan = plan_batches(examples.lengths, np.arange(len(examples)), self.positions or positions)
        for planned in progress(plan, desc=desc, unit="batch", quiet=self.quiet):
            yield planned, self.batch(examples, planned.rows, pad_to=planned.width)

    def job(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        arrays: Mapping[str, ArraySpec],
        work: Work,
        *,
        shard_rows: int,
        store: Store | None = None,
        about: Mapping[str, Any] | None = None,
        desc: str = "",
    ) -> Entry:
        """`cache.jobs.partitions.run_job` with this model's store (or another), cluster, log and progress bar."""
        where = store or self.store
        assert where is not None
        return run_job(
            where, kind, inputs, arrays, work, shard_rows=shard_rows, about=about, cluster=self.cluster, log=self.log,
            desc=desc, quiet=self.quiet,
        )  # fmt: skip

    def find(self, sites: Sites | Pattern | Sequence[Pattern] | None = None) -> Sites:
        """The sites that are attributed: those given here, else this trained model's own, without those that its
        forward pass never calls. States the share of the parameters that they cover, unless quiet.

        Raises ModelError if no site matches, DataError for an empty data set.
        """
        wanted = self.sites if sites is None else sites
        found = wanted if isinstance(wanted, Sites) else find_sites(self.model, wanted, quiet=self.quiet)
        self.check_data(self.train)
        rows = probe_rows(self.train.lengths, self.positions)  # several: a routed layer sees some examples only
        sound = placed(self.model, found, self.batch(self.train, rows), self.task.loss)
        unused = [name for name in found.names if name not in sound.names]
        if unused and not self.quiet:
            said = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if len(unused) > 5 else "")
            say(f"{len(unused)} sites are never called by the forward pass and are left out: {said}")
        if sound.alone and not self.quiet:
            say(
                f"The examples of a batch run one at a time: the rows of {len(sound.alone)} sites are on no axis of it."
            )
        return sound

    @cached_property
    def _sound(self) -> set[str]:
        """Fingerprints of examples that the task and the model can be run on: they are checked once."""
        return set()

    def check_data(self, examples: Examples) -> None:
        """Raise DataError or ModelError, with ids, for examples that the task and the model cannot be run on."""
        if examples.fingerprint not in self._sound:
            check_data(examples, self.task, self.model)
            self._sound.add(examples.fingerprint)

    def run(
        self,
        objective: Objective,
        sites: Sites,
        examples: Examples | None = None,
        *,
        seed: int = 0,
        positions: int | None = None,
    ) -> "ModelPass":
        """A pass over examples (by default the training data) with the batch size measured on the longest.

        Raises DataError for an empty data set, ResourceError if one example does not fit the memory limit, ModelError
        if a check of the model fails (see `check`).
        """
        examples = self.train if examples is None else examples
        self.check_data(examples)
        run = ModelPass(self, examples, sites, objective, seed, positions or self.positions)
        run = replace(run, positions=run.batch_positions())
        if self.checks:
            checked(run)
        return run


@dataclass(frozen=True)
class ModelPass(BatchSource):
    """Everything that fixes what a model yields on data: the batches of equal passes are always the same.

    objective: "sampled" (labels sampled from the model), "loss" (the data's own labels) or "measurement" (a query's).
    seed: of the sampled labels. positions: positions (rows times width) in a batch.
    """

    trained: TrainedModel
    examples: Examples
    sites: Sites
    objective: Objective = "loss"
    seed: int = 0
    positions: int | None = None

    def inputs(self, **more: Any) -> dict[str, Any]:
        """What a result of this pass is computed from: the part of its key that every kind shares."""
        return {
            "model": self.trained.fingerprint(),
            "data": self.examples.fingerprint,
            "task": task_settings(self.trained.task),
            "sites": self.sites.settings,
            "objective": self.objective,
            "seed": self.seed,
            **more,
        }

    def of(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The objective of each example of a batch, [b]."""
        task = self.trained.task
        if self.objective == "sampled":
            return task.sampled_loss(model, batch, self.seed)
        return (task.loss if self.objective == "loss" else task.measurement)(model, batch)

    def batch_positions(self) -> int:
        """Positions that a batch may have: measured on the longest example against the memory limit."""
        if self.positions is not None:
            return self.positions
        longest = int(np.argmax(self.examples.lengths))
        batch = self.trained.batch(self.examples, [longest])
        seen = capture(self.trained.model, self.sites, batch, self.of)
        arrays = {id(t): t for part in (seen.inputs, seen.grads) for t in part.values()}
        each = GRAPH * sum(t.numel() * 4 for t in arrays.values())
        limit = self.trained.memory_limit() / 4  # a quarter for one batch, the rest for what is kept
        width = int(self.examples.lengths[longest])
        if each > limit:
            raise ResourceError(
                f"One example of {width} positions needs about {human(each)} at these sites, over the limit of "
                f"{human(limit)} for one batch.",
                f"Raise the memory limit to {human(4 * each)}, choose fewer sites, or cut the sequences shorter.",
            )
        return int(min(max(limit // max(each, 1), 1) * width, max(BATCH_POSITIONS, width)))

    def walk(self, rows: Any, desc: str) -> Iterator[PlannedBatch]:
        rows = np.arange(len(self.examples)) if rows is None else np.asarray(rows, np.int64)
        yield from progress(self.plan(rows), desc=desc or self.objective, unit="batch", quiet=self.trained.quiet)

    def plan(self, rows: Int64[np.ndarray, " k"]) -> list[PlannedBatch]:
        """The batches that these rows are run in."""
        return plan_batches(self.examples.lengths, rows, self.batch_positions())

    def captured(self, planned: PlannedBatch) -> CapturedBatch:
        """One planned batch through the model, forward and backward."""
        tensors = self.trained.batch(self.examples, planned.rows, pad_to=planned.width)
        seen = capture(self.trained.model, self.sites, tensors, self.of)
        return to_captured_batch(planned, seen, self.trained.task.positions(tensors), self.sites)


class PassBatches(BatchSource):
    """The batches of a pass. A subclass says where a batch comes from."""

    def __init__(self, run: ModelPass):
        self.run, self.examples, self.sites, self.trained = run, run.examples, run.sites, run.trained

    def walk(self, rows: Any, desc: str) -> Iterator[PlannedBatch]:
        return self.run.walk(rows, desc)


class KeptBatches(PassBatches):
    """Batches of a pass, kept after they are first captured as far as `limit` bytes reach.

    The passes of a fit see the same inputs and gradients, so what is not computed twice decides its time.
    """

    def __init__(self, run: ModelPass, limit: int):
        super().__init__(run)
        self.limit = limit
        self._kept: dict[bytes, CapturedBatch] = {}
        self._bytes = 0

    def __reduce__(self) -> Any:  # another process captures its own
        return KeptBatches, (self.run, self.limit)

    def captured(self, planned: PlannedBatch) -> CapturedBatch:
        key = planned.rows.tobytes()
        if key in self._kept:
            return self._kept[key]
        batch = self.run.captured(planned)
        if self._bytes + batch.nbytes <= self.limit:
            self._kept[key] = batch
            self._bytes += batch.nbytes
        return batch


def memory_limit(limit: int | None, device: Any = "cpu") -> int:
    """Bytes that a job may hold on a device: as given, else half of what is free there now. What torch and JAX have
    taken from a GPU and no longer use is free."""
    if limit is not None:
        return int(limit)
    if torch.device(device).type != "cuda":
        return int(psutil.virtual_memory().available // 2)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int((free + idle_bytes(torch.device(device))) // 2)
