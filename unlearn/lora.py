"""Low-rank fine-tuning: the weights of chosen linear layers gain a trainable B A, everything else is frozen."""

import json
import math
import re
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.cache import ModelError
from whence.cache.model.layers import TransposedLinear
from whence.cache.model.names import own_parameters
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


class LowRankConv1D(LowRank):
    """The same of transformers' `Conv1D`, whose weight is [in out]."""

    plain: type[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.whole.T, self.bias)

    @property
    def whole(self) -> Tensor:
        return self.weight + self.scale * (self.b @ self.a).T


def lora(
    model: nn.Module | Replicas, rank: int = 8, alpha: float = 16.0, layers: str = ".*", seed: int = 0
) -> Replicas:
    """Replicas whose only trainable parameters are low-rank updates of the linear layers whose names match: one of a
    model, or one of each replica, all with the same start. Raises ModelError when no layer matches."""
    models = [model.module(e) for e in range(len(model))] if isinstance(model, Replicas) else [copied(model)]
    names = {name for one in models for name in _lowered(one, rank, alpha, layers, seed)}
    return Replicas.of(models, trainable=lambda name: name in names)


def _lowered(model: nn.Module, rank: int, alpha: float, layers: str, seed: int) -> set[str]:
    """Turn the layers of a model into low-rank ones; the names of the added parameters."""
    generator, own = torch.Generator().manual_seed(seed), cast(Any, model)
    found = [
        module
        for name, module in own.named_modules()
        if (type(module) is nn.Linear or TransposedLinear().matches(module))
        and re.search(layers, name)
        and min(module.weight.shape) > rank
    ]
    if not found:
        raise ModelError(
            f"No linear layer wider than {rank} matches {layers!r}.",
            "Name layers of the model, or use full fine-tuning (Replicas.of([model])).",
        )
    for module in found:
        if type(module) is not nn.Linear:
            width, out = module.weight.shape
            vars(module).update(plain=type(module), in_features=width, out_features=out)
        bound = 1 / math.sqrt(module.in_features)
        drawn = torch.rand(rank, module.in_features, generator=generator)  # on the host: the same on every device
        module.register_parameter("a", _parameter(drawn.to(module.weight), bound))
        module.register_parameter("b", _parameter(module.weight.new_zeros(module.out_features, rank), 0.0))
        module.__class__ = LowRankConv1D if "plain" in vars(module) else LowRank
        vars(module)["scale"] = alpha / rank
    added = {id(p) for module in found for p in (module.a, module.b)}
    return {name for name, p in named_parameters(model).items() if id(p) in added}


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
            module.__class__ = vars(module).pop("plain", nn.Linear)
    return out


def save_adapters(folder: Path, model: nn.Module, base: str) -> None:
    """Write the low-rank updates of a model as adapters that `peft` puts on the model as it was.

    Args:
        folder: gets adapter_config.json and adapter_model.safetensors.
        model: with low-rank layers, as `lora` made them.
        base: name or folder of the model without them.

    Raises ModelError for a model without low-rank layers.
    """
    from safetensors.torch import save_file

    library = own_parameters(model)
    found = {
        library[f"{name}.weight"].removesuffix(".weight"): module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, LowRank)
    }
    if not found:
        raise ModelError("The model has no low-rank layers.", "Make them with unlearn.lora, or save the whole model.")
    rank, scale = {(module.a.shape[0], module.scale) for module in found.values()}.pop()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
        "lora_alpha": scale * rank, "lora_dropout": 0.0, "bias": "none", "target_modules": sorted(found),
        "inference_mode": True, "fan_in_fan_out": any(isinstance(one, LowRankConv1D) for one in found.values()),
    }  # fmt: skip
    tensors = {}
    for name, module in found.items():
        for part, value in (("A", module.a), ("B", module.b)):
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = value.detach().cpu().contiguous().clone()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), "utf-8")
    save_file(tensors, folder / "adapter_model.safetensors")
