"""MAGIC: the exact derivative of a measurement after training with respect to each example's weight in the training
loss, by reverse mode through a recorded run (Ilyas and Engstrom 2025, arXiv 2504.16430). A run that is smooth in its
data is needed: with a tiny eps in Adam it is not (Engstrom et al. 2025, arXiv 2503.13751)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp, vmap

from whence.cache import DataError, Examples, ModelError, Sites, TrainedModel
from whence.cache.jobs.progress import progress
from whence.cache.model.bridge import to_numpy
from whence.cache.model.checkpoints import Checkpoint
from whence.cache.model.stateless import named_parameters, stateless
from whence.cache.model.task_key import task_settings
from whence.cache.retrain.recipe import Recipe
from whence.cache.retrain.replicas import why_not_stacked
from whence.cache.retrain.trajectory import Trajectory

from ..fitted import Fitted
from ..method import Method, in_key, not_in_key

AGREES = 0.03  # distance of the recorded run's end from the model, over that from the start: rounding grows to 0.01


@dataclass(frozen=True)
class Recorded(Fitted):
    run: Trajectory

    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        """d f_q(theta_T) / d w_n: the first-order change of the query's measurement when example n counts once more in
        every step that saw it. Raises DataError for training examples that were not in the run."""
        places = self.run.start.train.rows_of(train.ids)
        return unroll(self.run, self.trained, queries)[:, places]


def unroll(run: Trajectory, trained: TrainedModel, queries: Examples) -> Float[np.ndarray, "q n"]:
    """Adjoints of all queries carried from the end of the run to its start; d f_q / d w_n collected on the way. Points
    between the stored ones are computed again, so memory is two square roots of the run's length."""
    start, end = run.start, run.end()
    out = np.zeros((len(queries), len(start.train)))
    with run.exact():
        batch = start.batch(queries, range(len(queries)))
        measure = stateless(trained.task.measurement, start.model)
        pull: Any = vjp(lambda parameters: measure(parameters, batch), end.parameters)[1]
        at_end = vmap(lambda u: pull(u)[0])(torch.eye(len(queries), dtype=start.dtype, device=start.device))
        none = {name: torch.zeros_like(value) for name, value in at_end.items()}
        adjoint: Any = (at_end, tuple(none for _ in end.moments.averages))
        starts = sorted(run.points, reverse=True)
        stretches = list(zip(starts, [len(run.steps), *starts[:-1]]))
        for first, stop in progress(stretches, desc="unrolling", unit="stretch", quiet=trained.quiet):
            points = run.points_between(first, stop)
            for number in range(stop - 1, first - 1, -1):
                adjoint, to_weights = _backward(run, number, points[number - first], adjoint)
                out[:, run.steps[number].rows] += to_numpy(to_weights.double())  # no row twice in a step
    return out


def _backward(run: Trajectory, number: int, point: Any, adjoint: Any) -> tuple[Any, Tensor]:
    """The adjoint before step `number`, and the step's share of the derivative in its rows' weights."""

    def step(parameters: Any, averages: Any, weights: Tensor) -> Any:
        return run.step(parameters, averages, weights, number)

    ones = run.ones(run.steps[number])
    pull: Any = vjp(step, point.parameters, point.moments.averages, ones)[1]
    parameters, averages, to_weights = vmap(lambda u: pull(u))(adjoint)
    return (parameters, averages), to_weights


@dataclass(frozen=True)
class MAGIC(Method):
    """`fit` trains the model again, keeping a point every root of the number of steps, and checks that it arrives at
    the model. Each step is as the bank's with its mask as weights ("shared" batches are exactly that). For small
    models: every step is differentiated twice for every query.

    Args:
        start: the untrained model (or its state_dict). `fit` raises DataError without it, ModelError for parameters of
            other names or shapes, or for a model whose training uses random numbers or running statistics (dropout,
            batch normalisation).
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
        run = Trajectory.record(start, self.recipe, self.seed)
        end: Any = run.end().parameters
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
            "task": task_settings(trained.task),
            "method": self.name,
            **self.settings(),
        }
        return Recorded(trained, self.name, inputs, run)


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return float(torch.stack([(a[name] - b[name]).detach().double().square().sum() for name in a]).sum().sqrt())
