"""What stands for a caller's own function in a key: its source, and the values that it carries and reads."""

import dataclasses
import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import UsageError
from ..model.code import references
from ..model.examples import Examples
from ..model.fingerprint import model_fingerprint, tensor_digest
from ..model.forward import code_of, content_of, is_own
from ..store.keys import canonical, plain

CODE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)  # have their own source


def function_key(function: Callable[..., Any], version: str | None = None) -> Any:
    """The source of a function, and a hash of its defaults, closure, partial arguments, attributes and own globals if
    it has any. Globals are those that it and the functions it calls read, without modules and libraries.

    version: the caller's own name for what the function carries, in place of that hash.

    Raises UsageError, naming `version`, for a value that cannot be hashed or a source that cannot be read.

    >>> def at_rate(lr):
    ...     return lambda model, examples, seed: model if lr == 0 else None
    >>> function_key(at_rate(0.1), version="1") == function_key(at_rate(0.2), version="1")
    True
    """
    source = hashlib.sha256(_source(function, version).encode()).hexdigest()
    if version is not None:
        return {"source": source, "version": version}
    carried = _carried(function, "the training function", ())
    if not carried:
        return source
    return {"source": source, "carried": hashlib.sha256(canonical(carried).encode()).hexdigest()}


def carries(function: Callable[..., Any]) -> bool:
    """Whether a function has defaults, a closure, partial arguments or attributes."""
    return bool(_parts(function))


def _source(function: Any, version: str | None) -> str:
    inner = function
    while isinstance(inner, (functools.partial, types.MethodType)):
        inner = inner.func if isinstance(inner, functools.partial) else inner.__func__
    if not isinstance(inner, (*CODE, type)):
        inner = type(inner)
    try:
        return inspect.getsource(inner.__code__ if hasattr(inner, "__wrapped__") else inner)
    except (OSError, TypeError) as error:
        name = f"{inner.__module__}.{inner.__qualname__}"
        if isinstance(inner, types.BuiltinFunctionType) or version is not None:
            return name
        raise UsageError(
            f"The source of {name} cannot be read, so nothing in a key would say what it does.",
            'Define it in a file, or give Bank(..., version="1") and change it with the function.',
        ) from error


def _parts(function: Any) -> dict[str, Any]:
    """What a callable carries, by name."""
    if isinstance(function, functools.partial):
        inner = {"function": function.func} if carries(function.func) else {}
        return {**inner, "arguments": function.args, "keywords": function.keywords}
    if isinstance(function, types.MethodType):
        return {**_parts(function.__func__), "self": function.__self__}
    if isinstance(function, types.FunctionType):
        own: dict[str, Any] = dict(zip(function.__code__.co_freevars, map(content_of, function.__closure__ or ())))
        own |= {"defaults": function.__defaults__} if function.__defaults__ else {}
        own |= {"keywords": function.__kwdefaults__} if function.__kwdefaults__ else {}
        own |= {"code": function.__code__} if function.__name__ == "<lambda>" else {}  # several may be in one line
        return own | {name: value for name, value in vars(function).items() if name != "__wrapped__"}
    if isinstance(function, (types.BuiltinFunctionType, type)):
        return {}
    slots = [name for kind in type(function).__mro__ for name in getattr(kind, "__slots__", ())]
    found = {name: getattr(function, name) for name in slots if hasattr(function, name)}
    return found | getattr(function, "__dict__", {})


def _globals(function: Any) -> dict[str, Any]:
    """The globals that a function reads: constants, and the code of own functions and classes."""
    while isinstance(function, (functools.partial, types.MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    if not isinstance(function, types.FunctionType):
        return {}
    seen, found = references(function.__code__), dict[str, Any]()
    for name in sorted(seen.names - seen.changed):
        value = function.__globals__.get(name, function)
        if value is function or isinstance(value, types.ModuleType):
            continue
        if isinstance(value, (type, types.FunctionType)):
            if is_own(value):
                found[name] = {"code": code_of(value)}
        elif dataclasses.is_dataclass(value) or is_own(type(value)) or not type(value).__module__.startswith("whence."):
            found[name] = value
    for name, member in sorted(seen.members):
        module = function.__globals__.get(name)
        if isinstance(module, types.ModuleType) and is_own(types.SimpleNamespace(__module__=module.__name__)):
            found[f"{name}.{member}"] = {"code": code_of(getattr(module, member, None))}
    return found


def _carried(function: Any, where: str, seen: tuple[int, ...]) -> dict[str, Any]:
    seen = (*seen, id(function))
    carried = {name: _named(value, f"{name} of {where}", seen) for name, value in _parts(function).items()}
    read = {name: _read(value, f"{name}, read by {where}", seen) for name, value in _globals(function).items()}
    return carried | ({"globals": read} if read else {})


def _read(value: Any, where: str, seen: tuple[int, ...]) -> Any:
    """A global in a key: by content, or by its class's code where it has no content that can be hashed (a logger)."""
    try:
        return _named(value, where, seen)
    except UsageError:
        return {"code": code_of(type(value))}


def _named(value: Any, where: str, seen: tuple[int, ...]) -> Any:
    """A plain form of a value, arrays and functions as hashes."""
    if id(value) in seen:
        return "(itself)"
    if isinstance(value, torch.Tensor):
        return {"tensor": tensor_digest(value)}
    if isinstance(value, np.ndarray) and value.dtype != object:
        data = f"{value.dtype.str}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
        return {"array": hashlib.sha256(data).hexdigest()}
    if isinstance(value, nn.Module):
        return {"model": model_fingerprint(value).hex}
    if isinstance(value, Examples):
        return {"examples": value.fingerprint}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, (type, types.ModuleType)):
        return {"name": f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}"}
    if isinstance(value, types.CodeType):
        return [value.co_code.hex(), value.co_names, _named(value.co_consts, where, seen)]
    if isinstance(value, Mapping):
        items = [[_named(k, where, seen), _named(v, f"{where}[{k!r}]", seen)] for k, v in value.items()]
        return sorted(items, key=canonical)
    if isinstance(value, (list, tuple)):
        return [_named(each, f"{where}[{number}]", seen) for number, each in enumerate(value)]
    if callable(value):
        return {"source": _source(value, None), **_carried(value, where, seen)}
    if dataclasses.is_dataclass(value):
        own = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        return {"class": type(value).__qualname__, "fields": _named(own, where, (*seen, id(value)))}
    try:
        return plain(value, where)
    except UsageError as error:
        raise UsageError(
            f"{where} is a {type(value).__name__}, which cannot be part of a key.",
            'Make it of numbers, text, arrays or tensors, or give Bank(..., version="1") and change it with the value.',
        ) from error
