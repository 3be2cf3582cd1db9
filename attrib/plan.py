"""What a job will cost, before it starts: passes, operations, memory, disk, coverage, and time from a short
measurement of this model on this machine."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from torch import nn

from whence.cache import Examples, ResourceError, Site, Sites, Store, Task, find_sites
from whence.cache.model.batches import GRAPH, CapturedBatch, ModelPass, memory_limit, plan_batches, widths

from . import contraction, kernels
from .fit import partition_count
from .method import FitOptions, make_run
from .precision import Precision, itemsize
from .queries import RANK, Rank
from .room import fit_bytes
from .scores import shard_rows

SAMPLE_POSITIONS = 1024  # run for the measurement
SYMMETRIC = 5 / 8  # of a full product's operations, in four blocks, where it is wide


@dataclass(frozen=True)
class Stage:
    """passes: over the data with the model. operations: floating-point. memory: bytes held at once besides model and
    planned. disk: bytes written. seconds: 0 where nothing was measured."""

    name: str
    passes: int
    operations: float
    memory: int
    disk: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """stages: of the job. memory: the most it holds; limit: what it may. disk: all it writes; free: what there is (None
    where unknown). rank: queries are held at, None for whole. advice: what to change where it does not fit."""

    stages: tuple[Stage, ...]
    parameters: int
    covered: int
    examples: int
    positions: int
    queries: int
    rank: int | None
    forms: dict[str, int]
    memory: int
    limit: int
    disk: int
    free: int | None
    advice: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.memory <= self.limit and (self.free is None or self.disk <= self.free)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "fits": self.fits, "seconds": self.seconds, "coverage": self.covered / self.parameters}

    def __str__(self) -> str:
        share = self.covered / max(self.parameters, 1)
        lines = [
            f"{self.covered:,} of {self.parameters:,} parameters covered ({share:.1%})",
            f"{self.examples:,} examples, {self.positions:,} positions as padded",
        ]
        if self.queries:
            lines.append(f"{self.queries:,} queries, {'whole' if self.rank is None else f'at rank {self.rank}'}")
        if self.forms:
            lines.append("contraction: " + ", ".join(f"{form} at {n} sites" for form, n in self.forms.items()))
        head = ("stage", "passes", "operations", "memory", "disk", "time")
        rows = [
            (s.name, str(s.passes), f"{s.operations / 1e12:.3g} T", size(s.memory), size(s.disk), duration(s.seconds))
            for s in self.stages
        ]
        wide = [max(len(row[c]) for row in [head, *rows]) for c in range(len(head))]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, wide)).rstrip() for row in [head, *rows]]
        free = "" if self.free is None else f" of {size(self.free)} free"
        lines.append(
            f"in all {duration(self.seconds)}; memory {size(self.memory)} of {size(self.limit)} allowed; "
            f"disk {size(self.disk)}{free}"
        )
        lines.append("It fits." if self.fits else "It does not fit. " + " ".join(self.advice))
        return "\n".join(lines)


def make_plan(
    model: nn.Module,
    task: Task,
    examples: Examples,
    *,
    queries: int = 0,
    sites: Sites | None = None,
    rank: Rank = "auto",
    precision: Precision = "float32",
    index_width: int = 0,
    store: Store | None = None,
    measure: bool = True,
    options: FitOptions = FitOptions(),
) -> Plan:
    """The plan of a fit on these examples and, with `queries`, of scoring as many queries against them. Nothing is
    refused here: a plan that does not fit says what to change."""
    chosen = find_sites(model, quiet=True) if sites is None else sites
    limit = memory_limit(options.memory)
    positions = padded_positions(examples)
    longest = int(examples.lengths.max())
    probe = make_run(model, task, examples.select([int(np.argmax(examples.lengths))]), chosen, "loss", 0,
                     replace(options, positions=longest, quiet=True))  # fmt: skip
    chosen = probe.sites
    dense = queries * itemsize(precision) * sum(o * i for o, i in (s.shape for s in chosen))
    held = (None if dense <= limit // 2 else RANK) if rank == "auto" else rank
    rates = measured(probe, task, examples, options) if measure else Rates(0.0, 0.0)
    stages = list(fit_stages(chosen, len(examples), positions, longest, everything(model)))
    planned = batch_bytes(probe, longest, limit)
    forms: dict[str, int] = {}
    if queries:
        works = contraction.choose(
            chosen, queries, longest, max(1, 8192 // longest), held, limit // 2, itemsize(precision)
        )
        for work in works.values():
            forms[work.form] = forms.get(work.form, 0) + 1
        per_example = sum(work.operations for work in works.values())
        values = queries * len(examples) * 4
        stages.append(
            Stage("score", 1, everything(model) * positions + per_example * len(examples),
                  contraction.total_bytes(works) + values, values)
        )  # fmt: skip
    if index_width:
        operations = everything(model) * positions + rotated_operations(chosen, len(examples), longest)
        held_rows = shard_rows(len(examples)) * index_width * 4 + sum(4 * w * w for site in chosen for w in site.shape)
        stages.append(Stage("index", 1, operations, held_rows, index_width * len(examples) * 2))
    timed = tuple(rates.time(stage, positions) for stage in stages)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    memory = weights + planned + max(stage.memory for stage in stages)
    disk = sum(stage.disk for stage in stages) if store is not None else 0
    free = _free(store)
    plan = Plan(
        timed, chosen.total, sum(s.count for s in chosen), len(examples), positions, queries, held, forms,
        memory, limit, disk, free, (),
    )  # fmt: skip
    return replace(plan, advice=tuple(_advice(plan, chosen, dense)))


def padded_positions(examples: Examples) -> int:
    """Positions that are run, padding included."""
    allowed = np.array(widths(int(examples.lengths.max())))
    return int(allowed[np.searchsorted(allowed, examples.lengths)].sum())


def everything(model: nn.Module) -> float:
    """Operations a position of one forward and the backward of activations."""
    return 4.0 * sum(site.count for site in find_sites(model, kinds=("linear", "conv"), quiet=True))


def fit_stages(sites: Sites, examples: int, positions: int, longest: int, model: float) -> list[Stage]:
    squares = sum(o * o + i * i for o, i in (s.shape for s in sites))
    cubes = sum(o**3 + i**3 for o, i in (s.shape for s in sites))
    grid = sum(o * i for o, i in (s.shape for s in sites))
    parts = partition_count(examples)
    moments = model * positions + sum(moment_operations(w) for site in sites for w in site.shape) * positions
    return [
        Stage("moments", 1, moments, fit_bytes(sites), parts * squares * 8),
        Stage("eigenvectors", 0, 9.0 * cubes, fit_bytes(sites), squares * 4),
        # the batches of the first pass are kept where they fit; the plan counts the pass as if they were not
        Stage("eigenvalues", 1, model * positions + rotated_operations(sites, examples, longest), fit_bytes(sites),
              parts * grid * 8 + squares * 4 + grid * 8),
    ]  # fmt: skip


def moment_operations(width: int) -> float:
    """Operations a position of a moment of this width."""
    return 2.0 * width * width * (SYMMETRIC if width >= kernels.SYMMETRIC_WIDTH else 1.0)


def rotated_operations(sites: Sites, examples: int, s: int) -> float:
    """Operations of rotating and forming every example's gradient, each site in its cheaper order."""

    def one(site: Site) -> float:
        o, i = site.shape
        if kernels.rotation_order(s, o, i) == "positions":
            return 2.0 * s * (i * i + o * o) + 2.0 * s * o * i
        return 2.0 * s * o * i + 2.0 * o * i * (o + i)

    return examples * sum(one(site) for site in sites)


