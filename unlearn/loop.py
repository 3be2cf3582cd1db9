"""The one loop that every unlearning method runs in.

A method turns a deletion into a plan: phases of steps, each with the rows it sees, an objective for one model, an
optimiser, and tables of targets by row. The loop runs all models of an ensemble side by side, counts example passes
(forward and backward of one example is 1, forward alone a third), and keeps each model at its last good state when
its loss or gradient leaves the numbers.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from whence.cache import Examples, progress, say
from whence.cache.display import facts
from whence.cache.retrain.recipe import AdamW, Optimiser, Schedule
from whence.cache.retrain.replica_outputs import margins_of, outputs_of_lanes
from whence.cache.retrain.replicas import Lanes, PerLane, mode, why_not_stacked

from .deletion import Deletion, Ledger

FORWARD = 1 / 3  # of a pass
ROWS_AT_ONCE = 256
ADAM = AdamW(1e-3)
CONSTANT = Schedule()


@dataclass(frozen=True, eq=False)
class Phase:
    """Some steps with one objective.

    draw: random generator of a lane -> rows [b] of each step, in order; as many as there are steps.
    objective: (model, batch, extra) -> scalar; extra has "forget" [b] (true for forgotten rows), the step's row
        of every table, and "progress" (0 to 1).
    tables: name -> [e n ...], targets by lane and pool row.
    gradient_mask: [e P], multiplied into every gradient.
    """

    objective: PerLane
    draw: Callable[[np.random.Generator], Iterator[np.ndarray]]
    optimiser: Optimiser = ADAM
    schedule: Schedule = CONSTANT
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    gradient_mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """What a method wants done. spent: passes used in preparing it (targets, saliency), per model.

    shift: for methods that change outputs and not weights, points -> change of logits [e p c] or [p c].
    """

    phases: tuple[Phase, ...]
    models: Lanes
    spent: float = 0.0
    shift: Callable[[Examples], np.ndarray] | None = None


@runtime_checkable
class Method(Protocol):
    """An unlearning method: a frozen dataclass of settings with a plan. A new one is one file in methods/."""

    @property
    def name(self) -> str: ...

    def plan(self, deletion: Deletion) -> Plan: ...


class Stopped(NamedTuple):
    """A model that left the numbers: at which step, and that it was kept as it was before."""

    lane: int
    step: int
    why: str


@dataclass(frozen=True, eq=False)
class Unlearned:
    """Models after a deletion.

    passes: example passes a model, preparation included. ratio: passes over those of retraining. losses: [t e].
    stopped: the models that had to be stopped, kept at their last good state.
    """

    method: str
    settings: Any
    models: Lanes
    deletion: Deletion
    passes: float
    seconds: float
    losses: Float[np.ndarray, "t e"]
    stopped: tuple[Stopped, ...]
    ledger: Ledger
    shift: Callable[[Examples], np.ndarray] | None = None

    def __repr__(self) -> str:
        return (
            f"Unlearned({self.method}: {len(self.models)} models, {len(self.deletion.forget)} examples forgotten, "
            f"{self.ratio:.1%} of retraining)"
        )

    def _repr_html_(self) -> str:
        pairs = [
            ("settings", str(self.settings)),
            ("models", len(self.models)),
            ("examples forgotten", len(self.deletion.forget)),
            ("example passes a model", self.passes),
            ("of retraining", f"{self.ratio:.1%}"),
            ("seconds", self.seconds),
            (
                "loss, first and last step",
                " → ".join(f"{np.mean(self.losses[t]):.4g}" for t in (0, -1) if self.losses.size),
            ),
            ("stopped", "; ".join(f"model {s.lane} at step {s.step}: {s.why}" for s in self.stopped) or "none"),
            ("deletions so far", len(self.ledger.lines)),
        ]
        return facts(repr(self), pairs).html

    @property
    def ratio(self) -> float:
        return self.passes / self.deletion.retraining

    def module(self, lane: int = 0) -> nn.Module:
        """One of the models, as a module of its own."""
        return self.models.module(lane)

    def outputs(self, points: Examples, keep: tuple[str, ...] = ("logits", "margins")) -> dict[str, np.ndarray]:
        """Logits [e p c] and margins [e p] at these points (per token for language)."""
        task = self.deletion.task
        out = lanes_outputs(self.models, task, points, keep)
        if self.shift is not None:
            logits = lanes_outputs(self.models, task, points, ("logits",))["logits"] + self.shift(points)
            out = {"logits": logits} if "logits" in keep else {}
            if "margins" in keep:
                batch = points.batch(np.arange(len(points)))
                out["margins"] = np.stack([margins_of(task, torch.as_tensor(one), batch).numpy() for one in logits])
        return out

    def then(self, method: Method, forget: np.ndarray, *, quiet: bool = True) -> "Unlearned":
        """The next deletion, from here; the ledger grows by a line."""
        return run(method, self.deletion.next(self.models, forget, self.ledger), quiet=quiet)


def lanes_outputs(lanes: Lanes, task: Any, points: Examples, keep: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Outputs of lanes, side by side, or one by one where the model cannot be stacked."""
    if len(lanes) == 1 or why_not_stacked(lanes.template) is None:
        return outputs_of_lanes(lanes, task, points, keep)
    each = [outputs_of_lanes(lanes.select([e]), task, points, keep) for e in range(len(lanes))]
    return {name: np.concatenate([one[name] for one in each]) for name in each[0]}


