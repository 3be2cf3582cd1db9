"""What a model's forward pass does beside its tensors, as text that is equal in every process.

Of the model's own classes and functions the code counts, with the globals and closures that it reads. Of a library's
classes the name counts and the version, major and minor: torch's major version alone, as its layers keep what they do
from one release to the next. Attributes count by value, but for those that the forward pass itself changes.
"""

import dataclasses
import enum
import functools
import hashlib
import importlib.metadata
import inspect
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import nn

from .bridge import to_host
from .code import code_digest, references
from .stateless import inner_tensors

# an address in memory in a printed module says nothing about the model
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")
INTERNAL = frozenset(vars(nn.Module())) | {"_compiled_call_impl", "_copied_from", "_is_hf_initialized"}
# what accelerate puts on the modules of a model that is on several devices: it moves tensors
MOVING = frozenset({
    "_hf_hook", "_old_forward", "forward", "to", "cuda", "npu", "xpu", "mlu", "musa", "sdaa", "neuron",
})  # fmt: skip
# settings of libraries that change no output, or name where a model came from
VOLATILE = frozenset({
    "name_or_path", "base_model_name_or_path", "model_name", "tokenizer_name",
    "transformers_version", "peft_version", "torch_dtype", "dtype", "device", "device_map",
    "hf_device_map", "n_devices", "seed", "revision", "use_cache", "output_attentions",
    "output_hidden_states", "return_dict", "gradient_checkpointing", "inference_mode",
    "warnings_issued", "generation_config", "id2label", "label2id", "task_specific_params",
    "problem_type", "architectures", "tokenizer", "processor", "processor_class",
    "auto_mapping", "checkpoint_path", "model_path",
})  # fmt: skip
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice, PurePath, torch.Size, torch.dtype)
# objects whose state is no setting
OPAQUE = ("logging", "threading", "_thread", "weakref", "random", "numpy.random", "io", "_io", "contextvars")
DEEPEST = 12


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 over dtype, shape and row-major bytes of one tensor, or over the tensors that it keeps its numbers in."""
    inner = [tensor_digest(each) for each in inner_tensors(tensor)]
    if inner:
        return hashlib.sha256(repr((type(tensor).__name__, tuple(tensor.shape), inner)).encode()).hexdigest()
    value = to_host(tensor.detach()).contiguous()
    digest = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
    if value.numel():
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def forward_of(model: nn.Module) -> str:
    """The module tree, one line a module: its name, class, printed settings and attributes."""
    return "\n".join(_Description(model).lines())


def library_of(module: str | None) -> str | None:
    """The installed library that a Python module belongs to, with its version; None for a user's own code."""
    found = sys.modules.get(module or "")
    path = getattr(found, "__file__", None)
    top = (module or "").partition(".")[0]
    if path is None or top in ("__main__", "__mp_main__"):  # programs are started from libraries too
        return "python" if top in sys.builtin_module_names else None
    places = sysconfig.get_paths()
    if any(path.startswith(places[name]) for name in ("purelib", "platlib")):
        version = getattr(sys.modules.get(top), "__version__", None) or _version(top)
        numbers = str(version).split("+")[0].split(".")
        return f"{top} {'.'.join(numbers[: 1 if top == 'torch' else 2])}"
    return "python" if any(path.startswith(places[name]) for name in ("stdlib", "platstdlib")) else None


@functools.cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _only_moves(hook: Any) -> bool:
    """Whether a hook of accelerate does nothing but move tensors to the device of its module."""
    each = getattr(hook, "hooks", (hook,))
    return all(type(one).__module__ == "accelerate.hooks" and type(one).__name__ == "AlignDevicesHook" for one in each)


