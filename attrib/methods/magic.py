"""MAGIC: the exact derivative of a measurement after training with respect to each example's weight in the training
loss, by reverse mode through a recorded run (Ilyas and Engstrom 2025, arXiv 2504.16430)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.cache import DataError, Examples, ModelError, Sites, TrainedModel, borrowed, named_parameters, progress
from whence.cache.model.bridge import to_numpy
from whence.cache.model.checkpoints import Checkpoint, with_weights
from whence.cache.model.stateless import call_with
from whence.cache.retrain.loop import weighted_loss
from whence.cache.retrain.recipe import SGD, AdamW, Optimiser, Recipe, steps_of
from whence.cache.retrain.replicas import why_not_stacked

from ..fitted import Fitted
from ..method import Method, in_key, not_in_key

Parameters = dict[str, Tensor]
AGREES = 0.03  # distance of the recorded run's end from the model, over that from the start: rounding grows to 0.01


class Point(NamedTuple):
    """A state of training: parameters and the optimiser's moments, by name."""

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

    start: TrainedModel
    recipe: Recipe
    steps: tuple[Step, ...]
    points: Mapping[int, Point]  # before the step of this number

    def advance(self, point: Point, weights: Tensor, step: Step) -> Point:
        """One step of the optimiser on the weighted loss; differentiable in the point and in the rows' weights [b]."""
        batch = self.start.batch(self.start.train, step.rows)
        bound = _Bound(self.start.model, weighted_loss(self.start.task))

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
            out.append(detached(self.advance(out[-1], self.ones(step), step)))
        return out

    def ones(self, step: Step) -> Tensor:
        """The weights of the step's rows."""
        return torch.ones(len(step.rows), device=self.start.device, dtype=self.start.dtype)


def detached(point: Point) -> Point:
    return Point(*({n: t.detach() for n, t in part.items()} for part in point))


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
class Recorded(Fitted):
    training: Training

    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        """d f_q(theta_T) / d w_n: the first-order change of the query's measurement when example n counts once more in
        every step that saw it. Raises DataError for training examples that were not in the run."""
        places = self.training.start.train.rows_of(train.ids)
        return unroll(self.training, self.trained, queries)[:, places]


def unroll(training: Training, trained: TrainedModel, queries: Examples) -> Float[np.ndarray, "q n"]:
    """Adjoints of all queries carried from the end of the run to its start; d f_q / d w_n collected on the way. Points
    between the kept ones are replayed, so memory is two square roots of the run's length."""
    start = training.start
    with borrowed(start.model), sdpa_kernel(SDPBackend.MATH):
        end = training.end()
        batch = start.batch(queries, range(len(queries)))
        bound = _Bound(start.model, trained.task.measurement)
        pull: Any = vjp(lambda t: call_with(bound, {f"model.{n}": p for n, p in t.items()}, (batch,)), end.theta)[1]
        at_end = vmap(lambda u: pull(u)[0])(torch.eye(len(queries), dtype=start.dtype, device=start.device))
        none = {n: torch.zeros_like(g) for n, g in at_end.items()}
        adjoint = Point(at_end, none, {n: none[n] for n in end.second})
        out = np.zeros((len(queries), len(start.train)))
        starts = sorted(training.points, reverse=True)
        stretches = list(zip(starts, [len(training.steps), *starts[:-1]]))
        for first, stop in progress(stretches, desc="unrolling", unit="stretch", quiet=trained.quiet):
            points = training.replay(first, stop)
            for number in range(stop - 1, first - 1, -1):
                step, point = training.steps[number], points[number - first]
                adjoint, to_weights = _backward(training, point, step, adjoint)
                out[:, step.rows] += to_numpy(to_weights.double())  # no row twice in a step
        return out


def _backward(training: Training, point: Point, step: Step, adjoint: Point) -> tuple[Point, Tensor]:
    pull: Any = vjp(lambda p, w: training.advance(p, w, step), point, training.ones(step))[1]
    return vmap(lambda u: pull(u))(adjoint)


