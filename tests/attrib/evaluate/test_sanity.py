"""Sanity of every method (as quanda tests them): copies of an example score alike; other weights give other scores,
but for the one method that looks at words only."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from tests.attrib.methods.test_contract import ROWS, Problem

REPLAYED = {"magic"}  # scores belong to the run: to each copy's own place in it, and to no other weights


@pytest.fixture(scope="module")
def classified() -> Problem:
    return Problem.of("classification")


@pytest.fixture(scope="module")
def spoken() -> Problem:
    return Problem.of("language")


@pytest.fixture
def problem(name: str, classified: Problem, spoken: Problem) -> Problem:
    return classified if ROWS[name].classification else spoken


@pytest.mark.parametrize("name", [name for name in ROWS if name not in REPLAYED])
def test_copies_of_an_example_score_alike(name: str, problem: Problem) -> None:
    data = problem.trained.train
    copies = type(data)({k: v[:3] for k, v in data.columns.items()}, data.ids[:3] + 1000)
    trained = problem.trained.replace(train=data.joined(copies))
    fitted = ROWS[name].build(problem.start, trained.model).fit(trained)
    scores = fitted.score(data.select([4, 0])).values
    np.testing.assert_allclose(scores[:, -3:], scores[:, :3], atol=1e-5 * np.abs(scores).max())


@pytest.mark.parametrize("name", [name for name in ROWS if name not in REPLAYED])
def test_other_weights_give_other_scores(name: str, problem: Problem) -> None:
    queries = problem.trained.train.select([1, 0, 4, 5])
    other = randomised(problem.trained.model)
    found = [
        ROWS[name].build(model, model).fit(problem.trained.replace(model=model)).score(queries).values
        for model in (problem.trained.model, other)
    ]
    agreement = np.mean([spearmanr(a, b)[0] for a, b in zip(*found)])
    if name == "bm25":
        np.testing.assert_array_equal(*found)
    else:
        assert agreement < 0.95


def randomised(model: nn.Module) -> nn.Module:
    """The same architecture with weights of the same sizes in another order."""
    other, rng = copy.deepcopy(model), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel(), generator=rng)].view_as(parameter))
    return other