class _Description:
    """One description: what has been described already is not described again."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.modules = {id(module): name for name, module in model.named_modules()}
        self.known: dict[int, tuple[Any, str]] = {}  # with the object, so that its id stays its own
        self.open: set[int] = set()
        self.libraries: dict[str | None, str | None] = {}
        self.states: dict[type, frozenset[str]] = {}

    def lines(self) -> Iterator[str]:
        for name, module in self.model.named_modules():
            kind = f"{type(module).__name__}({ADDRESS.sub('', module.extra_repr())})"
            yield f"{name}:{kind} {self.type(type(module))} {self.attributes(module)}"

    def library(self, module: str | None) -> str | None:
        if module not in self.libraries:
            self.libraries[module] = library_of(module)
        return self.libraries[module]

    def own(self, kind: type) -> bool:
        return self.library(kind.__module__) is None

    # modules and classes

    def attributes(self, module: nn.Module) -> str:
        """The plain attributes of a module, without those that its forward pass or its hooks change."""
        kinds = [kind for kind in type(module).__mro__ if kind not in (nn.Module, object)]
        private = all(self.own(kind) for kind in kinds)
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        state = self.state(type(module)).union(
            *(references(function.__code__).stored for hook in hooks for function in _functions(hook))
        )
        left = INTERNAL | state | (MOVING if _only_moves(vars(module).get("_hf_hook")) else frozenset())
        found = {}
        for name, value in vars(module).items():
            if name not in left and _counts(name, value, private):
                found[name] = self.value(value)
        return _text(found)

    def state(self, kind: type) -> frozenset[str]:
        """Attributes that are changed by the forward pass: by `forward` and the methods that it reaches."""
        if kind in self.states:
            return self.states[kind]
        found: set[str] = set()
        reached, waiting = set(), ["forward", "__call__"]
        while waiting:
            name = waiting.pop()
            if name in reached:
                continue
            reached.add(name)
            member = inspect.getattr_static(kind, name, None)
            if name == "__call__" and not self._is_own_function(member):
                continue
            for function in _functions(member):
                seen = references(function.__code__)
                found |= seen.stored
                waiting += seen.own
        self.states[kind] = frozenset(found)
        return self.states[kind]

    def _is_own_function(self, member: Any) -> bool:
        return isinstance(member, types.FunctionType) and self.library(member.__globals__.get("__name__")) is None

    def type(self, kind: type) -> str:
        """A library's class by name and version, an own class by its code and that of its own bases."""
        library = self.library(kind.__module__)
        if library is not None:
            return f"{library} {kind.__module__}.{kind.__qualname__}"

        def describe() -> str:
            found, state = {}, self.state(kind)
            for name, member in vars(kind).items():
                functions = list(_functions(member))
                if functions:
                    found[name] = _text([self.function(each) for each in functions])
                elif not name.startswith("__") and not name.startswith("_abc_") and name not in state:
                    found[name] = self.value(member)
            bases = [self.type(base) for base in kind.__bases__ if base is not object]
            return f"{kind.__qualname__} {_text(bases)} {_text(found)}"

        return self._once(kind, kind.__qualname__, describe)

    # functions

    def function(self, function: types.FunctionType) -> str:
        """A library's function by name, an own one by its code and what it reads."""
        module = function.__globals__.get("__name__")
        if self.library(module) is not None:
            inner = getattr(function, "__wrapped__", None)
            name = f"{module}.{function.__code__.co_name}"
            return f"{name} {self.value(inner)}" if inner is not None else name

        def describe() -> str:
            seen = references(function.__code__)
            given: dict[str, Any] = {}
            if function.__defaults__:
                given["(defaults)"] = function.__defaults__
            if function.__kwdefaults__:
                given["(keywords)"] = function.__kwdefaults__
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
                if name not in seen.changed and name != "__class__":
                    given[f"(closure) {name}"] = content_of(cell)
            for name in seen.names - seen.changed:
                value = function.__globals__.get(name)
                if not isinstance(value, types.ModuleType) and name in function.__globals__:
                    given[name] = value
            for name, member in seen.members:
                value = function.__globals__.get(name)
                if isinstance(value, types.ModuleType) and self.library(value.__name__) is None:
                    given[f"{name}.{member}"] = getattr(value, member, None)
            described = {name: self.value(value) for name, value in given.items() if not _is_state(value)}
            return f"{code_digest(function.__code__)} {_text(described)}"

        return self._once(function, function.__qualname__, describe)

    # values

    def value(self, value: Any) -> str:
        """Any value: by content where it has one, by class where it has none."""
        if isinstance(value, PLAIN) and not isinstance(value, enum.Enum):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, (torch.device, torch.Generator)):
            return type(value).__name__
        if isinstance(value, nn.Module) and id(value) in self.modules:
            return f"module {self.modules[id(value)]}"
        if isinstance(value, type):
            return self.type(value)
        if isinstance(value, types.FunctionType):
            return self.function(value)
        return self._once(value, f"{type(value).__name__} within itself", lambda: self._described(value))

    def _described(self, value: Any) -> str:
        kind = type(value)
        if len(self.open) > DEEPEST:
            return self.type(kind)
        if isinstance(value, torch.Tensor):
            return tensor_digest(value)
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
            content = np.ascontiguousarray(value).tobytes()
            return f"{value.dtype.str} {np.shape(value)} {hashlib.sha256(content).hexdigest()}"
        if isinstance(value, nn.Module):
            tensors = {**dict(nn.Module.named_parameters(value)), **dict(nn.Module.named_buffers(value))}
            return _text([forward_of(value), *(f"{name} {tensor_digest(t)}" for name, t in sorted(tensors.items()))])
        if isinstance(value, enum.Enum):
            return f"{kind.__qualname__}.{value.name}"
        if isinstance(value, types.MethodType):
            return _text([self.value(value.__func__), self.value(value.__self__)])
        if isinstance(value, functools.partial):
            return _text([self.value(part) for part in (value.func, value.args, value.keywords)])
        if isinstance(value, (types.BuiltinFunctionType, types.ModuleType)):
            return f"{getattr(value, '__module__', '')}.{value.__name__}"
        if isinstance(value, Mapping):
            items = [(self.value(key), self.value(each)) for key, each in value.items()]
            return _text(sorted(items))
        if isinstance(value, Set):
            return _text(sorted(self.value(each) for each in value))
        if isinstance(value, (Sequence, np.ndarray)):
            return _text([self.value(each) for each in value])
        return f"{self.type(kind)} {self._fields(value)}"

    def _fields(self, value: Any) -> str:
        """What an object of any other class carries."""
        if type(value).__module__.startswith(OPAQUE):
            return ""
        if dataclasses.is_dataclass(value):
            fields = {each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)}
        elif callable(getattr(value, "to_dict", None)) and not self.own(type(value)):
            fields = _without_volatile(value.to_dict())
        else:
            slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
            fields = {name: getattr(value, name, None) for name in slots} | getattr(value, "__dict__", {})
        private = self.own(type(value))
        return _text({name: self.value(each) for name, each in fields.items() if _counts(name, each, private)})

    def _once(self, value: Any, otherwise: str, describe: Any) -> str:
        """The digest of a description, made once; `otherwise` where it refers to itself."""
        if id(value) in self.known:
            return self.known[id(value)][1]
        if id(value) in self.open:
            return f"({otherwise})"
        self.open.add(id(value))
        try:
            digest = hashlib.sha256(describe().encode()).hexdigest()
        finally:
            self.open.discard(id(value))
        self.known[id(value)] = value, digest
        return digest


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return repr(sorted(value.items(), key=lambda item: str(item[0])))
    return repr(list(value))


