"""Condensation the slow and obvious way: class after class, layer after layer, in eager torch."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TorchConvNet(nn.Module):
    """The published ConvNet (instance norm, ReLU, mean pooling), loaded with our parameters."""

    def __init__(self, params: dict, depth: int):
        super().__init__()
        self.depth = depth
        for name, value in params.items():
            value = torch.tensor(np.asarray(value))
            if name.startswith("conv") and name.endswith("weight"):
                i, o = value.shape[0] // 9, value.shape[1]
                value = value.reshape(3, 3, i, o).permute(3, 2, 0, 1).contiguous()
            if name.startswith(("head", "dense")) and name.endswith("weight"):
                value = value.T.contiguous()
            self.register_parameter(name.replace(".", "_"), nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        for layer in range(self.depth):
            x = F.conv2d(x, getattr(self, f"conv{layer}_weight"), getattr(self, f"conv{layer}_bias"), padding=1)
            scale, shift = getattr(self, f"norm{layer}_scale"), getattr(self, f"norm{layer}_shift")
            x = F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1], scale, shift)), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)  # our features are flattened channels last
        return F.linear(x, self.head_weight, self.head_bias)


def torch_distance(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    total = torch.zeros(())
    for a, b in zip(real, synthetic):
        if a.ndim == 1:
            continue
        for row in range(a.shape[0]):
            u, v = a[row].flatten(), b[row].flatten()
            total = total + 1 - (u @ v) / (u.norm() * v.norm() + 1e-6)
    return total


def torch_matching(
    model: nn.Module, real_x: np.ndarray, real_y: np.ndarray, x: np.ndarray, contrast: bool
) -> tuple[float, np.ndarray]:
    """Loss and pixel gradient. real_x: [c b h w i] (channels last), x: [c i h w ch]; class c is row c."""
    made = torch.tensor(x, requires_grad=True)
    parameters = list(model.parameters())
    classes = [
        (
            torch.tensor(real_x[c]).permute(0, 3, 1, 2),
            torch.full((len(real_x[c]),), int(real_y[c])),
            made[c].permute(0, 3, 1, 2),
            torch.full((x.shape[1],), c),
        )
        for c in range(len(x))
    ]
    reals, synthetics = [], []
    for rx, ry, sx, sy in classes:
        reals.append([g.detach() for g in torch.autograd.grad(F.cross_entropy(model(rx), ry), parameters)])
        synthetics.append(torch.autograd.grad(F.cross_entropy(model(sx), sy), parameters, create_graph=True))
    if contrast:
        reals = [[torch.stack(gs).mean(0) for gs in zip(*reals)]]
        synthetics = [[torch.stack(gs).mean(0) for gs in zip(*synthetics)]]
    loss = sum(torch_distance(a, list(b)) for a, b in zip(reals, synthetics))
    loss.backward()
    return loss.item(), made.grad.numpy()


def one_seed_sgd(model: nn.Module, x: np.ndarray, y: np.ndarray, steps: int, lr: float, momentum: float, decay: float):
    """Full-batch SGD; the rate falls to a tenth after half of the steps."""
    optimiser = torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=decay)
    inputs, targets = torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(y)
    for step in range(steps):
        if step == steps // 2 + 1:
            optimiser.param_groups[0]["lr"] = lr / 10
        optimiser.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimiser.step()
    return [p.detach().numpy() for p in model.parameters()]
