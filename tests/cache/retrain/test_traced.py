"""A traced function gives what the function gives, and what cannot be recorded runs as it is."""

import pytest
import torch
import torch.nn.functional as F

from whence.cache.retrain.allocator import freed_memory_kept
from whence.cache.retrain.traced import PARTS, SEEN, Traced


def gradient(w: torch.Tensor, x: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    w = w.detach().requires_grad_()
    with torch.enable_grad():
        value = F.layer_norm(F.log_softmax(torch.tanh(x["x"] @ w), -1), (w.shape[1],)).square().sum()
        return value.detach(), torch.autograd.grad(value, w)[0]


def test_a_replay_is_the_function_for_every_set_of_shapes():
    traced = Traced(gradient)
    for _ in range(SEEN + 2):
        for width in (4, 40):  # one on either side of where kernels are taken apart
            w, x = torch.randn(3, width).double(), {"x": torch.randn(5, 3).double()}
            for found, expected in zip(traced(w, x), gradient(w, x)):
                torch.testing.assert_close(found, expected)
    assert len(traced.graphs) == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x + torch.rand(x.shape),),  # draws anew in every call
        lambda x: (x if float(x.sum()) > 0 else -x,),  # looks at numbers
    ],
)
def test_what_is_not_the_same_operations_each_time_is_not_recorded(function):
    traced = Traced(function)
    for _ in range(SEEN + 1):
        traced(torch.ones(3))
    assert not traced.graphs


def test_parts_of_kernels():
    torch.manual_seed(0)
    x, g = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    aten = torch.ops.aten
    masked = x.clone()
    masked[0] = masked[1, 2] = -torch.inf
    for operation, arguments in (
        (aten._softmax.default, (x, 1, False)),
        (aten._log_softmax.default, (x, -1, False)),
        (aten._safe_softmax.default, (masked, -1)),
        (aten._softmax_backward_data.default, (g, x.softmax(-1), -1, x.dtype)),
        (aten._log_softmax_backward_data.default, (g, x.log_softmax(-1), -1, x.dtype)),
        (aten.native_layer_norm.default, (x, [5], None, None, 1e-5)),
    ):
        torch.testing.assert_close(PARTS[operation](*arguments), operation(*arguments))
    assert PARTS[aten._softmax.default](torch.randn(2, 40), 1, False) is NotImplemented


def test_memory_is_given_back_after_an_exception():
    with pytest.raises(ValueError, match="inside"), freed_memory_kept():
        raise ValueError("inside")
