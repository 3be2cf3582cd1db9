"""An example whose gradient is not finite is reported, and left out only on request."""

import numpy as np
import pytest
import torch

from tests import cases
from whence import attrib
from whence.attrib import EKFAC
from whence.cache import Examples, NumericalError, TrainedModel


class Overflowing(torch.nn.Module):
    """Its loss is finite; the gradient of an example that has the number 5 is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.b(torch.tanh(self.a(x)))
        if out.requires_grad:
            odd = (x == 5).any(1, keepdim=True)
            out.register_hook(lambda g: g.masked_fill(odd, float("inf")))
        return out


def test_an_infinite_gradient_is_reported_and_left_out_on_request() -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    x[7, 1] = 5
    examples = Examples.of({"x": x, "y": np.arange(12) % 3}, ids=np.arange(12) + 100)
    trained = TrainedModel(Overflowing(), examples, cases.build("mlp").task, quiet=True)
    with pytest.raises(NumericalError, match=r"gradient is not finite for 1 examples of this batch: ids \[107\]"):
        EKFAC().fit(trained)
    clean = attrib.finite.finite_examples(trained)
    assert list(examples.ids[~np.isin(examples.ids, clean.ids)]) == [107]
    factors = EKFAC().fit(trained.replace(train=clean))
    with pytest.raises(NumericalError, match=r"ids \[107\]"):
        factors.score(clean.select([0]), examples)
    assert np.isfinite(factors.score(clean.select([0])).values).all()
