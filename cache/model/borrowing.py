"""A model in use: in evaluation mode, frozen, its layers called one by one; afterwards it is as it was."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import enough_memory


@contextmanager
def borrowed(model: nn.Module, batch: Mapping[str, torch.Tensor] | None = None) -> Iterator[nn.Module]:
    """The model in evaluation mode with frozen parameters, its layers called one by one: neither as compiled graphs nor
    as the fused paths of torch's transformer layers, both of which run no hooks, nor its experts all in one product.
    On the way out every module's mode and every parameter's requires_grad is what it was.

    batch: what it is run on, for the ResourceError that an allocation which fails inside becomes."""
    modes = [(module, module.training) for module in modules_of(model)]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    fused = torch.backends.mha.get_fastpath_enabled()
    experts = [(config, config._experts_implementation_internal) for config in _configs(model)]
    with enough_memory(*_needed(batch)), _eager():
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for config, _ in experts:
                config._experts_implementation_internal = "eager"
            for module, _ in modes:
                module.training = False
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield model
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for config, implementation in experts:
                config._experts_implementation_internal = implementation
            for module, mode in modes:
                module.training = mode
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


def _needed(batch: Mapping[str, torch.Tensor] | None) -> tuple[str, str]:
    """What a pass over a batch is, in words, and positions that would fit: half of the batch's."""
    if batch is None:
        return "a pass of the model", ""
    first = next(iter(batch.values()))
    count, width = len(first), first.shape[1] if first.ndim == 2 and not first.is_floating_point() else 1
    text = f"a pass of the model over {count} examples of {width} positions on {first.device}"
    return text, f" {count // 2 * width}" if count > 1 else ""


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Every module that a forward pass may run: those of the model's tree, and of the model inside a bridge of
    TransformerLens, some of whose modules (a dropout, for one) are not in the bridge's own tree."""
    inside = [vars(module).get("original_model") for module in model.modules()]
    trees = [model, *(inner for inner in inside if isinstance(inner, nn.Module))]
    return list({id(module): module for tree in trees for module in tree.modules()}.values())


def _configs(model: nn.Module) -> list[Any]:
    """The settings of transformers that say how the experts of a model are run."""
    found = {id(config): config for module in model.modules() if (config := vars(module).get("config")) is not None}
    return [config for config in found.values() if getattr(config, "_experts_implementation_internal", None)]


def _eager() -> AbstractContextManager[Any]:
    """Whatever torch.compile has compiled runs as plain Python; nothing is compiled unless torch._dynamo is loaded."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
