"""One fitted model that the tests of scoring ask questions of; nothing changes it."""

from typing import NamedTuple

import numpy as np
import pytest

from tests import cases
from whence.attrib import EKFAC, Factors
from whence.cache import Examples, TrainedModel


class Fitted(NamedTuple):
    """exact: influence [q n] of all training examples on the queries."""

    trained: TrainedModel
    queries: Examples
    factors: Factors
    exact: np.ndarray


@pytest.fixture(scope="package")
def fitted() -> Fitted:
    case = cases.build("attention")
    data = cases.sequences(30)
    train = Examples(data.columns, data.ids, {"topic": ["even" if n % 2 == 0 else "odd" for n in range(30)]})
    trained = TrainedModel(case.model.float(), train, case.task, sites=["qkv", "out"], quiet=True)
    factors, queries = EKFAC().fit(trained), cases.sequences(5, seed=9)
    return Fitted(trained, queries, factors, factors.score(queries, rank=None).values)
