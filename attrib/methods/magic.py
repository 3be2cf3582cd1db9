"""MAGIC: the exact derivative of a measurement after training with respect to each example's weight in the training
loss, by reverse mode through a recorded run (Ilyas and Engstrom 2025, arXiv 2503.13751)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.cache import (
    DataError,
    Examples,
    ModelError,
    Sites,
    Store,
    Task,
    borrowed,
    model_fingerprint,
    named_parameters,
    progress,
)  # fmt: skip
from whence.cache.model.sites import call_with
from whence.cache.retrain.loop import weighted_loss
from whence.cache.retrain.recipe import SGD, AdamW, Optimiser, Recipe, steps_of
from whence.cache.retrain.replicas import why_not_stacked

from ..checkpoints import Checkpoint, models_at, with_weights
from ..method import FitOptions
from ..states import NATS, check_fitted, kept, labelled

if TYPE_CHECKING:
    import xarray

Parameters = dict[str, Tensor]
AGREES = 0.03  # distance of the recorded run's end from the model, over that from the start: rounding grows to 0.01


class Point(NamedTuple):
    """Where training stands: parameters and the optimiser's moments, by name."""

    theta: Parameters
    first: Parameters
    second: Parameters


class Step(NamedTuple):
    """rows [b] of the data in this step; rate: the optimiser's learning rate in it; taken: steps before it."""

    rows: np.ndarray
    rate: float
    taken: int


@dataclass(frozen=True)
class Training:
    """A recorded run: its start, its steps, and points along it from which it is replayed."""

    model: nn.Module
    task: Task
    examples: Examples
    recipe: Recipe
    steps: tuple[Step, ...]
    points: Mapping[int, Point]  # before the step of this number

    def advance(self, point: Point, weights: Tensor, step: Step) -> Point:
        """One step of the optimiser on the weighted loss; differentiable in the point and in the rows' weights [b]."""
        batch = self.examples.batch(step.rows)
        bound = _Bound(self.model, weighted_loss(self.task))

        def loss(theta: Parameters) -> Tensor:
            return call_with(bound, {f"model.{n}": p for n, p in theta.items()}, (batch, {"weights": weights}))

        slope = grad(loss)(point.theta)
        if self.recipe.clip is not None:
            norm = torch.stack([(g * g).sum() for g in slope.values()]).sum().clamp(min=1e-24).sqrt()
            slope = {n: g * (self.recipe.clip / norm).clamp(max=1.0) for n, g in slope.items()}
        return update(self.recipe.optimiser, point, slope, step)

    def end(self) -> Point:
        """The trained point, replayed from the last kept one."""
        last = max(self.points)
        return self.replay(last, len(self.steps))[-1]

    def replay(self, start: int, stop: int) -> list[Point]:
        """Points before each of the steps start..stop-1, and the one after the last."""
        out = [self.points[start]]
        for step in self.steps[start:stop]:
            ones = torch.ones(len(step.rows), dtype=next(iter(out[0].theta.values())).dtype)
            moved = self.advance(out[-1], ones, step)
            out.append(Point(*({n: t.detach() for n, t in part.items()} for part in moved)))
        return out


class _Bound(nn.Module):
    def __init__(self, model: nn.Module, function: Any):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *args: Any) -> Tensor:
        return self.function(self.model, *args)


def update(optimiser: Optimiser, point: Point, slope: Parameters, step: Step) -> Point:
    """What the bank's optimisers do in place, as a function: torch.optim's SGD and AdamW."""
    theta, first, second = point
    decay, rate = optimiser.weight_decay, step.rate
    if isinstance(optimiser, SGD):
        if decay:
            slope = {n: g + decay * theta[n] for n, g in slope.items()}
        first = {n: optimiser.momentum * first[n] + g for n, g in slope.items()}
        moved = {n: g + optimiser.momentum * first[n] for n, g in slope.items()} if optimiser.nesterov else first
        return Point({n: p - rate * moved[n] for n, p in theta.items()}, first, second)
    assert isinstance(optimiser, AdamW)
    a, b = optimiser.betas
    count = step.taken + 1
    first = {n: a * first[n] + (1 - a) * g for n, g in slope.items()}
    second = {n: b * second[n] + (1 - b) * g * g for n, g in slope.items()}
    scale = (1 - b**count) ** 0.5
    # the root's derivative is infinite at 0, where a parameter never had a gradient: there it is taken as 0
    root = {n: torch.where(v > 0, torch.where(v > 0, v, 1.0).sqrt(), 0.0) for n, v in second.items()}
    change = {n: first[n] * (rate * scale / (1 - a**count)) / (root[n] + optimiser.eps * scale) for n in theta}
    return Point({n: p * (1 - rate * decay) - change[n] for n, p in theta.items()}, first, second)


