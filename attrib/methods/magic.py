"""MAGIC: the exact derivative of a measurement after training with respect to each example's weight in the training
loss, by reverse mode through a recorded run (Ilyas and Engstrom 2025, arXiv 2504.16430). A run that is smooth in its
data is needed: with a tiny eps in Adam it is not (Engstrom et al. 2025, arXiv 2503.13751). So the examples are weighted
anew at random, the run is trained again, and the true change of the measurements is compared with the predicted one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

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

from ..annotations import warned
from ..fitted import Fitted
from ..method import Method, in_key, not_in_key

if TYPE_CHECKING:
    import xarray

DRAWS, CHANGE = 2, 0.1  # random weightings that are trained, and by how much weights differ from one
NOTHING = 1e-12  # squared changes below this are rounding
SMOOTH = 0.25  # share of the true changes that may be unpredicted before scores carry a warning
AGREES = 0.03  # distance of the recorded run's end from the model, over that from the start: rounding grows to 0.01


@dataclass(frozen=True)
class Recorded(Fitted):
    run: Trajectory

    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        """d f_q(theta_T) / d w_n: the first-order change of the query's measurement when example n counts once more in
        every step that saw it. Raises DataError for training examples that were not in the run."""
        places = self.run.start.train.rows_of(train.ids)
        return self.unrolled(queries)[:, places]

    def unrolled(self, queries: Examples) -> Float[np.ndarray, "q n"]:
        """Adjoints of all queries carried from the end of the run to its start; d f_q / d w_n collected on the way.
        Points between the stored ones are computed again, so memory is two square roots of the run's length."""
        run, start, end = self.run, self.run.start, self.run.end()
        out = np.zeros((len(queries), len(start.train)))
        with run.exact():
            batch = start.batch(queries, range(len(queries)))
            measure = stateless(self.trained.task.measurement, start.model)
            pull: Any = vjp(lambda parameters: measure(parameters, batch), end.parameters)[1]
            at_end = vmap(lambda u: pull(u)[0])(torch.eye(len(queries), dtype=start.dtype, device=start.device))
            none = {name: torch.zeros_like(value) for name, value in at_end.items()}
            adjoint: Any = (at_end, tuple(none for _ in end.moments.averages))
            starts = sorted(run.points, reverse=True)
            stretches = list(zip(starts, [len(run.steps), *starts[:-1]]))
            for first, stop in progress(stretches, desc="unrolling", unit="stretch", quiet=self.trained.quiet):
                points = run.points_between(first, stop)
                for number in range(stop - 1, first - 1, -1):
                    adjoint, to_weights = self.backward(number, points[number - first], adjoint)
                    np.add.at(out.T, run.steps[number].rows, to_numpy(to_weights.double()).T)
        return out

    def backward(self, number: int, point: Any, adjoint: Any) -> tuple[Any, Tensor]:
        """The adjoint before step `number`, and the step's share of the derivative in its rows' weights."""
        run = self.run

        def step(parameters: Any, averages: Any, weights: Tensor) -> Any:
            return run.step(parameters, averages, weights, number)

        pull: Any = vjp(step, point.parameters, point.moments.averages, run.ones(run.steps[number]))[1]
        parameters, averages, to_weights = vmap(lambda u: pull(u))(adjoint)
        return (parameters, averages), to_weights

    def labelled(
        self, values: Float[np.ndarray, "q n *_"], queries: Examples, train: Examples, last: str = "site"
    ) -> "xarray.DataArray":
        """As in `Fitted`, with `attrs["unpredicted"]`: the share of the true changes under random weightings that the
        scores do not predict (0: the run is smooth in its data). Above SMOOTH there is a warning."""
        array = super().labelled(values, queries, train, last)
        true, predicted = self.changes(values, queries, train)
        share = float(np.square(true - predicted).sum() / max(np.square(true).sum(), NOTHING))
        array = array.assign_attrs(unpredicted=share)
        if share <= SMOOTH:
            return array
        warning = (
            f"This run is not smooth in its data: trained again with the examples' weights changed by {CHANGE:.0%}, "
            f"{min(share, 1):.0%} of the change is not what the scores predict. A larger eps in Adam (1e-5 or more) or "
            "a smaller learning rate makes training smooth."
        )
        said = [array.attrs.get("warning", ""), warned([warning], self.trained)["warning"]]
        return array.assign_attrs(warning=" ".join(filter(None, said)))

    def changes(
        self, values: Float[np.ndarray, "q n"], queries: Examples, train: Examples
    ) -> tuple[Float[np.ndarray, "q d"], Float[np.ndarray, "q d"]]:
        """True and predicted changes of the measurements if the examples weigh 1 + CHANGE or 1 - CHANGE, at random.
        The true ones are stored."""
        places = self.run.start.train.rows_of(train.ids)
        signs = np.random.default_rng(0).choice([-CHANGE, CHANGE], (DRAWS, len(train)))
        inputs = self.score_inputs(queries, train) | {"what": "true changes", "draws": DRAWS, "change": CHANGE}
        store = self.trained.store
        if store is not None and store.has("checks", inputs):
            true = store.open("checks", inputs).read("changes")
        else:
            true = self._retrained(signs, places, queries)
            if store is not None:
                store.put("checks", inputs, {"changes": true})
        return true, values.astype(np.float64) @ signs.T

    def _retrained(self, signs: np.ndarray, places: np.ndarray, queries: Examples) -> Float[np.ndarray, "q d"]:
        start = self.run.start
        batch = start.batch(queries, range(len(queries)))
        measure = stateless(self.trained.task.measurement, start.model)

        def measured(parameters: Any) -> np.ndarray:
            with self.run.exact(), torch.no_grad():
                return to_numpy(measure(parameters, batch).double())

        before, after = measured(self.run.end().parameters), []
        for sign in signs:
            weights = np.ones(len(start.train))
            weights[places] += sign
            after.append(measured(self.run.reweighted(weights)) - before)
        return np.stack(after, 1)


@dataclass(frozen=True)
class MAGIC(Method):
    """`fit` trains the model again, keeping a point every root of the number of steps, and checks that it arrives at
    the model. Without a start, a recorded run is taken again (`TrainedModel.from_run`). Each step is as the bank's with
    its mask as weights ("shared" batches are exactly that). For small models: every step is differentiated twice for
    every query, which costs about two gradients of the step.

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
    at_sites = False
    recorded: ClassVar[type[Recorded]] = Recorded

    def fit_at(self, trained: TrainedModel, sites: Sites) -> Recorded:
        reason = why_not_stacked(trained.model)
        if reason:
            raise ModelError(f"This training cannot be replayed exactly: {reason}.", "Use a model without it.")
        told: dict[str, Any] = {}
        if self.start is not None:
            run = Trajectory.record(trained.at(self.start), self.recipe, self.seed)
        elif trained.training is not None:
            run, told = Trajectory.again(trained, trained.training), {"run": trained.training.fingerprint}
        else:
            raise DataError(
                f"{type(self).__name__} replays training and needs its start.",
                f"Give {type(self).__name__}(start=untrained, recipe=...), or open a recorded run (--recorded FOLDER).",
            )
        start = run.start
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
            **told,
        }
        return self.recorded(trained, self.name, inputs, run)


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return float(torch.stack([(a[name] - b[name]).detach().double().square().sum() for name in a]).sum().sqrt())
