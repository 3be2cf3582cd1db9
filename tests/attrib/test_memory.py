"""A fit that cannot fit is refused before it starts, with what would fit."""

import pytest

from tests import cases
from whence.attrib import EKFAC
from whence.attrib.memory import check_fit_fits, fit_bytes
from whence.cache import ResourceError, TrainedModel


def test_factors_that_do_not_fit_say_what_would() -> None:
    case = cases.build("attention")
    trained = TrainedModel(
        case.model, case.examples, case.task, sites=["qkv", "out"], memory=17_000, positions=9, quiet=True
    )
    assert fit_bytes(trained.find()) > 17_000
    with pytest.raises(ResourceError, match=r"Choose fewer sites \(the 1 smallest of the 2 sites fit"):
        EKFAC().fit(trained)
    check_fit_fits(trained.find(), 10**6)
