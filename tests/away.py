"""A device of torch that is not the host, on a machine that has none.

Its tensors lie in the host's memory and are marked by their storage, so that derivatives, vmap and hooks work as ever.
They report the device, an operation on tensors of both sides raises as it does on an accelerator, numpy cannot read
them, and `.to(device)` and `.cpu()` copy. JAX stays on the host: what comes from JAX must be moved. The device exists
in the thread that enters `Away`, and in those that it starts meanwhile.
"""

import threading
import types
from contextlib import ExitStack
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAME = "away"
HOST = torch.device("cpu")
MOVES = ("to", "cpu", "type", "cuda")  # methods that may change the side of a tensor
BOTH_SIDES = ("copy_", "_to_copy")  # operations on tensors of both sides


class Away:
    """Inside, the device exists."""

    def __init__(self) -> None:
        if torch._C._get_privateuse1_backend_name() != NAME:
            torch.utils.rename_privateuse1_backend(NAME)
            torch._register_device_module(NAME, _module())
        self.device = torch.device(NAME, 0)
        self.storages: dict[int, StorageWeakRef] = {}  # the reference keeps the number from being used again
        self.inner: dict[int, StorageWeakRef] = {}  # made inside an operation: on the side that they are used
        self.modes = ExitStack()

    def __enter__(self) -> "Away":
        self.start = threading.Thread.run
        start, emulated = self.start, self

        def run(thread: threading.Thread) -> None:
            with _Calls(emulated), _Operations(emulated):
                start(thread)

        threading.Thread.run = run  # type: ignore[method-assign]
        self.modes.enter_context(_Calls(self))
        self.modes.enter_context(_Operations(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self.modes.close()
        threading.Thread.run = self.start  # type: ignore[method-assign]

    def has(self, tensor: Any, those: dict[int, StorageWeakRef] | None = None) -> bool:
        """Whether the tensor is on the device (or one of `those`)."""
        return isinstance(tensor, torch.Tensor) and _storage(tensor) in (self.storages if those is None else those)

    def move(self, tensor: torch.Tensor, those: dict[int, StorageWeakRef] | None = None) -> None:
        """Mark a new tensor as one of the device (or of `those`)."""
        with torch._C.DisableTorchFunction():
            plain = _plain(tensor)
            if plain.layout == torch.strided:
                storage = plain.untyped_storage()
                (self.storages if those is None else those)[storage._cdata] = StorageWeakRef(storage)

    def forget(self, tensor: torch.Tensor) -> None:
        """Unmark a tensor that is on the host."""
        self.storages.pop(_storage(tensor), None)


def _module() -> types.ModuleType:
    """What torch calls of a device when seeds are set."""
    module: Any = types.ModuleType(NAME)
    module.is_available = module._is_in_bad_fork = module.is_initialized = lambda: False
    module.manual_seed = module.manual_seed_all = lambda seed: None
    module.device_count = lambda: 0
    return module


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor under vmap's and grad's."""
    functions = torch._C._functorch
    while functions.is_functorch_wrapped_tensor(tensor):
        tensor = functions.get_unwrapped(tensor)
    return tensor


def _storage(tensor: torch.Tensor) -> int:
    with torch._C.DisableTorchFunction():
        plain = _plain(tensor)
        return plain.untyped_storage()._cdata if plain.layout == torch.strided else 0


class _Calls(TorchFunctionMode):
    """Calls from Python: what names a device, moves a tensor, or reads it."""

    def __init__(self, away: Away) -> None:
        super().__init__()
        self.away = away

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        before, _crossing.called = _crossing.called, getattr(function, "__name__", "")
        try:
            return self._called(function, _crossing.called, arguments, options or {})
        finally:
            _crossing.called = before

    def _called(self, function: Any, name: str, arguments: Any, options: Any) -> Any:
        away = self.away
        first = arguments[0] if arguments else None
        if name == "__get__" and function.__self__ is torch.Tensor.device:
            return away.device if away.has(first) else function(*arguments)
        if function is torch.device:
            return function(*arguments, **options)
        if name in ("numpy", "__array__", "__dlpack__") and away.has(first):
            raise RuntimeError(f"{name}: this tensor {list(first.shape)} is on {NAME}. Use Tensor.cpu() first.")
        named = [value for value in (*arguments[1:], *options.values()) if _is_device(value)]
        if name in MOVES and isinstance(first, torch.Tensor):
            others = [value for value in (*arguments[1:], *options.values()) if isinstance(value, torch.Tensor)]
            there = away.has(others[0] if others else first)
            if named or name == "cpu":
                there = name != "cpu" and torch.device(named[0]).type == NAME
            return self._moved(function, arguments, options, there)
        if not named:
            return function(*arguments, **options)
        there = torch.device(named[0]).type == NAME
        arguments = tuple(HOST if _is_device(value) else value for value in arguments)
        options = {key: HOST if _is_device(value) else value for key, value in options.items()}
        with _crossing:
            found = function(*arguments, **options)
        if there and isinstance(found, torch.Tensor):
            found = found if found is not first else found.clone()
            away.move(found)
        return found

    def _moved(self, function: Any, arguments: Any, options: Any, there: bool) -> Any:
        away, first = self.away, arguments[0]
        before = away.has(first)
        plain = [HOST if _is_device(value) else value for value in arguments[1:]]
        with _crossing:
            found = function(first, *plain, **{k: HOST if _is_device(v) else v for k, v in options.items()})
            if found is first or (before != there and _storage(found) == _storage(first)):
                found = found if before == there else first.clone()
        if there:
            away.move(found)
        if before != there and isinstance(found, torch.Tensor):
            if found.requires_grad and not found.is_leaf:
                found.register_hook(lambda g: self._back(g, before))
            if forward_ad._current_level >= 0 and (tangent := forward_ad.unpack_dual(found).tangent) is not None:
                (away.move if there else away.forget)(tangent)
        return found

    def _back(self, gradient: torch.Tensor, there: bool) -> torch.Tensor:
        """The gradient of what was moved, on the side that it came from."""
        with _crossing:
            found = gradient.clone()
        if there:
            self.away.move(found)
        return found


class _Operations(TorchDispatchMode):
    """Operations, backward ones too: a result is where the operands are, which must be on one side."""

    def __init__(self, away: Away) -> None:
        super().__init__()
        self.away = away

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options, away = options or {}, self.away
        tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, torch.Tensor)]
        name = operation.overloadpacket.__name__
        ours = [tensor for tensor in tensors if away.has(tensor)]
        if ours and name not in BOTH_SIDES and not name.startswith(("index", "_index", "_unsafe_index")):
            wrong = [t for t in tensors if any(t.stride()) and not away.has(t) and not away.has(t, away.inner)]
            if wrong and not _crossing.inside:
                raise RuntimeError(
                    f"{operation}: a tensor {list(wrong[0].shape)} is on the host, others are on {NAME}."
                )
        found = operation(*arguments, **options)
        if all(away.has(tensor, away.inner) for tensor in tensors) and (tensors or name != _crossing.called):
            for tensor in tree_leaves(found):
                if isinstance(tensor, torch.Tensor):
                    away.move(tensor, away.inner)
        into = name == "copy_" and not away.has(arguments[0])
        if ours and not into and not _crossing.inside:
            for tensor in tree_leaves(found):
                if isinstance(tensor, torch.Tensor) and not away.has(tensor):
                    away.move(tensor)
        return found


class _Crossing(threading.local):
    """Inside, results are on the host, to be marked afterwards. called: the function that Python called last."""

    inside, called = 0, ""

    def __enter__(self) -> None:
        self.inside += 1

    def __exit__(self, *error: Any) -> None:
        self.inside -= 1


_crossing = _Crossing()


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cpu", NAME))
