"""A recorded run is the bank's run of one model, and any part of it is computed again."""

import numpy as np
import pytest
import torch

from tests.cache.retrain.test_bank import data, mlp
from whence.cache import Classification, TrainedModel
from whence.cache.retrain.loop import train
from whence.cache.retrain.recipe import SGD, AdamW, Recipe, Schedule
from whence.cache.retrain.replicas import Replicas
from whence.cache.retrain.trajectory import Trajectory

RECIPES = (
    Recipe(2, 10, SGD(0.05, 0.9, 1e-3), Schedule("cosine", 0.2), "shared", clip=0.5),
    Recipe(2, 10, AdamW(1e-2, weight_decay=0.1)),
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_run_is_the_banks_and_is_resumed_from_every_kept_point(recipe: Recipe) -> None:
    torch.manual_seed(0)
    examples, model = data(), mlp(0)
    run = Trajectory.record(TrainedModel(model, examples, Classification(), quiet=True), recipe, 3)
    bank = train(
        Replicas.of([model]), Classification(), examples, np.ones((1, len(examples)), bool), np.array([3]), recipe
    )
    for name, expected in bank.views().items():
        torch.testing.assert_close(run.end().parameters[name], expected[0], atol=1e-5, rtol=1e-4)
    for start, point in run.points.items():
        reached = run.points_between(start, len(run.steps))
        torch.testing.assert_close(reached[0].parameters, point.parameters)
        torch.testing.assert_close(reached[-1].parameters, run.end().parameters)


def test_the_derivative_of_a_step_in_weights_is_the_difference_quotient() -> None:
    torch.manual_seed(0)
    model = mlp(0).double()
    x = data()
    examples = type(x).of((x.columns["x"].astype(np.float64), x.columns["y"]))
    run = Trajectory.record(TrainedModel(model, examples, Classification(), quiet=True), RECIPES[1], 0)
    point = run.points_between(0, 2)[2]
    weights = torch.ones(len(run.steps[2].rows), dtype=torch.float64)

    def moved(weights: torch.Tensor) -> torch.Tensor:
        return run.step(point.parameters, point.moments.averages, weights, 2)[0]["0.weight"].sum()

    with run.exact():
        slope = torch.func.grad(moved)(weights)
        nudge = torch.zeros_like(weights)
        nudge[1] = 1e-5
        quotient = (moved(weights + nudge) - moved(weights - nudge)) / 2e-5
    assert float(slope[1]) == pytest.approx(float(quotient), rel=1e-4)
