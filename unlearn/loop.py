"""How every unlearning method runs.

A method turns a request into a plan: phases of steps, each with the rows it sees, an objective for one model, an
optimiser, and tables of targets by row. All models of an ensemble run through the training loop side by side; example
passes are counted (forward and backward of one example is 1, forward alone a third); a model whose loss or gradient
becomes non-finite is kept at its last good state.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from whence.cache import Examples, Task, TrainedModel
from whence.cache.display import facts
from whence.cache.jobs.progress import progress, say
from whence.cache.jobs.signals import stop_if_signalled
from whence.cache.model.bridge import to_numpy
from whence.cache.retrain.loop import LastGood, descend
from whence.cache.retrain.replicas import Replicas, margins_of, mode, why_not_stacked

from .deletion_log import DeletionLog
from .methods.method import UnlearningMethod
from .plan import Phase, check_single
from .request import UnlearningRequest


class Stopped(NamedTuple):
    """A model whose loss, gradient or weights became non-finite at this step; it was kept as it was before."""

    model: int
    step: int
    why: str


@dataclass(frozen=True, eq=False)
class Unlearned:
    """Models after a request, as `run` returns them.

    method: the method's name in tables. settings: its fields as plain values. passes: example passes per model,
    preparation included. ratio: passes over those of retraining. losses: [t e]. stopped: the models that had to be
    stopped, kept at their last good state. log: all deletions, this one included. shift: for methods that change
    outputs and not weights, points -> change of logits [e p c] or [p c].
    """

    method: str
    settings: Mapping[str, Any]
    models: Replicas
    request: UnlearningRequest
    passes: float
    seconds: float
    losses: Float[np.ndarray, "t e"]
    stopped: tuple[Stopped, ...]
    log: DeletionLog
    shift: Callable[[Examples], np.ndarray] | None = None

    def __repr__(self) -> str:
        return (
            f"Unlearned({self.method}: {len(self.models)} models, {len(self.request.forget)} examples forgotten, "
            f"{self.ratio:.1%} of retraining)"
        )

    def _repr_html_(self) -> str:
        pairs = [
            ("settings", str(self.settings)),
            ("models", len(self.models)),
            ("examples forgotten", len(self.request.forget)),
            ("example passes per model", self.passes),
            ("of retraining", f"{self.ratio:.1%}"),
            ("seconds", self.seconds),
            (
                "loss, first and last step",
                " → ".join(f"{np.mean(self.losses[t]):.4g}" for t in (0, -1) if self.losses.size),
            ),
            ("stopped", "; ".join(f"model {s.model} at step {s.step}: {s.why}" for s in self.stopped) or "none"),
            ("deletions so far", len(self.log.entries)),
            ("warnings", " ".join(self.warnings) or "none"),
        ]
        return facts(repr(self), pairs).html

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of this result must know."""
        return self.request.warnings

    @property
    def ratio(self) -> float:
        return self.passes / self.request.retraining

    def module(self, model: int = 0) -> nn.Module:
        """One of the models, as a module of its own."""
        return self.models.module(model)

    def trained(self, replica: int = 0, **options: Any) -> TrainedModel:
        """One of the models, bound to all training data. options: as for TrainedModel (store, sites, quiet)."""
        return TrainedModel(self.module(replica), self.request.train, self.request.task, **options)

    def outputs(self, points: Examples, keep: tuple[str, ...] = ("logits", "margins")) -> dict[str, np.ndarray]:
        """Logits [e p c] and margins [e p] at these points (per token for language)."""
        task = self.request.task
        if self.shift is None:
            return self.models.outputs(task, points, keep)
        logits = self.models.outputs(task, points, ("logits",))["logits"] + self.shift(points)
        out = {"logits": logits}
        if "margins" in keep:
            out["margins"] = margins_of_logits(task, logits, points)
        return {name: out[name] for name in keep}

    def then(self, method: UnlearningMethod, forget: np.ndarray, *, quiet: bool = True) -> "Unlearned":
        """The next request, to these models; the deletion log grows by an entry."""
        return run(method, self.request.next(self.models, forget, self.log), quiet=quiet)


def margins_of_logits(
    task: Task, logits: Float[np.ndarray, "e p ..."], points: Examples
) -> Float[np.ndarray, "e p ..."]:
    """The margins of several models' logits at these points."""
    batch = points.batch(np.arange(len(points)))
    return np.stack([to_numpy(margins_of(task, torch.as_tensor(one), batch)) for one in logits])