def batch_bytes(probe: ModelPass, longest: int, limit: int) -> int:
    """What one planned of the model's pass holds: a quarter of the limit, or what the largest useful planned takes."""
    each = GRAPH * 4 * sum(o + i for o, i in (s.shape for s in probe.sites))
    return int(min(limit // 4, each * max(8192, longest)))


@dataclass(frozen=True)
class Rates:
    """position: seconds a position of a model pass, bridge included. product: operations a second of the kernels."""

    position: float
    product: float

    def time(self, stage: Stage, positions: int) -> Stage:
        if not self.product:
            return stage
        model = self.position * positions * stage.passes
        # the measured pass holds the model's own operations; what is left are the kernels'
        rest = max(stage.operations - stage.passes * self._model_operations(stage, positions), 0.0)
        return replace(stage, seconds=model + rest / self.product)

    def _model_operations(self, stage: Stage, positions: int) -> float:
        return self.operations_a_position * positions

    operations_a_position: float = 0.0


def measured(probe: ModelPass, task: Task, examples: Examples, options: FitOptions) -> Rates:
    """One small planned through the model, and the heaviest kernel on the largest site; both run once to compile."""
    longest = int(examples.lengths.max())
    rows = np.argsort(-examples.lengths, kind="stable")[: max(1, SAMPLE_POSITIONS // longest)]
    run = replace(probe, examples=examples.select(rows), positions=SAMPLE_POSITIONS)
    planned = plan_batches(run.examples.lengths, np.arange(len(rows)), max(SAMPLE_POSITIONS, longest))[0]
    batch, seconds = _best(lambda: run.captured(planned))
    site = max(run.sites, key=lambda s: s.shape[0] * s.shape[1])
    o, i = site.shape
    a, g = batch.inputs[site.name], batch.grads[site.name]
    qa, qs = (jax.numpy.eye(w, dtype=a.dtype) for w in (i, o))
    weight = jax.numpy.ones((o, i), a.dtype)
    order = kernels.rotation_order(a.shape[1], o, i)
    _, kernel = _best(lambda: jax.block_until_ready(kernels.weighted_squares(a, g, qa, qs, weight, order)))
    operations = rotated_operations(run.sites.only([site.name]), a.shape[0], a.shape[1])
    rates = Rates(seconds / (planned.full * planned.width), operations / kernel)
    return replace(rates, operations_a_position=everything(probe.model))


def _best(work: Callable[[], Any]) -> tuple[Any, float]:
    work()
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        out = work()
        if isinstance(out, CapturedBatch):
            jax.block_until_ready(list(out.grads.values()))
        seconds.append(time.perf_counter() - began)
    return out, min(seconds)


def _free(store: Store | None) -> int | None:
    if store is None:
        return None
    place = Path(store.root)
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free if place.is_absolute() else None


def _advice(plan: Plan, sites: Sites, dense: int) -> list[str]:
    out = []
    if plan.memory > plan.limit:
        score = max((s.memory for s in plan.stages if s.name == "score"), default=0)
        if score > fit_bytes(sites) and plan.rank is None and plan.queries:
            out.append(f"Hold queries at --rank {RANK} instead of {size(dense)} of them whole.")
        if score > fit_bytes(sites) and plan.queries > 1:
            share = max(1, int(plan.queries * (plan.limit - plan.memory + score) / score))
            out.append(f"Score at most {share} queries at a time, or ask for --only-top instead of every score.")
        if fit_bytes(sites) >= score:
            largest = max(sites, key=lambda s: fit_bytes([s]))
            out.append(f"Choose fewer sites (--sites); {largest.name} takes {size(fit_bytes([largest]))} alone.")
        out.append(f"Or raise --memory to {size(plan.memory)}.")
    if plan.free is not None and plan.disk > plan.free:
        out.append(f"Point the store (--root) at a disk with {size(plan.disk)} free.")
    return out


def size(count: float | int) -> str:
    from whence.cache.store.store import human

    return human(count)


def duration(seconds: float | int) -> str:
    """Seconds for people; a dash where nothing was measured."""
    if seconds <= 0:
        return "-"
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def refuse(plan: Plan) -> None:
    """Raise ResourceError, saying what to change, for a plan that does not fit."""
    if not plan.fits:
        raise ResourceError(
            f"The job needs {size(plan.memory)} of memory ({size(plan.limit)} allowed) and {size(plan.disk)} of disk.",
            " ".join(plan.advice),
        )
