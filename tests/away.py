"""A device of torch that is not the host, on a machine that has none.

A tensor there is a wrapper around a tensor of the host. An operation on tensors of both sides raises, as it does on an
accelerator, numpy cannot read it, and `.to(device)` and `.cpu()` copy. JAX stays on the host: what comes from JAX must
be moved.
"""

import threading
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "away"
_registered = threading.Event()
COPIES = ("_to_copy", "copy_")  # the operations that may have tensors of both sides


class AwayTensor(torch.Tensor):
    """A tensor of the other device: `inner` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "AwayTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), options=None):
        return _run(operation, arguments, options or {})


class Away(TorchDispatchMode):
    """Inside, the device exists."""

    def __init__(self) -> None:
        if not _registered.is_set():
            _setup_privateuseone_for_python_backend(NAME)
            _registered.set()
        super().__init__()

    def __enter__(self) -> Any:
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=...)` copies from the host, visibly
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self.before)
        super().__exit__(*error)

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        return _run(operation, arguments, options or {})


def _run(operation: Any, arguments: Any, options: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, AwayTensor)]
    name, device = operation.overloadpacket.__name__, options.get("device")
    if ours and name not in COPIES:
        wrong = [t for t in tensors if not isinstance(t, AwayTensor) and t.ndim]
        if wrong and not name.startswith("index"):
            raise RuntimeError(f"{operation}: a tensor {list(wrong[0].shape)} is on the host, others are on {NAME}.")
    result_is_away = bool(ours) if device is None else torch.device(device).type == NAME
    if name == "copy_":
        result_is_away = isinstance(arguments[0], AwayTensor)
    if device is not None:
        options = {**options, "device": torch.device("cpu")}
    found = operation(*tree_map(_inner, arguments), **tree_map(_inner, options))
    known = {id(tensor.inner): tensor for tensor in ours}
    return _wrapped(found, known, result_is_away)


def _wrapped(found: Any, known: dict[int, "AwayTensor"], away: bool) -> Any:
    def of(value: Any) -> Any:
        if not away or not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else AwayTensor(value)

    return tree_map(of, found)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, AwayTensor) else value
