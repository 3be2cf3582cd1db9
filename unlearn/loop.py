"""How every unlearning method runs.

A method turns a deletion into a plan: phases of steps, each with the rows it sees, an objective for one model, an
optimiser, and tables of targets by row. All models of an ensemble run through the training loop side by side; example
passes are counted (forward and backward of one example is 1, forward alone a third); a model whose loss or gradient
becomes non-finite is kept at its last good state.
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
from whence.cache.retrain.loop import LastGood, descend
from whence.cache.retrain.recipe import AdamW, Optimiser, Schedule
from whence.cache.retrain.replicas import PerReplica, Replicas, margins_of, mode, why_not_stacked

from .deletion import Deletion, Ledger

FORWARD = 1 / 3  # of a pass
ROWS_AT_ONCE = 256
ADAM = AdamW(1e-3)
CONSTANT = Schedule()


@dataclass(frozen=True, eq=False)
class Phase:
    """Some steps with one objective.

    draw: random generator of a model -> rows [b] of each step, in order; as many as there are steps.
    objective: (model, batch, extra) -> scalar; extra has "forget" [b] (true for forgotten rows), the step's row
        of every table, and "progress" (0 to 1).
    tables: name -> [e n ...], targets by model and pool row.
    gradient_mask: [e P], multiplied into every gradient.
    """

    objective: PerReplica
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
    models: Replicas
    spent: float = 0.0
    shift: Callable[[Examples], np.ndarray] | None = None


@runtime_checkable
class Method(Protocol):
    """An unlearning method: a frozen dataclass of settings with a plan. A new one is one file in methods/."""

    @property
    def name(self) -> str: ...

    def plan(self, deletion: Deletion) -> Plan: ...


class Stopped(NamedTuple):
    """A model whose loss, gradient or weights became non-finite at this step; it was kept as it was before."""

    model: int
    step: int
    why: str


@dataclass(frozen=True, eq=False)
class Unlearned:
    """Models after a deletion.

    passes: example passes per model, preparation included. ratio: passes over those of retraining. losses: [t e].
    stopped: the models that had to be stopped, kept at their last good state.
    """

    method: str
    settings: Any
    models: Replicas
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
            ("example passes per model", self.passes),
            ("of retraining", f"{self.ratio:.1%}"),
            ("seconds", self.seconds),
            (
                "loss, first and last step",
                " → ".join(f"{np.mean(self.losses[t]):.4g}" for t in (0, -1) if self.losses.size),
            ),
            ("stopped", "; ".join(f"model {s.model} at step {s.step}: {s.why}" for s in self.stopped) or "none"),
            ("deletions so far", len(self.ledger.lines)),
        ]
        return facts(repr(self), pairs).html

    @property
    def ratio(self) -> float:
        return self.passes / self.deletion.retraining

    def module(self, model: int = 0) -> nn.Module:
        """One of the models, as a module of its own."""
        return self.models.module(model)

    def outputs(self, points: Examples, keep: tuple[str, ...] = ("logits", "margins")) -> dict[str, np.ndarray]:
        """Logits [e p c] and margins [e p] at these points (per token for language)."""
        task = self.deletion.task
        if self.shift is None:
            return self.models.outputs(task, points, keep)
        logits = self.models.outputs(task, points, ("logits",))["logits"] + self.shift(points)
        batch = points.batch(np.arange(len(points)))
        margins = [margins_of(task, torch.as_tensor(one), batch).numpy() for one in logits] if "margins" in keep else []
        out = {"logits": logits, "margins": np.stack(margins) if margins else logits[:0]}
        return {name: out[name] for name in keep}

    def then(self, method: Method, forget: np.ndarray, *, quiet: bool = True) -> "Unlearned":
        """The next deletion, from here; the ledger grows by a line."""
        return run(method, self.deletion.next(self.models, forget, self.ledger), quiet=quiet)


def run(method: Method, deletion: Deletion, *, quiet: bool = True) -> Unlearned:
    """Let the models forget. Raises what the method's plan raises; never returns a NaN model: one whose loss or
    gradient is not finite is stopped and kept as it was, and `stopped` says so.

    >>> forgot = run(FineTune(epochs=1), deletion)
    >>> len(forgot.models), forgot.stopped
    (8, ())
    """
    started = time.perf_counter()
    plan = method.plan(deletion)
    models, passes = plan.models, plan.spent
    losses: list[np.ndarray] = []
    stopped: list[Stopped] = []
    if len(models) > 1 and plan.phases and not models.stackable and not quiet:
        say(f"unlearning one model at a time: {why_not_stacked(models.template)}")
    for number, phase in enumerate(plan.phases):
        over = {stop.model for stop in stopped}
        models, trace, found, spent = _run_phase(phase, number, models.select(slice(None)), over, deletion, quiet)
        losses.append(trace)
        stopped += found
        passes += spent
    for stop in stopped:
        say(f"{method.name}: model {stop.model} stopped at step {stop.step} ({stop.why}); its last good state is kept")
    ledger = deletion.ledger.add(method.name, deletion.train.ids, deletion.left, deletion.forget, passes)
    return Unlearned(
        method.name,
        method,
        models,
        deletion,
        float(passes),
        time.perf_counter() - started,
        np.concatenate(losses) if losses else np.zeros((0, len(models)), np.float32),
        tuple(stopped),
        ledger,
        plan.shift,
    )


def _run_phase(
    phase: Phase, number: int, models: Replicas, over: set[int], deletion: Deletion, quiet: bool
) -> tuple[Replicas, Float[np.ndarray, "t e"], list[Stopped], int]:
    """The models after a phase, their losses, those that stopped, and passes per model. over: models that an earlier
    phase stopped; they stay as they are."""
    walks = [list(phase.draw(np.random.default_rng([int(abs(s)), 7, number]))) for s in deletion.lane_seeds]
    rows_of_steps = [torch.as_tensor(np.stack(rows)) for rows in zip(*walks, strict=True)]
    columns, forgotten, count = deletion.pool.columns, deletion.pool.sizes[0], len(models)
    index, total = torch.arange(count)[:, None], torch.full((count, 1), float(max(len(rows_of_steps), 1)))
    dtype = models.flat.dtype
    guard = LastGood(models.flat, torch.tensor([[float(e not in over)] for e in range(count)], dtype=dtype))
    losses, passes = [], 0

    def steps() -> Iterator[tuple[Any, ...]]:
        bar = progress(enumerate(rows_of_steps), total=len(rows_of_steps), desc="unlearning", unit="step", quiet=quiet)
        for at, rows in bar:
            extra = {name: table[index, rows] for name, table in phase.tables.items()}
            extra["forget"] = rows < forgotten
            extra["progress"] = torch.full((count,), at / len(rows_of_steps))
            factor = phase.schedule.factor(torch.full_like(total, float(at)), total).to(dtype)
            yield phase.optimiser.lr * factor, {name: column[rows] for name, column in columns.items()}, extra

    def gradient_of(flat: Tensor, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss, gradient = models.with_flat(flat).gradient(phase.objective, batch, extra)
        return loss, gradient if phase.gradient_mask is None else gradient * phase.gradient_mask

    flat = models.flat
    with mode(models, training=True):
        for point in descend(flat, gradient_of, steps(), phase.optimiser, guard=guard):
            flat = point.parameters
            passes += rows_of_steps[len(losses)].shape[1]
            losses.append(point.loss)
            if not guard.live.any():
                break
    models = models.with_flat(guard.end(flat))
    trace = torch.stack(losses).numpy() if losses else np.zeros((0, count), np.float32)
    return models, trace, [Stopped(*stop) for stop in guard.stopped], passes


# --- parts of methods -------------------------------------------------------------------------------


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


def logits_table(deletion: Deletion, models: Replicas, rows: np.ndarray | None = None) -> Float[Tensor, "e n ..."]:
    """The models' own logits at every row of the pool (zeros at rows that are not given)."""
    pool = deletion.pool
    rows = np.arange(len(pool)) if rows is None else rows
    with mode(models, training=False), torch.no_grad():
        blocks = [
            models.apply(
                lambda model, batch, extra: deletion.task.logits(model, batch),
                {name: c[torch.as_tensor(rows[s : s + ROWS_AT_ONCE])] for name, c in pool.columns.items()},
                shared=True,
            )
            for s in range(0, len(rows), ROWS_AT_ONCE)
        ]
    logits = torch.cat(blocks, 1)
    table = logits.new_zeros((len(models), len(pool), *logits.shape[2:]))
    table[:, torch.as_tensor(rows)] = logits
    return table
