"""A function of tensors, traced once and then run as the operations it consists of, without the Python that chose them.

Training a small model spends most of a step on finding out what to do: module code, vmap's rules, the autograd
graph. `Traced` records the operations of one call (`torch.fx`, below autograd and vmap) for each set of shapes and
runs those from then on. What it records is checked against the function on that call's own inputs; where they
differ, or recording fails, the function itself runs. Python that computes something else from call to call without
looking at a tensor (a counter inside a model) is beyond that check.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

SEEN = 3  # calls of one set of shapes before it is worth recording
MOST = 8  # sets of shapes that are recorded
SHORT = 16  # a last axis up to which torch's own kernels on a CPU cost more than their parts (measured; at 31 less)
CLOSE = 1e-3  # of the largest value: rounding in another order of the same sums stays far below


class Traced:
    """`function(*trees of tensors) -> tree of tensors`, recorded. Its inputs must not be kept or written to by it."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.seen: dict[Any, int] = {}
        self.graphs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *inputs: Any) -> Any:
        key = _shapes(inputs)
        if (graph := self.graphs.get(key)) is not None:
            with torch.no_grad():
                return graph(*inputs)
        out = self.function(*inputs)
        self.seen[key] = self.seen.get(key, 0) + 1
        if self.seen[key] == SEEN and len(self.graphs) < MOST:
            graph = _record(self.function, inputs)
            if graph is not None and _agree(graph, inputs, out):
                self.graphs[key] = graph
        return out


def _shapes(inputs: Any) -> Any:
    leaves, tree = tree_flatten(inputs)
    return tuple((leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves), tree


def _record(function: Callable[..., Any], inputs: Any) -> Callable[..., Any] | None:
    """The operations of one call as a callable, or None where they cannot be recorded."""
    from torch.fx.experimental.proxy_tensor import make_fx

    leaves = tree_map(torch.Tensor.detach, inputs)
    try:
        graph = make_fx(function, decomposition_table=PARTS)(*leaves)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError):
        return None
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _agree(graph: Callable[..., Any], inputs: Any, expected: Any) -> bool:
    with torch.no_grad():
        found = graph(*inputs)
    pairs = zip(tree_flatten(found)[0], tree_flatten(expected)[0])
    return all(float((a - b).abs().max()) <= CLOSE * float(b.abs().max().clamp(min=1e-12)) for a, b in pairs)


# --- kernels whose parts are faster on a short last axis --------------------------------------------------


def _long(x: Tensor, dim: int) -> bool:
    return x.device.type != "cpu" or dim % max(x.ndim, 1) != x.ndim - 1 or x.shape[-1] > SHORT


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    if _long(x, dim) or half_to_float:
        return NotImplemented
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    """Softmax in which a row of -inf gives zeros."""
    if _long(x, dim) or (dtype is not None and dtype != x.dtype):
        return NotImplemented
    lowest, tiny = torch.finfo(x.dtype).min, torch.finfo(x.dtype).tiny
    e = (x - x.amax(-1, keepdim=True).clamp(min=lowest)).exp()
    return e / e.sum(-1, keepdim=True).clamp(min=tiny)


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    if _long(x, dim) or half_to_float:
        return NotImplemented
    x = x - x.amax(-1, keepdim=True)
    return x - x.exp().sum(-1, keepdim=True).log()


def _softmax_backward(gradient: Tensor, out: Tensor, dim: int, dtype: torch.dtype) -> Any:
    if _long(out, dim) or dtype != out.dtype:
        return NotImplemented
    product = gradient * out
    return product - out * product.sum(-1, keepdim=True)


def _log_softmax_backward(gradient: Tensor, out: Tensor, dim: int, dtype: torch.dtype) -> Any:
    if _long(out, dim) or dtype != out.dtype:
        return NotImplemented
    return gradient - out.exp() * gradient.sum(-1, keepdim=True)


def _layer_norm(x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    if len(shape) != 1 or weight is not None or bias is not None or _long(x, -1):
        return NotImplemented
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    scale = ((centred * centred).mean(-1, keepdim=True) + eps).rsqrt()
    return centred * scale, mean, scale


_aten = torch.ops.aten
PARTS: dict[Any, Callable[..., Any]] = {
    _aten._softmax.default: _softmax,
    _aten._safe_softmax.default: _safe_softmax,
    _aten._log_softmax.default: _log_softmax,
    _aten._softmax_backward_data.default: _softmax_backward,
    _aten._log_softmax_backward_data.default: _log_softmax_backward,
    _aten.native_layer_norm.default: _layer_norm,
}
