"""What a job costs, before it starts: passes, operations, memory, disk, coverage, and time from a short measurement of
this model on this machine."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
from torch import nn

from whence.cache import Examples, ResourceError, Sites, TrainedModel, find_sites
from whence.cache.display import table
from whence.cache.jobs.progress import duration
from whence.cache.model.batches import BATCH_POSITIONS, CapturedBatch, padded_widths, plan_batches
from whence.cache.model.sites import Site
from whence.cache.model.trained import GRAPH, ModelPass
from whence.cache.store.store import human

from . import kernels
from .curvature import Damping
from .fit import partition_count
from .memory import factor_limit, fit_bytes, groups_of, kept_limit, store_for_batches
from .scoring import contraction
from .scoring.precision import Precision, itemsize
from .scoring.queries import RANK, Rank
from .scoring.rows import shard_rows
from .training import chosen_damping

SAMPLE_POSITIONS = 1024  # positions that are run for the measurement
SYMMETRIC = 5 / 8  # of a full product's operations, in four blocks, where it is wide


@dataclass(frozen=True)
class Stage:
    """passes: over the data with the model. operations: floating-point. memory: bytes at once beside the model and the
    batch. disk: bytes written. seconds: 0 if nothing was measured."""

    name: str
    passes: int
    operations: float
    memory: int
    disk: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The cost of a job.

    parameters, covered: of the model, and of them at the sites. examples, positions: of the data, padding included.
    queries: how many; rank: that they are stored at, None if exact; forms: name of a contraction -> number of sites.
    groups: of sites, that are fitted one after the other. kept: bytes of the batches that a fit reads twice; kept_in:
    where they are meanwhile. memory: the most that the job needs beside the model and those batches; limit: the most
    that it may use. disk: all that it writes; free: on that disk, None if unknown. damping: of the factors, and why.
    advice: what to change if it does not fit.
    """

    stages: tuple[Stage, ...]
    parameters: int
    covered: int
    examples: int
    positions: int
    queries: int
    rank: int | None
    forms: dict[str, int]
    groups: int
    kept: int
    kept_in: str
    memory: int
    limit: int
    disk: int
    free: int | None
    damping: str
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
            lines.append(f"{self.queries:,} queries, {'exact' if self.rank is None else f'at rank {self.rank}'}")
        lines.append(f"damping: {self.damping}")
        lines.append(f"batches of the first pass ({human(self.kept)}): {self.kept_in}")
        if self.groups > 1:
            lines.append(f"{self.groups} groups of sites, each with its own passes: all sites at once do not fit")
        if self.forms:
            lines.append("contraction: " + ", ".join(f"{form} at {n} sites" for form, n in self.forms.items()))
        head = ("stage", "passes", "operations", "memory", "disk", "time")
        rows = [
            (s.name, s.passes, f"{s.operations / 1e12:.3g} T", human(s.memory), human(s.disk), duration(s.seconds))
            for s in self.stages
        ]
        lines.append(table(head, rows).text)
        free = "" if self.free is None else f" of {human(self.free)} free"
        lines.append(
            f"in all {duration(self.seconds)}; memory {human(self.memory)} of {human(self.limit)} allowed; "
            f"disk {human(self.disk)}{free}"
        )
        lines.append("It fits." if self.fits else "It does not fit. " + " ".join(self.advice))
        return "\n".join(lines)