@dataclass(frozen=True)
class MAGIC(Method):
    """`fit` trains the model again, keeping a point every root of the number of steps, and checks that it arrives at
    the model. Each step is as the bank's with its mask as weights ("shared" batches are exactly that). For small
    models: every step is differentiated twice for every query.

    Args:
        start: the untrained model (or its state_dict). `fit` raises DataError without it, ModelError for parameters of
            other names or shapes, or for a model whose training draws or counts on the side (dropout, batch
            statistics).
        recipe, seed: how it was trained, as a bank trains. `fit` raises ModelError if the run does not end at the
            model.
    """

    start: Checkpoint | None = not_in_key(None, "enters as its fingerprint")
    recipe: Recipe = in_key(Recipe(batches="shared"))
    seed: int = in_key(0)
    name = "magic"

    def chosen(self, trained: TrainedModel, sites: Any) -> Sites:
        return Sites((), 0, ())

    def fit_at(self, trained: TrainedModel, sites: Sites) -> Recorded:
        if self.start is None:
            raise DataError("MAGIC replays training and needs its start.", "Give MAGIC(start=untrained, recipe=...).")
        reason = why_not_stacked(trained.model)
        if reason:
            raise ModelError(f"This training cannot be replayed exactly: {reason}.", "Use a model without it.")
        start = trained.at(self.start)
        training = record(start, self.recipe, self.seed)
        with borrowed(start.model), sdpa_kernel(SDPBackend.MATH):
            end = training.end().theta
        own, first = named_parameters(trained.model), named_parameters(start.model)
        off = _distance(end, own) / max(_distance(first, own), 1e-30)
        if not off <= AGREES:
            raise ModelError(
                f"The recorded run ends away from the model, by {off:.2g} times the way that the model came.",
                "Give the start, recipe, seed and data that the model was trained with (fit the run's own end).",
            )
        inputs = {
            "model": trained.fingerprint(),
            "start": start.fingerprint(),
            "data": trained.train.fingerprint,
            "task": trained.task.settings,
            "method": self.name,
            **self.settings(),
        }
        return Recorded(trained, self.name, inputs, training)


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return float(torch.stack([(a[name] - b[name]).detach().double().square().sum() for name in a]).sum().sqrt())


def record(start: TrainedModel, recipe: Recipe, seed: int) -> Training:
    """Train from these weights, keeping what is needed to replay any of it."""
    masks = np.ones((1, len(start.train)), bool)
    walk, totals = steps_of(masks, np.array([seed]), recipe)
    total = torch.as_tensor(totals, dtype=torch.float64)[:, None]
    steps = []
    for number, seen in enumerate(walk):
        factor = float(recipe.schedule.factor(torch.full_like(total, number), total))
        rows = seen.rows.reshape(-1)[seen.weights.reshape(-1) > 0]
        steps.append(Step(rows, recipe.optimiser.lr * factor, number))
    theta = {n: p.detach().clone() for n, p in named_parameters(start.model).items()}
    none = {n: torch.zeros_like(p) for n, p in theta.items()}
    point = Point(theta, none, dict(none) if isinstance(recipe.optimiser, AdamW) else {})
    every = max(1, round(len(steps) ** 0.5))
    training = Training(start, recipe, tuple(steps), {})
    points: dict[int, Point] = {}
    with borrowed(start.model), sdpa_kernel(SDPBackend.MATH):
        for number, step in enumerate(progress(steps, desc="recording", unit="step", quiet=start.quiet)):
            if number % every == 0:
                points[number] = point
            point = detached(training.advance(point, training.ones(step), step))
    return replace(training, points=points)


def end_of(training: Training) -> nn.Module:
    """The model at the end of a recorded run."""
    with borrowed(training.start.model), sdpa_kernel(SDPBackend.MATH):
        theta = training.end().theta
    return with_weights(training.start.model, theta)