def _is_state(value: Any) -> bool:
    """Whether a value is what some forward pass left: a tensor that remembers its graph."""
    return isinstance(value, torch.Tensor) and not value.is_leaf


def _counts(name: str, value: Any, own: bool) -> bool:
    """Whether a field of this name is a setting. Of a library's classes, those that start with _ are not."""
    return not _is_state(value) and name != "device" and (own or not (name.startswith("_") or name in VOLATILE))


def _without_volatile(settings: Any) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    kept = {str(name): each for name, each in settings.items() if name not in VOLATILE}
    return {name: _without_volatile(each) for name, each in kept.items() if not name.startswith("_")}


def content_of(cell: Any) -> Any:
    """What a cell of a closure has; None if nothing was assigned yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _functions(member: Any) -> Iterator[types.FunctionType]:
    """The Python functions of a member of a class: of a method, a property or a decorated one."""
    if isinstance(member, (staticmethod, classmethod, types.MethodType)):
        yield from _functions(member.__func__)
    elif isinstance(member, property):
        for each in (member.fget, member.fset, member.fdel):
            yield from _functions(each)
    elif isinstance(member, (functools.cached_property, functools.partial)):
        yield from _functions(member.func)
    elif isinstance(member, types.FunctionType):
        yield member
        if hasattr(member, "__wrapped__"):
            yield from _functions(member.__wrapped__)


class _OwnCode(_Description):
    """Descriptions of a user's own code; this package's counts as a library's."""

    def __init__(self) -> None:
        super().__init__(nn.Module())

    def library(self, module: str | None) -> str | None:
        top = __name__.partition(".")[0]
        return top if (module or "").partition(".")[0] == top else super().library(module)


def is_own(kind: Any) -> bool:
    """Whether a class or function is the user's own: neither a library's nor this package's."""
    return _OwnCode().library(getattr(kind, "__module__", None)) is None


def code_of(value: Any) -> str:
    """sha256 over what a user's own class, function or object does: its code, and the globals and closures it reads."""
    return hashlib.sha256(_OwnCode().value(value).encode()).hexdigest()
