"""Outputs of named modules and hook points in a forward pass."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .borrowing import borrowed
from .names import full_name


class _Enough(Exception):
    """Every requested hook point has been seen; the rest of the forward pass is not needed."""


def tensor_of(out: Any, name: str) -> Tensor:
    """The activation in what a module returned: a tensor, or the first of a tuple, list or output of transformers.

    Raises ModelError for anything else.
    """
    first = out
    while not isinstance(first, Tensor) and (isinstance(first, (tuple, list)) or hasattr(first, "to_tuple")):
        parts = first.to_tuple() if hasattr(first, "to_tuple") else first
        first = parts[0] if len(parts) else None
    if not isinstance(first, Tensor):
        raise ModelError(
            f"{name} returns a {type(out).__name__}, which does not begin with a tensor.",
            "Choose a hook point that returns a tensor, or a tuple whose first element is one.",
        )
    return first


def outputs_at(model: nn.Module, names: Sequence[str], run: Callable[[], Any]) -> dict[str, Tensor]:
    """Outputs of the named modules (TransformerLens hook points are modules too) while `run()` runs the model,
    without gradients, the forward cut short once all have been seen.

    Raises ModelError for a name that is no module, with near names, or one that is never reached.
    """

    def cut(seen: dict[str, Tensor]) -> None:
        if len(seen) == len(set(names)):
            raise _Enough

    with borrowed(model), torch.no_grad():
        return _watched(model, names, run, cut)


def live_outputs_at(model: nn.Module, names: Sequence[str], run: Callable[[], Any]) -> dict[str, Tensor]:
    """The same with their autograd graph, the model run to its end in its present mode: what is computed from them has
    gradients, which are zero at later layers. Raises ModelError for the names that `outputs_at` refuses."""
    return _watched(model, names, run, lambda seen: None)


def _watched(
    model: nn.Module, names: Sequence[str], run: Callable[[], Any], then: Callable[[dict[str, Tensor]], None]
) -> dict[str, Tensor]:
    """First outputs of the named modules while `run()` runs, `then` called after each."""
    full = {name: full_name(model, name) for name in names}
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: Any, out: Any) -> None:
            seen.setdefault(name, tensor_of(out, name).clone())  # it may be written into later
            then(seen)

        return keep

    with ExitStack() as hooks:
        for name in full:
            hooks.callback(model.get_submodule(full[name]).register_forward_hook(hook(name)).remove)
        with suppress(_Enough):
            run()
    missing = [name for name in names if name not in seen]
    if missing:
        raise ModelError(f"{missing[0]} is never reached in this forward pass.", "Choose another hook point.")
    return {name: seen[name] for name in names}
