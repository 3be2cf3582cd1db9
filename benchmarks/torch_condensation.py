"""The published condensation loop in eager torch, written anew: the peer of `benchmarks/condensation.py`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def build(name: str, channels: int, size: int) -> nn.Sequential:
    """mlp-64-64 or convnet-depth-width with instance normalisation and mean pooling, ten classes."""
    kind, *parts = name.split("-")
    sizes = [int(part) for part in parts]
    layers: list[nn.Module] = []
    if kind == "mlp":
        width = channels * size * size
        layers.append(nn.Flatten())
        for size_out in sizes:
            layers += [nn.Linear(width, size_out), nn.ReLU(inplace=True)]
            width = size_out
        return nn.Sequential(*layers, nn.Linear(width, 10))
    depth, width = sizes
    for _ in range(depth):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GroupNorm(width, width, affine=True),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2, 2),
        ]
        channels, size = width, size // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size * size, 10))


def layer_distance(a: Tensor, b: Tensor) -> Tensor:
    """Σ over outputs of 1 - cosine; one-dimensional parameters count nothing."""
    if a.ndim == 1:
        return torch.zeros(())
    a, b = a.flatten(1), b.flatten(1)
    return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()


def distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return torch.stack([layer_distance(u, v) for u, v in zip(a, b)]).sum()


def matching_step(
    model: nn.Module,
    batches: list[Tensor],
    synthetic: Tensor,
    per_class: int,
    optimiser: torch.optim.Optimizer,
    contrast: bool,
) -> None:
    """One step of the pixels, class after class; with contrast the class gradients are summed before comparison."""
    parameters = list(model.parameters())
    loss = torch.zeros(())
    sums: tuple[list[Tensor], list[Tensor]] | None = None
    for c, real in enumerate(batches):
        real_y = torch.full((len(real),), c)
        reals = [g.detach() for g in torch.autograd.grad(F.cross_entropy(model(real), real_y), parameters)]
        mine = synthetic[c * per_class : (c + 1) * per_class]
        mine_y = torch.full((per_class,), c)
        grads = list(torch.autograd.grad(F.cross_entropy(model(mine), mine_y), parameters, create_graph=True))
        if not contrast:
            loss = loss + distance(reals, grads)
        elif sums is None:
            sums = (reals, grads)
        else:
            sums = ([p + g for p, g in zip(sums[0], reals)], [p + g for p, g in zip(sums[1], grads)])
    if sums is not None:
        loss = distance(*sums)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def train(
    model: nn.Module, x: Tensor, y: Tensor, epochs: int, lr: float, momentum: float, decay: float, batch: int = 256
) -> None:
    """SGD on the synthetic set in a new order every epoch."""
    optimiser = torch.optim.SGD(model.parameters(), lr, momentum=momentum, weight_decay=decay)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x), batch):
            rows = order[start : start + batch]
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