def run(method: Method, deletion: Deletion, *, quiet: bool = True) -> Unlearned:
    """Let the models forget. Raises what the method's plan raises; never returns a NaN model: one whose loss or
    gradient is not finite is stopped and kept as it was, and `stopped` says so.

    >>> forgot = run(FineTune(epochs=1), deletion)
    >>> len(forgot.models), forgot.stopped
    (8, ())
    """
    started = time.perf_counter()
    plan = method.plan(deletion)
    lanes, passes = plan.models, plan.spent
    losses: list[np.ndarray] = []
    stopped: list[Stopped] = []
    if len(lanes) > 1 and plan.phases and (reason := why_not_stacked(lanes.template)):
        if not quiet:
            say(f"unlearning one model at a time: {reason}")
        groups = [[e] for e in range(len(lanes))]
    else:
        groups = [list(range(len(lanes)))]
    flat = lanes.flat.clone()
    buffers = {name: b.clone() for name, b in lanes.buffers.items()}
    for number, phase in enumerate(plan.phases):
        for group in groups:
            over = {stop.lane for stop in stopped}
            state = _run_phase(phase, number, lanes.select(group), group, over, deletion, quiet)
            flat[group] = state.lanes.flat
            for name, values in state.lanes.buffers.items():
                buffers[name][group] = values
            losses.append(state.losses)
            stopped.extend(s for s in state.stopped)
        passes += state.passes
        lanes = Lanes(lanes.template, flat, lanes.shapes, buffers, lanes.frozen)
    for stop in stopped:
        say(f"{method.name}: model {stop.lane} stopped at step {stop.step} ({stop.why}); its last good state is kept")
    ledger = deletion.ledger.add(method.name, deletion.train.ids, deletion.left, deletion.forget, passes)
    return Unlearned(
        method.name,
        method,
        lanes,
        deletion,
        float(passes),
        time.perf_counter() - started,
        np.concatenate(losses) if losses and len(groups) == 1 else np.zeros((0, len(lanes)), np.float32),
        tuple(stopped),
        ledger,
        plan.shift,
    )


class _State(NamedTuple):
    lanes: Lanes
    losses: np.ndarray
    stopped: list[Stopped]
    passes: float


