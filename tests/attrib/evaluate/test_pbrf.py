"""Proximal Bregman responses against the closed form, and influence against responses."""

import numpy as np
import pytest
import torch

from tests import cases
from tests.attrib.evaluate.problems import small_bank, trained_net
from whence.attrib import EKFAC, Damping, Identity
from whence.attrib.evaluate import (
    agreement_with_pbrf,
    pbrf,
)
from whence.attrib.methods import CG
from whence.cache import (
    DataError,
    Examples,
    ModelError,
    TrainedModel,
)


def test_the_proximal_response_is_what_influence_predicts() -> None:
    """Linear regression: the response is (H + damping + x x^T / N)^-1 exactly, and influence its first order."""
    case = cases.build("linear regression")
    with torch.no_grad():
        case.model.weight.mul_(0.3)
    rows, damping = np.arange(40, 70), 0.5
    queries = case.examples.select(range(5))
    trained = case.trained()
    found = pbrf(trained, queries, rows, damping, tolerance=1e-6)
    x = np.concatenate([case.examples.columns["x"], np.ones((500, 1))], 1)
    theta = np.concatenate([case.model.weight.detach().numpy()[0], case.model.bias.detach().numpy()])
    for column, row in enumerate(rows[:4]):
        slope = x[row] * (x[row] @ theta - case.examples.columns["y"][row]) / 500
        curved = x.T @ x / 500 + damping * np.eye(21) + np.outer(x[row], x[row]) / 500
        np.testing.assert_allclose(found.change[:, column], -x[:5] @ np.linalg.solve(curved, slope), rtol=1e-4)
    scores = EKFAC(damping=Damping(damping, "absolute")).fit(trained).score(queries)
    each, slope_of = agreement_with_pbrf(scores, found)
    assert each.min() > 0.999
    assert slope_of == pytest.approx(1.0, abs=0.1)
    with pytest.raises(ModelError, match="undefined"):
        pbrf(trained, queries, rows, 0.0)
    with pytest.raises(DataError, match="classification and regression"):
        pbrf(trained.replace(train=cases.sequences()), queries, rows, 1.0)


def test_classification_responses_converge() -> None:
    bank = small_bank()
    train = Examples({**bank.train.columns, "x": bank.train.columns["x"].astype(np.float64)}, bank.train.ids)
    queries = Examples({**bank.points.columns, "x": bank.points.columns["x"].astype(np.float64)}, bank.points.ids)
    ekfac = EKFAC(damping=Damping(0.01, "absolute"))
    trained = TrainedModel(trained_net(bank).double(), train, bank.task, quiet=True)
    found = pbrf(trained, queries, np.arange(42), 0.01)
    assert found.residual.max() <= 1e-3
    scores = CG(ekfac, tolerance=1e-4, iterations=60).fit(trained).score(queries)
    plain = Identity().fit(trained).score(queries)
    assert agreement_with_pbrf(scores, found)[0].mean() > 0.97
    assert agreement_with_pbrf(scores, found)[0].mean() > agreement_with_pbrf(plain, found)[0].mean()