def make_plan(
    trained: TrainedModel,
    queries: int = 0,
    *,
    sites: Any = None,
    rank: Rank = "auto",
    precision: Precision = "float32",
    index_width: int = 0,
    damping: Damping | None = None,
    measure: bool = True,
) -> Plan:
    """The plan of an EK-FAC fit on the training data and, with `queries`, of scoring that many queries against them. A
    plan that does not fit is returned, with advice; `refuse` raises it.

    Args:
        queries: how many.
        sites: as for Method.fit.
        rank, precision: as for Factors.score.
        index_width: numbers per example of an index; 0 for none.
        damping: as for EKFAC; it costs nothing, and the plan says which one a fit has.
        measure: run a small batch to predict times.
    """
    examples, limit, store = trained.train, trained.memory_limit(), trained.store
    longest, positions = int(examples.lengths.max()), padded_positions(examples)
    every = model_operations(trained.model)
    found = trained.find(sites)
    planned = batch_bytes(found, longest, limit)
    dense = queries * itemsize(precision) * sum(site.size for site in found)
    rank = (None if dense <= limit // 2 else RANK) if rank == "auto" else rank
    rates = measured(trained, found) if measure else Rates()
    parts = groups_of(found, {site.name: fit_bytes([site]) for site in found}, factor_limit(trained))
    kept, kept_in = kept_batches(trained, parts, positions)
    stages = fit_stages(parts, len(examples), positions, longest, every)
    chosen, why = chosen_damping(trained, found, damping)
    forms: dict[str, int] = {}
    if queries:
        stage, forms = score_stage(found, queries, rank, itemsize(precision), examples, every * positions, limit // 2)
        stages.append(stage)
    if index_width:
        operations = every * positions + rotated_operations(found, len(examples), longest)
        memory = shard_rows(len(examples)) * index_width * 4 + sum(4 * w * w for site in found for w in site.shape)
        stages.append(Stage("index", 1, operations, memory, index_width * len(examples) * 2))
    plan = Plan(
        stages=tuple(rates.time(stage, positions) for stage in stages),
        parameters=found.total,
        covered=found.covered,
        examples=len(examples),
        positions=positions,
        queries=queries,
        rank=rank,
        forms=forms,
        groups=len(parts),
        kept=kept,
        kept_in=kept_in,
        memory=planned + max(stage.memory for stage in stages),
        limit=limit,
        disk=sum(stage.disk for stage in stages) if store is not None else 0,
        free=None if store is None else store.backend.free_bytes(),
        damping=f"{chosen} ({why})",
        advice=(),
    )
    return replace(plan, advice=tuple(_advice(plan, found, dense)))


def kept_batches(trained: TrainedModel, groups: Sequence[Sites], positions: int) -> tuple[int, str]:
    """Bytes of the batches that a fit reads twice, of its largest group and as if no sites shared an input; where they
    are between the passes."""
    needed, largest = max(
        ((4 * positions * sum(sum(site.shape) for site in group), group) for group in groups), key=lambda pair: pair[0]
    )
    storable = store_for_batches(trained) is not None and needed <= trained.spill
    if needed <= kept_limit(trained, largest):
        smaller = "; with a smaller memory limit the store keeps them" if storable else ""
        return needed, f"kept in memory for the second{smaller}"
    if storable:
        return needed, "kept in the store for the second"
    return needed, "computed again for the second where memory does not keep them"


def score_stage(
    sites: Sites, queries: int, rank: int | None, size: int, examples: Examples, model: float, limit: int
) -> tuple[Stage, dict[str, int]]:
    """The stage that scores all examples, and name of a contraction -> number of sites. size: bytes of a number. model:
    operations of a pass. limit: bytes for the queries' gradients; more take several passes."""
    longest = int(examples.lengths.max())
    works = contraction.choose(sites, queries, longest, max(1, BATCH_POSITIONS // longest), rank, limit, size)
    sizes = {name: work.nbytes for name, work in works.items()}
    parts = groups_of(sites, sizes, limit)
    operations = model * len(parts) + sum(work.operations for work in works.values()) * len(examples)
    values, held = queries * len(examples) * 4, max(sum(sizes[site.name] for site in part) for part in parts)
    return Stage("score", len(parts), operations, held + values, values), dict(Counter(w.form for w in works.values()))


def padded_positions(examples: Examples) -> int:
    """Positions that are run, padding included."""
    return int(padded_widths(examples.lengths).sum())


def model_operations(model: nn.Module) -> float:
    """Operations per position of one forward pass and the backward pass of the activations."""
    return 4.0 * sum(site.count for site in find_sites(model, kinds=("linear", "conv"), frozen=True, quiet=True))


def fit_stages(groups: list[Sites], examples: int, positions: int, longest: int, model: float) -> list[Stage]:
    """The stages of a fit, group after group."""
    sites, passes = [site for group in groups for site in group], len(groups)
    squares = sum(o * o + i * i for o, i in (s.shape for s in sites))
    cubes = sum(o**3 + i**3 for o, i in (s.shape for s in sites))
    grid = sum(site.size for site in sites)
    parts = partition_count(examples)
    held = max(fit_bytes(group) for group in groups)
    moments = model * positions * passes + sum(moment_operations(w) for site in sites for w in site.shape) * positions
    return [
        Stage("moments", passes, moments, held, parts * squares * 8),
        Stage("eigenvectors", 0, 9.0 * cubes, held, squares * 4),
        # a fit keeps the batches of its first pass where it can; the plan counts the pass as if it did not
        Stage("eigenvalues", passes, model * positions * passes + rotated_operations(sites, examples, longest), held,
              parts * grid * 8 + squares * 4 + grid * 8),
    ]  # fmt: skip


def moment_operations(width: int) -> float:
    """Operations per position of a moment of this width."""
    return 2.0 * width * width * (SYMMETRIC if width >= kernels.SYMMETRIC_WIDTH else 1.0)


def rotated_operations(sites: Sequence[Site], examples: int, s: int) -> float:
    """Operations of rotating and forming every example's gradient, each site in its cheaper order."""

    def one(site: Site) -> float:
        o, i = site.shape
        if kernels.rotation_order(s, o, i) == "positions":
            return 2.0 * s * (i * i + o * o) + 2.0 * s * o * i
        return 2.0 * s * o * i + 2.0 * o * i * (o + i)

    return examples * sum(one(site) for site in sites)


def batch_bytes(sites: Sites, longest: int, limit: int) -> int:
    """What one batch of the model's pass takes: a quarter of the limit, or the largest useful batch if that is less."""
    each = GRAPH * 4 * sum(o + i for o, i in (s.shape for s in sites))
    return int(min(limit // 4, each * max(BATCH_POSITIONS, longest)))


@dataclass(frozen=True)
class Rates:
    """Speeds of this machine; zeros predict no times.

    position: seconds per position of a model pass, with the conversion to JAX. operations: of the model per position.
    product: operations per second of the kernels.
    """

    position: float = 0.0
    operations: float = 0.0
    product: float = 0.0

    def time(self, stage: Stage, positions: int) -> Stage:
        """The stage with its predicted seconds: the model's passes, and the kernels' share of the operations."""
        if not self.product:
            return stage
        passes = positions * stage.passes
        rest = max(stage.operations - self.operations * passes, 0.0)
        return replace(stage, seconds=self.position * passes + rest / self.product)


def measured(trained: TrainedModel, sites: Sites) -> Rates:
    """Speeds from one small batch through the model, and from the heaviest kernel on the largest site; each runs once
    before it is timed, to compile."""
    lengths = trained.train.lengths
    longest = int(lengths.max())
    rows = np.argsort(-lengths, kind="stable")[: max(1, SAMPLE_POSITIONS // longest)]
    run = ModelPass(trained, trained.train.select(rows), sites, positions=SAMPLE_POSITIONS)
    planned = plan_batches(run.examples.lengths, np.arange(len(rows)), max(SAMPLE_POSITIONS, longest))[0]
    batch, seconds = _best(lambda: run.captured(planned))
    site = max(run.sites, key=lambda s: s.size)
    o, i = site.shape
    a, g = batch.inputs[site.name], batch.grads[site.name]
    qa, qs = (jax.numpy.eye(w, dtype=a.dtype) for w in (i, o))
    weight = jax.numpy.ones((o, i), a.dtype)
    order = kernels.rotation_order(a.shape[1], o, i)
    _, kernel = _best(lambda: jax.block_until_ready(kernels.weighted_squares(a, g, qa, qs, weight, order)))
    operations = rotated_operations(run.sites.only([site.name]), a.shape[0], a.shape[1])
    return Rates(seconds / (planned.full * planned.width), model_operations(trained.model), operations / kernel)


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


def _advice(plan: Plan, sites: Sites, dense: int) -> list[str]:
    out = []
    if plan.memory > plan.limit:
        score = max((s.memory for s in plan.stages if s.name == "score"), default=0)
        fit = max(s.memory for s in plan.stages if s.name == "moments")
        if score > fit and plan.rank is None and plan.queries:
            out.append(f"Use --rank {RANK} instead of {human(dense)} of exact queries.")
        if score > fit and plan.queries > 1:
            share = max(1, int(plan.queries * (plan.limit - plan.memory + score) / score))
            out.append(f"Score at most {share} queries at a time, or use --only-top instead of every score.")
        if fit >= score:
            largest = max(sites, key=lambda s: fit_bytes([s]))
            out.append(f"Leave out the largest sites (--sites); {largest.name} takes {human(fit)} alone.")
        out.append(f"Or raise --memory to {human(plan.memory)}.")
    if plan.free is not None and plan.disk > plan.free:
        out.append(f"Put the store (--store) on a disk with {human(plan.disk)} free.")
    return out


def refuse(plan: Plan) -> None:
    """Raise ResourceError, with what to change, if the plan does not fit."""
    if not plan.fits:
        raise ResourceError(
            f"The job needs {human(plan.memory)} of memory (limit {human(plan.limit)}) and {human(plan.disk)} of disk.",
            " ".join(plan.advice),
        )