def _run_phase(
    phase: Phase, number: int, lanes: Lanes, group: list[int], over: set[int], deletion: Deletion, quiet: bool
) -> _State:
    """over: models that an earlier phase stopped; they stay as they are."""
    seeds = deletion.lane_seeds[group]
    walks = [list(phase.draw(np.random.default_rng([int(abs(s)), 7, number]))) for s in seeds]
    steps = [np.stack(rows) for rows in zip(*walks, strict=True)]
    columns, forgotten = deletion.pool.columns, deletion.pool.sizes[0]
    index = torch.arange(len(lanes))[:, None]
    tables = {name: table[group] for name, table in phase.tables.items()}
    moments = phase.optimiser.init(lanes.flat)
    live = torch.tensor([[float(lane not in over)] for lane in group], dtype=lanes.flat.dtype)
    good = lanes.flat.clone()
    losses, stopped, passes = [], [], 0
    total = torch.full((len(lanes), 1), float(max(len(steps), 1)))
    bar = progress(enumerate(steps), total=len(steps), desc="unlearning", unit="step", quiet=quiet)
    with mode(lanes, training=True):
        for at, rows_of_step in bar:
            rows = torch.as_tensor(rows_of_step)
            batch = {name: column[rows] for name, column in columns.items()}
            extra = {name: table[index, rows] for name, table in tables.items()}
            extra["forget"] = rows < forgotten
            extra["progress"] = torch.full((len(lanes),), at / max(len(steps), 1))
            loss, gradient = lanes.gradient(phase.objective, batch, extra)
            passes += rows.shape[1]
            sound = torch.isfinite(loss) & torch.isfinite(gradient).all(1)
            for lane in (~sound & (live[:, 0] > 0)).nonzero().flatten().tolist():
                stopped.append(Stopped(group[lane], at, "its loss or gradient is not finite"))
            live = live * sound[:, None]
            lanes.flat.copy_(torch.where(sound[:, None], lanes.flat, good))
            good.copy_(lanes.flat)
            gradient = torch.where(live > 0, gradient, 0.0)
            if phase.gradient_mask is not None:
                gradient = gradient * phase.gradient_mask[group]
            factor = phase.schedule.factor(torch.full_like(total, float(at)), total)
            moments = phase.optimiser.update(lanes.flat, gradient, moments, factor.to(lanes.flat.dtype), live)
            losses.append(loss)
            if not live.any():
                break
    broken = ~torch.isfinite(lanes.flat).all(1)  # the very last step has nobody after it
    for lane in (broken & (live[:, 0] > 0)).nonzero().flatten().tolist():
        stopped.append(Stopped(group[lane], len(losses) - 1, "its weights are not finite"))
    lanes.flat.copy_(torch.where(broken[:, None], good, lanes.flat))
    trace = torch.stack(losses).numpy() if losses else np.zeros((0, len(lanes)), np.float32)
    return _State(lanes, trace, stopped, float(passes))


# --- what methods are made of -------------------------------------------------------------------------------


def batches(
    rows: np.ndarray, size: int, epochs: int | float = 1.0
) -> Callable[[np.random.Generator], Iterator[np.ndarray]]:
    """Rows in shuffled batches of `size`, for so many epochs; the last partial batch of an epoch is filled from
    its beginning, so every batch has one shape."""
    size = min(size, len(rows))
    per_epoch = -(-len(rows) // size)
    count = max(1, round(per_epoch * epochs))

    def draw(generator: np.random.Generator) -> Iterator[np.ndarray]:
        for step in range(count):
            if step % per_epoch == 0:
                order = generator.permutation(rows)
                order = np.concatenate([order, order[:size]])
            start = step % per_epoch * size
            yield order[start : start + size]

    return draw


def side_by_side(
    forget: np.ndarray, retain: np.ndarray, sizes: tuple[int, int], steps: int
) -> Callable[[np.random.Generator], Iterator[np.ndarray]]:
    """Every step sees some forgotten and some retained rows."""

    def draw(generator: np.random.Generator) -> Iterator[np.ndarray]:
        walks = [batches(rows, size, steps)(generator) for rows, size in ((forget, sizes[0]), (retain, sizes[1]))]
        for _ in range(steps):
            yield np.concatenate([next(walk) for walk in walks])

    return draw


def mean_loss(task: Any, model: nn.Module, batch: dict[str, Tensor], weights: Tensor) -> Tensor:
    """Weighted mean of the task's loss, per example or per predicted token; 0 where nothing has weight."""
    counted = task.positions(batch).sum(1)
    weights = weights.to(torch.float32)
    return (weights * task.loss(model, batch)).sum() / (weights * counted).sum().clamp(min=1.0)


def logits_table(deletion: Deletion, lanes: Lanes, rows: np.ndarray | None = None) -> Float[Tensor, "e n ..."]:
    """The models' own logits at every row of the pool (zeros at rows not asked for)."""
    pool = deletion.pool
    rows = np.arange(len(pool)) if rows is None else rows
    stackable = len(lanes) == 1 or why_not_stacked(lanes.template) is None
    groups = [list(range(len(lanes)))] if stackable else [[e] for e in range(len(lanes))]
    found = []
    for group in groups:
        part = lanes.select(group)
        with mode(part, training=False), torch.no_grad():
            blocks = [
                part.apply(
                    lambda model, batch, extra: deletion.task.logits(model, batch),
                    {name: c[torch.as_tensor(rows[s : s + ROWS_AT_ONCE])] for name, c in pool.columns.items()},
                    shared=True,
                )
                for s in range(0, len(rows), ROWS_AT_ONCE)
            ]
        found.append(torch.cat(blocks, 1))
    logits = torch.cat(found)
    table = logits.new_zeros((len(lanes), len(pool), *logits.shape[2:]))
    table[:, torch.as_tensor(rows)] = logits
    return table
