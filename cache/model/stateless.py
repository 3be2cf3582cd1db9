"""A model as a function of its parameters, and copies of models."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers that torch puts around a whole model: `torch.compile`, DataParallel,
    DistributedDataParallel. Its forward has the signature and the layers that the wrapper hides.

    >>> unwrapped(nn.DataParallel(model)) is model
    True
    """
    parallel = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    inner = getattr(model, "module" if parallel else "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def own_type(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and type that a model computes in: of its first parameter that is no packed integers."""
    own: list[Tensor] = [*nn.Module.parameters(model)] or [torch.zeros(0)]
    return own[0].device, next((p.dtype for p in own if p.is_floating_point() and p.element_size() > 1), own[0].dtype)


def devices_of(model: nn.Module) -> list[torch.device]:
    """Where the model's parameters are, the first one's device first."""
    return list(dict.fromkeys(p.device for p in nn.Module.parameters(model)))


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, in which sums and small steps are lost; other types as they are."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def widened(tensor: Tensor) -> Tensor:
    """A tensor in half precision in float32, another as it is."""
    return tensor.to(wide(tensor.dtype))


def inner_tensors(tensor: Any) -> list[Tensor]:
    """The tensors that a tensor keeps its numbers in, having no memory itself (quantised and sharded ones do)."""
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]] if _is_outer(tensor) else []


def _is_outer(tensor: Any) -> bool:
    return hasattr(tensor, "__tensor_flatten__")


def memory_of(tensor: Tensor) -> int:
    """What tensors that share memory have in common; 0 for one that has none."""
    return 0 if _is_outer(tensor) else tensor.untyped_storage().data_ptr()


def distinct(tensors: Iterable[Tensor]) -> int:
    """How many different numbers these tensors have: what several of them share in memory counts once."""
    by_storage: dict[int, list[Tensor]] = {}
    for tensor in {id(t): t for t in tensors}.values():
        by_storage.setdefault(memory_of(tensor) or -id(tensor), []).append(tensor)
    return sum(_numbers(sharing) for sharing in by_storage.values())


def _numbers(sharing: list[Tensor]) -> int:
    if len(sharing) == 1:
        return sharing[0].numel()
    size = max(t.untyped_storage().nbytes() // t.element_size() for t in sharing)
    seen = torch.zeros(size, dtype=torch.bool)
    for tensor in sharing:
        seen.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
    return int(seen.sum())


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's parameters by their place in the module tree, which `torch.func.functional_call` takes.
    (TransformerLens bridges override the method of this name with other names.)"""
    return dict(nn.Module.named_parameters(model))


def call_with(module: nn.Module, tensors: Mapping[str, Tensor], args: tuple[Any, ...]) -> Any:
    """`torch.func.functional_call` that restores the module: torch's own puts parameters back in the order in which it
    took them, so a parameter that is reached by several names (as in TransformerLens bridges) keeps the given tensor.
    """
    own = [(part, dict(part._parameters), dict(part._buffers)) for part in module.modules()]
    try:
        return functional_call(module, dict(tensors), args)
    finally:
        for part, parameters, buffers in own:
            part._parameters.update(parameters)
            part._buffers.update(buffers)


def stateless(function: Callable[..., Any], model: nn.Module) -> Callable[..., Any]:
    """`function(model, *args)` as a function `(tensors, *args)` of the model's parameters and buffers by name. The
    model's own tensors are used for names that are not given, and are as they were after the call.

    `stateless(task.loss, model)(named_parameters(model), batch)` is `task.loss(model, batch)`.
    """
    bound = _Bound(model, function)
    return lambda tensors, *args: call_with(bound, {f"model.{name}": t for name, t in tensors.items()}, args)


class _Bound(nn.Module):
    """Makes `function(model, ...)` the forward of a module."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *args: Any) -> Any:
        return self.function(self.model, *args)


def _plain(value: Tensor) -> Tensor:
    """The numbers of a tensor that a forward pass left behind, without its graph and its transformations."""
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    return value.detach().clone()


class _Source:
    """The module that a copy was taken from: kept alive, and never copied itself."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Source":
        return self


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model whose library stores things in its modules: tensors of the last forward, which torch
    refuses to copy while they remember their graph or a transformation (`jvp`), are copied without it; hooks are
    shared with the original, to which they may point, so a model with hooks lives as long as its copy."""
    parts = list(model.modules())
    kept = [v for part in parts for v in vars(part).values() if isinstance(v, Tensor)]
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    plain = {id(value): _plain(value) for value in kept if wrapped(value) or not value.is_leaf}
    out = copy.deepcopy(model, plain)
    if any(part._forward_pre_hooks or part._forward_hooks for part in parts):
        out.__dict__.setdefault("_copied_from", _Source(model))
    return out
