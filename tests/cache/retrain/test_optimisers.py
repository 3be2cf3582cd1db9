"""The optimisers compute what torch.optim's do, write nothing in place, and have a derivative."""

import pytest
import torch
from torch import nn

from whence.cache import UsageError
from whence.cache.retrain.optimisers import SGD, AdamW, Muon, clipped, orthogonalised

OPTIMISERS = {
    "sgd": (SGD(0.1, 0.0), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (SGD(0.1, 0.9, 0.01), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01)),
    "nesterov": (SGD(0.1, 0.9, nesterov=True), lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True)),
    "adamw": (AdamW(0.1, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1)),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_matrix_of_models_and_a_dict_of_one_are_torchs_own(name: str) -> None:
    optimiser, torchs = OPTIMISERS[name]
    torch.manual_seed(0)
    start, gradients = torch.randn(2, 5, dtype=torch.float64), torch.randn(4, 2, 5, dtype=torch.float64)
    matrix, state, before = start, optimiser.init(start), start.clone()
    single = {"b": start[1, 3:], "a": start[1, :3]}
    moments = optimiser.init(single)
    own = [nn.Parameter(row.clone()) for row in start]
    theirs = torchs(own)
    for gradient in gradients:
        matrix, state = optimiser.update(gradient, state, matrix, torch.full((2, 1), 0.1, dtype=torch.float64))
        of_one = {"a": gradient[1, :3], "b": gradient[1, 3:]}
        single, moments = optimiser.update(of_one, moments, single, 0.1)
        for parameter, g in zip(own, gradient):
            parameter.grad = g
        theirs.step()
    torch.testing.assert_close(matrix, torch.stack([p.detach() for p in own]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([single["a"], single["b"]]), matrix[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(start, torch.stack(list(before)))


def test_muon_is_torchs_own_on_hidden_matrices_and_adamw_elsewhere() -> None:
    torch.manual_seed(0)
    shapes = {"blocks.0.w": (6, 4), "blocks.1.w": (3, 5), "blocks.0.b": (4,), "embed": (7, 4)}
    start = {name: torch.randn(shape) for name, shape in shapes.items()}
    optimiser = Muon(0.02, 3.0, rest=AdamW(0.02, weight_decay=0.1))
    own = {name: nn.Parameter(p.clone()) for name, p in start.items()}
    hidden = [own["blocks.0.w"], own["blocks.1.w"]]
    theirs = [
        torch.optim.Muon(hidden, lr=0.06, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW([own["blocks.0.b"], own["embed"]], lr=0.02, weight_decay=0.1),
    ]
    found, state = start, optimiser.init(start)
    for _ in range(4):
        gradient = {name: torch.randn(shape) for name, shape in shapes.items()}
        for name, parameter in own.items():
            parameter.grad = gradient[name].clone()
        for each in theirs:
            each.step()
        found, state = optimiser.update(gradient, state, found, 0.02)
    assert list(found) == list(start)
    for name, parameter in own.items():  # torch iterates in bfloat16
        tolerance = {"rtol": 0.02, "atol": 0.02} if parameter.ndim == 2 and name != "embed" else {}
        torch.testing.assert_close(found[name], parameter.detach(), **tolerance)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(5, 9)))
    assert 0.5 < values.min() <= values.max() < 1.3
    with pytest.raises(UsageError, match="Use AdamW for a bank"):
        optimiser.init(torch.zeros(2, 3))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_step_is_differentiable_also_where_no_gradient_ever_was(name: str) -> None:
    optimiser = OPTIMISERS[name][0]
    torch.manual_seed(0)
    p, g = torch.randn(1, 4, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)

    def after(p: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return optimiser.update(g, optimiser.init(p), p, torch.ones(1, 1, dtype=p.dtype))[0]

    assert torch.autograd.gradcheck(after, (p.requires_grad_(), g.requires_grad_()))
    slopes = torch.autograd.grad(after(p, torch.zeros_like(g, requires_grad=True)).sum(), p)
    assert torch.isfinite(slopes[0]).all()


def test_clipping_is_per_model_in_a_matrix_and_over_all_tensors_of_a_dict() -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(clipped(gradient, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    one = clipped({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}, 1.0)
    torch.testing.assert_close(one["a"], torch.tensor([0.6]))
    torch.testing.assert_close(one["b"], torch.tensor([[0.8]]))


@pytest.mark.parametrize("make", [lambda: SGD(-1.0), lambda: SGD(float("nan")), lambda: AdamW(betas=(0.9, 1.0))])
def test_settings_out_of_range_are_refused(make) -> None:
    with pytest.raises(UsageError, match=r"of (SGD|AdamW)|betas"):
        make()
