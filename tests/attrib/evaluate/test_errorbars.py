"""Standard errors where there is no noise, and where there is."""

import pytest

from tests import cases
from whence.attrib import EKFAC, Damping, Identity
from whence.attrib.evaluate import error_bars
from whence.cache import (
    Regression,
    UsageError,
)


def test_error_bars_shrink_where_there_is_nothing_to_draw() -> None:
    case = cases.build("linear regression")
    queries = case.examples.select(range(3))
    method = EKFAC(damping=Damping(0.3, "absolute"))

    def bars(task) -> object:
        return error_bars(method, case.trained(task=task), queries, k=5)

    exact = bars(Regression(noise="sign"))  # signs have no sampling error in their squares
    drawn = bars(Regression())
    assert float(exact.labels.max()) < 1e-4 * float(drawn.labels.max())
    assert float(exact.halves.min()) >= 0
    assert exact.top.shape == (3, 5)
    assert exact.stable.min() >= 0
    assert exact.stable.max() <= 1
    assert (exact.unstable == (exact.stable < 0.8)).all()
    assert "unstable" in str(exact)
    with pytest.raises(UsageError, match="no label noise"):
        error_bars(Identity(), case.trained(), queries)
