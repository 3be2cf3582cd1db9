"""Low-rank fine-tuning: the weights of chosen linear layers gain a trainable B A, everything else is frozen."""

import copy
import math
import re

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cache import ModelError
from cache.lanes import Lanes
from cache.sites import named_parameters


class LowRank(nn.Module):
    """W + (alpha / rank) B A, with B zero at the start (Hu et al. 2022)."""

    def __init__(self, shape: torch.Size, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        bound = 1 / math.sqrt(shape[1])
        self.a = nn.Parameter((torch.rand(rank, shape[1], generator=generator) * 2 - 1) * bound)
        self.b = nn.Parameter(torch.zeros(shape[0], rank))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a)


def lora(model: nn.Module, rank: int = 8, alpha: float = 16.0, layers: str = ".*", seed: int = 0) -> Lanes:
    """A lane of a copy of this model whose only trainable parameters are low-rank updates of the linear layers
    whose names match. Raises ModelError when none does."""
    out = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    found = [
        module
        for name, module in out.named_modules()
        if isinstance(module, nn.Linear) and re.search(layers, name) and min(module.weight.shape) > rank
    ]
    if not found:
        raise ModelError(
            f"No linear layer wider than {rank} matches {layers!r}.",
            "Name layers of the model, or use full fine-tuning (Lanes.of([model])).",
        )
    for module in found:
        parametrize.register_parametrization(module, "weight", LowRank(module.weight.shape, rank, alpha, generator))
    added = {name for name in named_parameters(out) if re.search(r"parametrizations\.weight\.0\.[ab]$", name)}
    return Lanes.of([out], trainable=lambda name: name in added)


def merge(model: nn.Module) -> nn.Module:
    """A copy with the low-rank updates folded into plain weights."""
    out = copy.deepcopy(model)
    for name, module in list(out.named_modules()):
        if not parametrize.is_parametrized(module, "weight"):
            continue
        weight = module.parametrizations.weight().detach()  # type: ignore[union-attr, operator]
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None)
        plain.weight = nn.Parameter(weight)
        if module.bias is not None:
            plain.bias = nn.Parameter(module.bias.detach().clone())  # type: ignore[operator]
        parent, _, leaf = name.rpartition(".")
        setattr(out.get_submodule(parent), leaf, plain)
    return out
