"""A recorded run of one model: its start, its steps, and points along it from which any part is computed again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad_and_value
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import ModelError
from ..jobs.progress import progress
from ..model.borrowing import borrowed
from ..model.checkpoints import with_weights
from ..model.fingerprint import model_fingerprint
from ..model.runs import MOMENTS, Checkpointed, Group, TrainingRun
from ..model.stateless import named_parameters, stateless
from ..model.trained import TrainedModel
from .loop import Point, advance, descend, weighted_loss
from .optimisers import SGD, AdamW, Moments, Tree
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
        return Trajectory._walked(start, recipe, tuple(steps))

    @staticmethod
    def again(trained: TrainedModel, run: TrainingRun) -> "Trajectory":
        """A recorded run taken again, from its start, on the trained model's data.

        Raises ModelError for a run that cannot be taken again: its start or its order was not recorded, its optimiser
        is neither SGD nor Adam(W), its groups of parameters are treated differently, or its loss is no mean over
        positions.
        """
        settings = [dict(group.settings) for group in run.groups if group.names]
        kinds = {"SGD": SGD, "Adam": AdamW, "AdamW": AdamW}
        shared = all(one == settings[0] for one in settings) and bool((run.rates == run.rates[:, :1]).all())
        told = settings[0] if settings else {}
        reasons = {
            "its start was not recorded": run.checkpoints[0].step != 0,
            "the order of its examples was not recorded": run.ids is None,
            f"its optimiser is {run.optimiser}": run.optimiser not in kinds,
            "its groups of parameters have different settings": not shared,
            f"its loss is averaged over {run.averaged}": run.averaged not in ("targets", "positions"),
            "of a setting of its optimiser": bool(told.get("amsgrad") or told.get("maximize") or told.get("dampening")),
            "Adam decays weights through the gradient": run.optimiser == "Adam" and bool(told.get("weight_decay")),
        }
        reason = next((text for text, applies in reasons.items() if applies), None)
        if reason is not None or run.ids is None:
            raise ModelError(
                f"This run cannot be taken again: {reason}.",
                "Give a method that needs no replay (EKFAC, TracIn, SOURCE), or a start and a recipe.",
            )
        kind = kinds[run.optimiser]
        own = {f.name for f in fields(kind)} & set(told)
        values = {name: tuple(told[name]) if name == "betas" else told[name] for name in own}
        recipe = Recipe(1, max(map(len, run.ids)), kind(lr=float(run.rates.max()), **values), batches="shared")
        start = trained.at(run.checkpoints[0].read())
        steps = tuple(Step(trained.train.rows_of(ids), float(rate)) for ids, rate in zip(run.ids, run.rates[:, 0]))
        return Trajectory._walked(start, replace(recipe, clip=run.clip), steps)

    @staticmethod
    def _walked(start: TrainedModel, recipe: Recipe, steps: tuple[Step, ...]) -> "Trajectory":
        """Train by these steps, keeping points."""
        parameters = {name: p.detach().clone() for name, p in named_parameters(start.model).items()}
        every = max(1, round(len(steps) ** 0.5))
        points = {0: Point(parameters, recipe.optimiser.init(parameters))}
        run = Trajectory(start, recipe, steps, points)
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
        return self.update(parameters, averages, self._gradient(parameters, weights, self.steps[number])[1], number)

    def update(
        self, parameters: Tree, averages: tuple[Tree, ...], gradient: Tree, number: int
    ) -> tuple[Tree, tuple[Tree, ...]]:
        """Parameters and the optimiser's averages after step `number` with this gradient; differentiable in all."""
        point = Point(parameters, Moments(averages, number))
        after = advance(point, gradient, self.steps[number].rate, self.recipe.optimiser, self.recipe.clip)
        return after.parameters, after.moments.averages

    def gradient(self, parameters: Tree, weights: Tensor, number: int) -> Tree:
        """The gradient of the loss of step `number`, differentiable in parameters and weights (inside `exact`)."""
        return self._gradient(parameters, weights, self.steps[number])[1]

    def reweighted(self, weights: Float[np.ndarray, " n"]) -> Any:
        """The parameters at the end of the same run with these weights of the examples in every step's loss."""
        kept = torch.as_tensor(weights, dtype=self.start.dtype, device=self.start.device)
        steps = ((step.rate, kept[step.rows], step) for step in self.steps)
        with self.exact():
            for point in descend(self.points[0], self._gradient, steps, self.recipe.optimiser, clip=self.recipe.clip):
                end = point.parameters
        return end

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
            parts: dict[str, Any] = {"model": {**own, **point.parameters}}
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

    def _loss(self, step: Step) -> Callable[[Tree, Tensor], Tensor]:
        """The loss of a step as a function of parameters and weights."""
        loss = stateless(weighted_loss(self.start.task), self.start.model)
        batch = self.start.batch(self.start.train, step.rows)
        return lambda parameters, weights: loss(parameters, batch, {"weights": weights})

    def _gradient(self, parameters: Tree, weights: Tensor, step: Step) -> tuple[Tensor, Tree]:
        gradient, value = grad_and_value(self._loss(step))(parameters, weights)
        return value, gradient

    def _walk(self, start: int, stop: int) -> Iterator[Point]:
        """The points after each of the steps from the kept point `start` on."""
        point = self.points[start]
        steps = ((step.rate, self.ones(step), step) for step in self.steps[start:stop])
        return descend(point, self._gradient, steps, self.recipe.optimiser, clip=self.recipe.clip)
