"""The calls of a model's layers in a pass: what each was given, and the gradient at what it returned.

Layers that are modules are seen by hooks. Parameters that a module multiplies by itself (fused experts, routers, the
projections of torch's attention) are seen in torch's own functions, by the memory that the factor lies in.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ModelError
from .attention import split
from .layer_names import is_attention, layer_at
from .layers import Multiplied, Stacked
from .sites import Site


@dataclass
class Call:
    """module: the layer's name. shape: of its output. group: the one whose weight was used; None for all of them.
    stacked: the first axis of x and g is the group."""

    module: str
    x: Tensor
    shape: tuple[int, ...]
    group: int | None = None
    stacked: bool = False
    g: Tensor | None = None

    def of(self, site: Site) -> bool:
        return self.module in site.modules and self.group in (None, site.group)


@dataclass
class Calls:
    """The calls of a pass. Those without a graph (under `no_grad`, or in a checkpointed block, which is run again with
    one while the backward pass is under way) count only for modules that have no other."""

    size: int
    live: list[Call] = field(default_factory=list)
    dead: list[Call] = field(default_factory=list)
    backward: bool = False
    tables: bool = True  # whether tables without a batch axis are given one
    spread: bool = False  # whether one was

    def of(self, site: Site) -> list[Call]:
        return [call for call in self.live if call.of(site)] or [call for call in self.dead if call.of(site)]

    def add(self, call: Call, out: Tensor) -> Tensor:
        """Keeps a call; returns its output, from which a graph leads on where one is kept."""
        if torch._C._functorch.is_functorch_wrapped_tensor(out):
            raise ModelError(
                f"{call.module} is called inside a transformed function (torch.vmap, torch.func.grad), where its calls "
                "cannot be read.",
                f"Call it on the whole batch, or leave it out: find_sites(model, exclude={call.module!r}).",
            )
        if not torch.is_grad_enabled():
            self.dead.append(call)
            return out
        if not out.requires_grad:  # the first site on its path starts the graph
            out = out.detach().requires_grad_().clone()
        if self.backward and any((each.module, each.group) == (call.module, call.group) for each in self.live):
            return out  # computed again from a checkpoint: the gradient reaches the first computation
        self.live.append(call)
        out.register_hook(lambda g: setattr(call, "g", g.detach()))
        return out


class Ambiguous(Exception):
    """An embedding was called on as many numbers as there are examples: one per example, or one table for all."""


@contextmanager
def tapped(model: nn.Module, sites: Sequence[Site], calls: Calls, certain: bool = False) -> Iterator[None]:
    """The calls of the sites' layers inside are kept. `certain`: a table of as many rows as examples is theirs."""
    names = dict.fromkeys(name for site in sites for name in site.modules)
    layers = {name: layer_at(model, name)[0] for name in names}
    factors = {name: layer for name, layer in layers.items() if isinstance(layer, (Multiplied, Stacked))}
    owners = {id(owner): owner for name in names if is_attention(owner := model.get_submodule(name.rpartition(".")[0]))}
    with ExitStack() as stack:
        for owner in owners.values():
            stack.enter_context(split(owner))
        for name in names.keys() - factors.keys():
            hook = runner(model, name).register_forward_hook(_tap(calls, name, certain), with_kwargs=True)
            stack.callback(hook.remove)
        if factors:
            stack.enter_context(_Products(calls, factors))
        yield


def runner(model: nn.Module, name: str) -> nn.Module:
    """The module that runs this layer: itself, but for TransformerLens normalisations, whose bridge computes with
    the weights of the layer it wraps and never calls it."""
    parent = model.get_submodule(name.rpartition(".")[0])
    return parent if type(parent).__name__ == "NormalizationBridge" else model.get_submodule(name)


def _tap(calls: Calls, name: str, certain: bool) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        x = (args[0] if args else next(iter(kwargs.values()))).detach()
        if isinstance(module, nn.Embedding) and calls.tables:
            rows = x
            x, out = _spread(x, out, calls.size, certain)
            calls.spread |= x is not rows
        return calls.add(Call(name, x, tuple(out.shape)), out)

    return hook


def _spread(x: Tensor, out: Tensor, size: int, certain: bool) -> tuple[Tensor, Tensor]:
    """One table of positions for the whole batch, [t] or [1 t]: every example gets its own."""
    if size > 1 and x.ndim == 2 and len(x) == 1:
        return x.expand(size, -1), out.expand(size, *out.shape[1:])
    if size > 1 and x.ndim == 1 and len(x) == size and not certain:
        raise Ambiguous
    if x.ndim == 1 and len(x) != size:
        return x.expand(size, -1), out.expand(size, *out.shape)
    return x, out


class _Products(TorchFunctionMode):
    """Products x W with a factor W that is one of these parameters, or one expert of it."""

    LINEAR = (F.linear,)  # by the transpose of its second argument
    PRODUCTS = (*LINEAR, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm)

    def __init__(self, calls: Calls, factors: dict[str, Multiplied | Stacked]):
        super().__init__()
        self.calls = calls
        self.by_memory = {factor.weight.untyped_storage().data_ptr(): name for name, factor in factors.items()}
        self.factors = factors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in self.PRODUCTS or len(args) < 2 or not all(isinstance(each, Tensor) for each in args[:2]):
            return out
        x, w = args[:2]
        name = self.by_memory.get(w.untyped_storage().data_ptr())
        return out if name is None else self._added(name, func in self.LINEAR, x, w, out)

    def _added(self, name: str, linear: bool, x: Tensor, w: Tensor, out: Tensor) -> Tensor:
        factor = self.factors[name]
        whole, transposed = factor.weight, factor.transposed
        rows = len(whole) // factor.groups if isinstance(factor, Stacked) else whole.shape[-2]
        as_stored = w.stride()[-2:] == whole.stride()[-2:] and w.shape[-2:] == (rows, whole.shape[-1])
        if (linear == as_stored) == transposed:  # a product with the other side: not a linear map by this parameter
            return out
        call = Call(name, x.detach(), tuple(out.shape), stacked=w.ndim == 3)
        if w.numel() < whole.numel() and w.ndim == 2:  # one of its groups
            call.group = (w.storage_offset() - whole.storage_offset()) // w.numel()
        return self.calls.add(call, out)
