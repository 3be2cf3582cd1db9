"""On a GPU: every attribution method, a bank and unlearning give what the CPU gives. Skipped without one."""

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from tests.attrib.methods.test_contract import ROWS, Problem
from whence import attrib, unlearn
from whence.cache import SGD, Bank, Classification, Recipe, oracle_masks, subset_masks
from whence.unlearn import datamodels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("name", ROWS)
def test_scores(name: str) -> None:
    problem = Problem.of("classification" if ROWS[name].classification else "language")
    queries = problem.trained.train.select([1, 0, 4])
    there = problem.fit(name, device="cuda").score(queries)
    here = problem.fit(name).score(queries)
    scale = np.abs(here.values).max()
    np.testing.assert_allclose(there.values, here.values, atol=2e-3 * scale)


def test_every_question_of_fitted_curvature() -> None:
    case = cases.build("attention")
    found = {}
    for device in ("cpu", "cuda"):
        factors = attrib.EKFAC().fit(case.trained(model=case.model.float(), device=device))
        queries = case.examples.select([0, 2])
        found[device] = [
            factors.score(queries, rank=1).values,
            factors.score(queries, per_site=True).values,
            factors.self_influence().values,
            factors.top(queries, k=3)["helpful"].values,
            factors.token_scores(queries).values,
            factors.token_scores(queries, by="output", how="difference").values,
            factors.group_scores(queries).values,
        ]
    for here, there in zip(found["cpu"], found["cuda"]):
        np.testing.assert_allclose(there, here, atol=2e-2 * np.nanmax(np.abs(here)))


def test_a_bank_and_forgetting() -> None:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    train = cases.vectors(24)
    train = type(train)({**train.columns, "x": train.columns["x"].astype(np.float32)}, train.ids)
    forget = train.ids[:3]
    losses = {}
    for device in ("cpu", "cuda"):
        bank = Bank(build, Classification(), train, train, Recipe(3, 8, SGD(0.1, 0.9)), device=device)
        subsets = bank.run(subset_masks(24, 40, 0.75), quiet=True)
        datamodel = datamodels.ridge(subsets)
        request = unlearn.UnlearningRequest.of_bank(bank, forget, models=2, seed=3)
        forgot = unlearn.run(unlearn.DMM(datamodel, unlearn.Matching(steps=3)), request)
        oracles = bank.run(oracle_masks(train.ids, forget, 2), quiet=True)
        losses[device] = [subsets["margins"], forgot.outputs(train, ("margins",))["margins"], oracles["margins"]]
    for here, there in zip(losses["cpu"], losses["cuda"]):
        np.testing.assert_allclose(there, here, atol=1e-2 * np.abs(here).max())
