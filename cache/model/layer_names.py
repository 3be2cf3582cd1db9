"""Which layers a model has: modules of a known kind, and parameters that a module multiplies by itself."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .layers import Layer, Multiplied, Stacked, layer_of
from .stateless import inner_tensors


def layers_in(model: nn.Module) -> Iterator[tuple[str, Any, Layer]]:
    """Name, module and kind of every layer, in the model's order. What stands for a parameter that is multiplied by has
    the parameter's name."""
    for name, module in model.named_modules():
        layer = layer_of(module)
        if layer is not None:
            yield name, module, layer
            continue
        for attribute in _multiplied(module):
            found = _stand_in(module, attribute)
            kind = layer_of(found)
            assert kind is not None
            yield f"{name}.{attribute}" if name else attribute, found, kind


def packed(weight: Tensor) -> bool:
    """Whether a weight is quantised: integers or 8-bit floats, or a tensor that keeps its numbers in such. It is no
    matrix to read, and nothing trains it."""
    inner = inner_tensors(weight)
    if inner:
        return any(packed(tensor) for tensor in inner)
    return not weight.is_floating_point() or weight.element_size() < 2


def packed_layers(model: nn.Module) -> Iterator[str]:
    """Names of the modules whose weight is quantised, whatever their class calls it."""
    for name, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if any("weight" in attribute and packed(tensor) for attribute, tensor in own):
            yield name


def layer_at(model: nn.Module, name: str) -> tuple[Any, Layer]:
    """The layer of this name in `layers_in`."""
    parent, _, attribute = name.rpartition(".")
    owner = model.get_submodule(parent)
    inner = getattr(owner, attribute, None)
    module = _stand_in(owner, attribute) if isinstance(inner, nn.Parameter) else model.get_submodule(name)
    layer = layer_of(module)
    assert layer is not None  # names come from layers
    return module, layer


def _multiplied(module: nn.Module) -> list[str]:
    """Parameters of experts [e ...] and of their router [e d], in a module that says how many experts it has, and of
    the projections of torch's attention."""
    if is_attention(module):
        own = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        return [name for name in own if getattr(module, name) is not None]
    count = _experts(module)
    found = [name for name, p in module.named_parameters(recurse=False) if p.ndim == 3 and len(p) == count]
    if found or count == 0:
        return found
    weight = getattr(module, "weight", None)
    return ["weight"] if isinstance(weight, nn.Parameter) and weight.ndim == 2 and len(weight) == count else []


def _experts(module: nn.Module) -> int:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return next((value for name in names if isinstance(value := getattr(module, name, None), int)), 0)


def is_attention(module: nn.Module) -> bool:
    """Whether this is torch's own attention: a subclass with a forward of its own multiplies as it likes."""
    return isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward


def _stand_in(module: Any, attribute: str) -> Multiplied | Stacked:
    if is_attention(module):
        packed_in = attribute == "in_proj_weight"  # of separate projections the one bias is left out
        return Stacked(getattr(module, attribute), module.in_proj_bias if packed_in else None, 3 if packed_in else 1)
    bias = getattr(module, "bias" if attribute == "weight" else f"{attribute}_bias", None)
    return Multiplied(
        getattr(module, attribute),
        bias if isinstance(bias, nn.Parameter) else None,
        bool(getattr(module, "is_transposed", False)),
    )