@dataclass(frozen=True)
class Recorded:
    method: str
    inputs: Mapping[str, Any]
    training: Training

    def scores(
        self,
        model: nn.Module,
        task: Task,
        queries: Examples,
        train: Examples,
        *,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> "xarray.DataArray":
        """d f_q(theta_T) / d w_n: the first-order change of the query's measurement when example n counts once more in
        every step that saw it, [query, train]. Raises DataError for training examples that were not in the run."""
        check_fitted(self.inputs, model)
        places = self.training.examples.rows_of(train.ids)

        def make() -> np.ndarray:
            return unroll(self.training, task, queries, options.quiet)[:, places]

        values = kept(store, {**self.inputs, "task": task.settings}, queries, train, make)
        return labelled(values, queries, train, self.method, NATS, task)


def unroll(training: Training, task: Task, queries: Examples, quiet: bool = False) -> Float[np.ndarray, "q n"]:
    """Adjoints of all queries carried from the end of the run to its start; d f_q / d w_n collected on the way. Points
    between the kept ones are replayed, so memory is two square roots of the run's length."""
    with borrowed(training.model), sdpa_kernel(SDPBackend.MATH):
        end = training.end()
        theta = end.theta
        batch = queries.batch(range(len(queries)))
        bound = _Bound(training.model, task.measurement)
        pull: Any = vjp(lambda t: call_with(bound, {f"model.{n}": p for n, p in t.items()}, (batch,)), theta)[1]
        dtype = next(iter(theta.values())).dtype
        at_end = vmap(lambda u: pull(u)[0])(torch.eye(len(queries), dtype=dtype))
        none = {n: torch.zeros_like(g) for n, g in at_end.items()}
        held = {n: torch.zeros(len(queries), *t.shape, dtype=dtype) for n, t in end.second.items()}
        adjoint = Point(at_end, none, held)
        out = np.zeros((len(queries), len(training.examples)))
        starts = sorted(training.points, reverse=True)
        stops = [len(training.steps), *starts[:-1]]
        for start, stop in progress(list(zip(starts, stops)), desc="unrolling", unit="stretch", quiet=quiet):
            points = training.replay(start, stop)
            for number in range(stop - 1, start - 1, -1):
                step, point = training.steps[number], points[number - start]
                adjoint, to_weights = _backward(training, point, step, adjoint)
                out[:, step.rows] += to_weights.double().numpy()  # no row twice in a step
        return out


def _backward(training: Training, point: Point, step: Step, adjoint: Point) -> tuple[Point, Tensor]:
    ones = torch.ones(len(step.rows), dtype=next(iter(point.theta.values())).dtype)
    pull: Any = vjp(lambda p, w: training.advance(p, w, step), point, ones)[1]
    return vmap(lambda u: pull(u))(adjoint)


@dataclass(frozen=True)
class MAGIC:
    """start: the untrained model (or its state_dict); recipe and seed: how it was trained, as a bank trains. `fit`
    trains it again, keeping a point every root of the number of steps, and checks that it arrives at the model. Each
    step is as the bank's with its mask as weights ("shared" batches are exactly that). For small models: every step is
    differentiated twice for every query."""

    start: Checkpoint | None = None
    recipe: Recipe = Recipe(batches="shared")
    seed: int = 0
    name = "magic"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> Recorded:
        """Raises DataError without a start, ModelError for one of another shape, for a model whose training draws or
        counts on the side (dropout, batch statistics), or when the run does not end at `model`."""
        if self.start is None:
            raise DataError("MAGIC replays training and needs its start.", "Give MAGIC(start=untrained, recipe=...).")
        reason = why_not_stacked(model)
        if reason:
            raise ModelError(f"This training cannot be replayed exactly: {reason}.", "Use a model without it.")
        (beginning,) = models_at(model, [self.start])
        training = record(beginning, task, examples, self.recipe, self.seed, options.quiet)
        with borrowed(training.model), sdpa_kernel(SDPBackend.MATH):
            end = training.end().theta
        own, first = named_parameters(model), named_parameters(beginning)
        off = _distance(end, own) / max(_distance(first, own), 1e-30)
        if not off <= AGREES:
            raise ModelError(
                f"The recorded run ends away from the model, by {off:.2g} times the way that the model came.",
                "Give the start, recipe, seed and data that the model was trained with (fit the run's own end).",
            )
        inputs = {
            "model": model_fingerprint(model).hex,
            "start": model_fingerprint(beginning).hex,
            "data": examples.fingerprint,
            "task": task.settings,
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "method": self.name,
        }
        return Recorded(self.name, inputs, training)


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return float(torch.stack([(a[name] - b[name]).detach().double().square().sum() for name in a]).sum().sqrt())


def record(model: nn.Module, task: Task, examples: Examples, recipe: Recipe, seed: int, quiet: bool) -> Training:
    """Train from `model`'s weights, keeping what is needed to replay any of it."""
    masks = np.ones((1, len(examples)), bool)
    walk, totals = steps_of(masks, np.array([seed]), recipe)
    total = torch.as_tensor(totals, dtype=torch.float64)[:, None]
    steps = []
    for number, seen in enumerate(walk):
        factor = float(recipe.schedule.factor(torch.full_like(total, number), total))
        rows = seen.rows.reshape(-1)[seen.weights.reshape(-1) > 0]
        steps.append(Step(rows, recipe.optimiser.lr * factor, number))
    theta = {n: p.detach().clone() for n, p in named_parameters(model).items()}
    none = {n: torch.zeros_like(p) for n, p in theta.items()}
    adam = isinstance(recipe.optimiser, AdamW)
    point = Point(theta, none, dict(none) if adam else {})
    every = max(1, round(len(steps) ** 0.5))
    training = Training(model, task, examples, recipe, tuple(steps), {})
    points: dict[int, Point] = {}
    with borrowed(model), sdpa_kernel(SDPBackend.MATH):
        for number, step in enumerate(progress(steps, desc="recording", unit="step", quiet=quiet)):
            if number % every == 0:
                points[number] = point
            moved = training.advance(point, torch.ones(len(step.rows), dtype=theta[next(iter(theta))].dtype), step)
            point = Point(*({n: t.detach() for n, t in part.items()} for part in moved))
    return Training(model, task, examples, recipe, tuple(steps), points)


def trained(recorded: Training) -> nn.Module:
    """The model at the end of a recorded run."""
    with borrowed(recorded.model), sdpa_kernel(SDPBackend.MATH):
        theta = recorded.end().theta
    return with_weights(recorded.model, theta)