def run(method: UnlearningMethod, request: UnlearningRequest, *, quiet: bool = True) -> Unlearned:
    """Run an unlearning method for all models of a request.

    Args:
        method: a method with its settings; `unlearn.METHODS` has all of them.
        request: the models, and what they are to forget.
        quiet: show no progress bar.

    Raises what the method's plan raises. It never returns a NaN model: one whose loss or gradient is not finite is
    stopped and kept as it was, and `stopped` lists it.

    >>> forgot = run(FineTune(epochs=1), request)
    >>> len(forgot.models), forgot.stopped
    (8, ())
    """
    started, name = time.perf_counter(), method.display_name
    plan = method.plan(request)
    models, passes = plan.models, plan.spent
    for phase in plan.phases:
        rows = next(phase.draw(np.random.default_rng(0)), np.arange(0))
        if len(rows) == 1:
            check_single(models, request.task, request.pool.batch(rows))
    losses: list[np.ndarray] = []
    stopped: list[Stopped] = []
    if len(models) > 1 and plan.phases and not models.stackable and not quiet:
        say(f"unlearning one model at a time: {why_not_stacked(models.template)}")
    for number, phase in enumerate(plan.phases):
        over = {stop.model for stop in stopped}
        models, trace, found, spent = _run_phase(phase, number, models.select(slice(None)), over, request, quiet)
        losses.append(trace)
        stopped += found
        passes += spent
    for stop in stopped:
        say(f"{name}: model {stop.model} stopped at step {stop.step} ({stop.why}); its last good state is kept")
    log = request.log.add(name, request.train.ids, request.left, request.forget, passes)
    return Unlearned(
        name,
        method.settings(),
        models,
        request,
        float(passes),
        time.perf_counter() - started,
        np.concatenate(losses) if losses else np.zeros((0, len(models)), np.float32),
        tuple(stopped),
        log,
        plan.shift,
    )


def _run_phase(
    phase: Phase, number: int, models: Replicas, over: set[int], request: UnlearningRequest, quiet: bool
) -> tuple[Replicas, Float[np.ndarray, "t e"], list[Stopped], float]:
    """The models after a phase, their losses, those that stopped, and passes per model. over: models that an earlier
    phase stopped; they stay as they are."""
    walks = [list(phase.draw(np.random.default_rng([int(abs(s)), 7, number]))) for s in request.replica_seeds]
    dtype, device = models.flat.dtype, models.flat.device
    rows_of_steps = [torch.as_tensor(np.stack(rows), device=device) for rows in zip(*walks, strict=True)]
    columns, forgotten, count = request.pool.columns, request.pool.sizes[0], len(models)
    index = torch.arange(count, device=device)[:, None]
    total = torch.full((count, 1), float(max(len(rows_of_steps), 1)), device=device)
    live = torch.tensor([[float(e not in over)] for e in range(count)], dtype=dtype, device=device)
    guard = LastGood(models.flat, live)
    losses: list[Tensor] = []
    start = models if phase.before is None else models.select(slice(None))
    passes = 0.0
    moving = {name: buffer for name, buffer in models.buffers.items() if buffer.dtype != torch.bool}
    sound = {name: buffer.clone() for name, buffer in moving.items()}  # before the last step

    def steps() -> Iterator[tuple[Any, ...]]:
        bar = progress(enumerate(rows_of_steps), total=len(rows_of_steps), desc="unlearning", unit="step", quiet=quiet)
        for at, rows in bar:
            stop_if_signalled()
            extra = {name: table[index, rows] for name, table in phase.tables.items()}
            extra["forget"] = rows < forgotten
            extra["progress"] = torch.full((count,), at / len(rows_of_steps), device=device)
            batch = {name: column[rows] for name, column in columns.items()}
            if phase.before is not None:
                with mode(start, training=False), torch.no_grad():
                    extra |= start.apply(phase.before, batch, extra)
            factor = phase.schedule.factor(torch.full_like(total, float(at)), total).to(dtype)
            yield phase.optimiser.lr * factor, batch, extra

    def gradient_of(flat: Tensor, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss, gradient = models.with_flat(flat).gradient(phase.objective, batch, extra)
        return loss, gradient if phase.gradient_mask is None else gradient * phase.gradient_mask

    flat = models.flat
    with mode(models, training=True):
        for point in descend(flat, gradient_of, steps(), phase.optimiser, guard=guard):
            flat = point.parameters
            passes += rows_of_steps[len(losses)].shape[1] + phase.before_passes
            losses.append(point.loss)
            for name, buffer in moving.items():  # a stopped model keeps its running statistics too
                dead = (guard.live[:, 0] == 0).view(-1, *[1] * (buffer.ndim - 1))
                buffer.copy_(torch.where(dead, sound[name], buffer))
                sound[name].copy_(buffer)
            if not guard.live.any():
                break
    models = models.with_flat(guard.end(flat))
    trace = to_numpy(torch.stack(losses)) if losses else np.zeros((0, count), np.float32)
    return models, trace, [Stopped(*stop) for stop in guard.stopped], passes
