"""A recorded run of one model: its start, its steps, and points along it from which any part is computed again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad_and_value
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..jobs.progress import progress
from ..model.borrowing import borrowed
from ..model.checkpoints import with_weights
from ..model.fingerprint import model_fingerprint
from ..model.runs import MOMENTS, Checkpointed, Group, TrainingRun
from ..model.stateless import named_parameters, stateless
from ..model.trained import TrainedModel
from .loop import Point, advance, descend, weighted_loss
from .optimisers import Moments, Tree
from .recipe import Recipe, steps_of


class Step(NamedTuple):
    """rows [b] of the data in this step; rate: the optimiser's learning rate in it."""

    rows: np.ndarray
    rate: float


@dataclass(frozen=True, eq=False)
class Kept(Checkpointed):
    """A checkpoint in memory. parts: kind -> tensors by parameter name."""

    step: int
    digest: str
    parts: Mapping[str, Mapping[str, Tensor]]

    def read(self, kind: str = "model") -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.parts.get(kind, {}).items()}


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One model's training under a recipe, on all examples. Points hold parameters and moments by name.

    Args:
        start: the model before training, with its data, task and device.
        recipe: how it is trained.
        steps: in order.
        points: the kept ones, by the number of the step that follows.
    """

    start: TrainedModel
    recipe: Recipe
    steps: tuple[Step, ...]
    points: Mapping[int, Point]

    @staticmethod
    def record(start: TrainedModel, recipe: Recipe, seed: int) -> "Trajectory":
        """Train from the start's weights as a bank trains with this seed, keeping a point every root of the number of
        steps: memory for recomputing all points is then twice that root. The model itself is not changed.

        The model must be free of dropout and running statistics (`replicas.why_not_stacked`).
        """
        walk, totals = steps_of(np.ones((1, len(start.train)), bool), np.array([seed]), recipe)
        total = torch.as_tensor(totals, dtype=torch.float64)[:, None]
        steps = []
        for number, seen in enumerate(walk):
            factor = float(recipe.schedule.factor(torch.full_like(total, number), total))
            rows = seen.rows.reshape(-1)[seen.weights.reshape(-1) > 0]
            steps.append(Step(rows, recipe.optimiser.lr * factor))
        parameters = {name: p.detach().clone() for name, p in named_parameters(start.model).items()}
        every = max(1, round(len(steps) ** 0.5))
        points = {0: Point(parameters, recipe.optimiser.init(parameters))}
        run = Trajectory(start, recipe, tuple(steps), points)
        with run.exact():
            walk_through = progress(
                run._walk(0, len(steps)), total=len(steps), desc="recording", unit="step", quiet=start.quiet
            )
            for number, point in enumerate(walk_through, 1):
                if number % every == 0 and number < len(steps):
                    points[number] = point
        return run

    def points_between(self, start: int, stop: int) -> list[Point]:
        """Points before each of the steps start..stop-1, and the one after the last; `start` is a kept one."""
        with self.exact():
            return [self.points[start], *self._walk(start, stop)]

    def end(self) -> Point:
        """The trained point, computed from the last kept one."""
        last = max(self.points)
        return self.points_between(last, len(self.steps))[-1]

    def step(
        self, parameters: Tree, averages: tuple[Tree, ...], weights: Tensor, number: int
    ) -> tuple[Tree, tuple[Tree, ...]]:
        """Parameters and the optimiser's averages after step `number` on the loss with these weights [b] of its
        examples; differentiable in all three tensors (inside `exact`)."""
        step = self.steps[number]
        _, gradient = self._gradient(parameters, weights, step)
        point = Point(parameters, Moments(averages, number))
        after = advance(point, gradient, step.rate, self.recipe.optimiser, self.recipe.clip)
        return after.parameters, after.moments.averages

    def ones(self, step: Step) -> Tensor:
        """The weights of a step's examples."""
        return torch.ones(len(step.rows), dtype=self.start.dtype, device=self.start.device)

    def trained(self) -> nn.Module:
        """The model at the end of the run."""
        return with_weights(self.start.model, self.end().parameters)

    def finished(self) -> TrainedModel:
        """The trained model at the end of the run, which knows how it was trained."""
        return self.start.replace(model=self.trained(), training=self.recorded())

    def recorded(self) -> TrainingRun:
        """The run as `cache.runs` records one, in memory, with the kept points and the end as its checkpoints."""
        name = type(self.recipe.optimiser).__name__
        own = dict(nn.Module.named_parameters(self.start.model)) | dict(nn.Module.named_buffers(self.start.model))
        settings = {k: v for k, v in asdict(self.recipe.optimiser).items() if k != "lr"}
        kept = []
        for step, point in sorted({**self.points, len(self.steps): self.end()}.items()):
            parts = {"model": {**own, **point.parameters}}
            parts |= dict(zip(MOMENTS[name], point.moments.averages)) if step else {}
            kept.append(Kept(step, model_fingerprint(with_weights(self.start.model, point.parameters)).hex, parts))
        rates = np.array([[step.rate] for step in self.steps])
        ids = tuple(self.start.train.ids[step.rows] for step in self.steps)
        groups = (Group(tuple(self.points[0].parameters), settings),)
        return TrainingRun(None, name, groups, rates, ids, tuple(kept), "positions", self.recipe.clip)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Inside, the model is in evaluation mode and frozen, and attention is the one with second derivatives."""
        with borrowed(self.start.model), sdpa_kernel(SDPBackend.MATH):
            yield

    def _gradient(self, parameters: Tree, weights: Tensor, step: Step) -> tuple[Tensor, Tree]:
        loss = stateless(weighted_loss(self.start.task), self.start.model)
        batch = self.start.batch(self.start.train, step.rows)
        gradient, value = grad_and_value(lambda tensors: loss(tensors, batch, {"weights": weights}))(parameters)
        return value, gradient

    def _walk(self, start: int, stop: int) -> Iterator[Point]:
        """The points after each of the steps from the kept point `start` on."""
        point = self.points[start]
        steps = ((step.rate, self.ones(step), step) for step in self.steps[start:stop])
        return descend(point, self._gradient, steps, self.recipe.optimiser, clip=self.recipe.clip)
