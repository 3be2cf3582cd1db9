"""Detection of flipped labels, by methods and by hand."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.attrib.evaluate.problems import RECIPE, clusters, small_bank, trained_net
from whence.attrib import EKFAC
from whence.attrib.evaluate import (
    detection,
    flip_labels,
)
from whence.attrib.methods import EL2N
from whence.cache import (
    Classification,
    DataError,
    TrainedModel,
)
from whence.cache.retrain.bank import Bank


def test_mislabelled_examples_are_found() -> None:
    train, _ = clusters()
    flawed, flipped = flip_labels(train, 0.15, 3)
    assert (flawed.columns["y"] != train.columns["y"]).sum() == flipped.sum() == 6
    bank = Bank(small_bank().model, Classification(), flawed, flawed, RECIPE)
    trained = TrainedModel(trained_net(bank), flawed, bank.task, quiet=True)
    own = EKFAC().fit(trained).self_influence()
    assert detection(own.values, flipped).auc > 0.8
    el2n = EL2N().fit(trained)
    assert detection(el2n.self_influence().values, flipped).auc > 0.8
    np.testing.assert_allclose(el2n.score(flawed.select([0])).values[0], el2n.self_influence().values, rtol=1e-6)


def test_detection_by_hand() -> None:
    flipped = np.array([True, False, True, False, False])
    found = detection(np.array([0.9, 0.8, 0.7, 0.1, 0.2]), flipped)
    assert found.auc == pytest.approx(5 / 6)
    np.testing.assert_allclose(found.found, [0.5, 0.5, 1, 1, 1])
    axes = Figure().subplots()
    assert found.plot("self-influence", axes) is axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), found.found)
    assert "AUC 0.833" in str(found)
    with pytest.raises(DataError, match="1 NaN"):
        detection(np.array([np.nan, 1, 2, 3, 4]), flipped)
    with pytest.raises(DataError, match="Cannot flip"):
        flip_labels(clusters()[0], 0.0, 3)
