"""Low-rank fine-tuning: the weights of chosen linear layers gain a trainable B A, everything else is frozen."""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.cache import ModelError
from whence.cache.model.stateless import copied, named_parameters
from whence.cache.retrain.replicas import Replicas


class LowRank(nn.Linear):
    """W + (alpha / rank) B A, with B zero at the start (Hu et al. 2022).

    A linear layer becomes one in place, so that every name by which a model reaches it stays valid.
    """

    a: nn.Parameter
    b: nn.Parameter
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.whole, self.bias)

    @property
    def whole(self) -> Tensor:
        """The weight with its update."""
        return self.weight + self.scale * (self.b @ self.a)


def lora(model: nn.Module, rank: int = 8, alpha: float = 16.0, layers: str = ".*", seed: int = 0) -> Replicas:
    """One replica of this model whose only trainable parameters are low-rank updates of the linear layers
    whose names match. Raises ModelError when none does."""
    out = copied(model)
    generator = torch.Generator().manual_seed(seed)
    found = [
        module
        for name, module in out.named_modules()
        if type(module) is nn.Linear and re.search(layers, name) and min(module.weight.shape) > rank
    ]
    if not found:
        raise ModelError(
            f"No linear layer wider than {rank} matches {layers!r}.",
            "Name layers of the model, or use full fine-tuning (Replicas.of([model])).",
        )
    for module in found:
        bound = 1 / math.sqrt(module.in_features)
        drawn = torch.rand(rank, module.in_features, generator=generator)  # on the host: the same on every device
        module.register_parameter("a", _parameter(drawn.to(module.weight), bound))
        module.register_parameter("b", _parameter(module.weight.new_zeros(module.out_features, rank), 0.0))
        module.__class__ = LowRank
        vars(module)["scale"] = alpha / rank
    added = {id(p) for module in found for p in (module.a, module.b)}
    names = {name for name, p in named_parameters(out).items() if id(p) in added}
    return Replicas.of([out], trainable=lambda name: name in names)


def _parameter(unit: Tensor, bound: float) -> nn.Parameter:
    """From numbers in [0, 1] to a parameter in ± bound."""
    return nn.Parameter((unit * 2 - 1) * bound)


def merge(model: nn.Module) -> nn.Module:
    """A copy with the low-rank updates folded into plain weights."""
    out = copied(model)
    for module in out.modules():
        if isinstance(module, LowRank):
            with torch.no_grad():
                module.weight.copy_(module.whole)
            del module.a, module.b, module.scale
            module.__class__ = nn.Linear  # type: ignore[assignment]
    return out
