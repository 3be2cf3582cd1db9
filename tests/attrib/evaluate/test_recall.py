"""Recall and reciprocal rank by hand."""

import numpy as np
import pytest

from tests.attrib.evaluate.problems import labelled
from whence.attrib.evaluate import (
    recall,
)
from whence.cache import (
    DataError,
)


def test_recall_by_hand() -> None:
    scores = labelled(np.array([[0.1, 0.9, 0.5, 0.3], [0.4, 0.1, 0.2, 0.3]]))
    found = recall(scores, {0: [1, 3], 1: [2]}, ks=(1, 3))
    assert found.at == {1: 0.5, 3: 1.0}
    assert found.mrr == pytest.approx((1 + 1 / 3) / 2)
    assert "recall@1 0.500" in str(found)
    with pytest.raises(DataError, match="has no answer"):
        recall(scores, {0: [1]})
    with pytest.raises(DataError, match="was not scored"):
        recall(scores, {0: [1], 1: [77]})
