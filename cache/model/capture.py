"""Capture: the inputs of a model's layers and the gradients at their outputs, in one forward and one backward pass.

Hooks live in a context manager; parameters are frozen for the time, so no parameter gradient is computed or
kept; and the model comes back as it was (training mode, requires_grad, hooks), after an exception too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from ..errors import ModelError, NumericalError, near_names
from .layers import layer_of
from .sites import Site, clean_name

Batch = dict[str, Tensor]
Objective = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Captured:
    """One batch seen at the sites.

    value: the objective of each example, [b].
    inputs: site -> a [b s i], the constant 1 of the bias appended; calls and tied modules joined along s.
    grads: site -> g [b s o], gradient of the example's objective with respect to the layer's output.
    The gradient of example b with respect to the site's weight is sum over s of g[b s]^T a[b s], [o i].
    """

    value: Tensor
    inputs: dict[str, Tensor]
    grads: dict[str, Tensor]


@dataclass
class _Call:
    module: str
    x: Tensor
    shape: tuple[int, ...]
    g: Tensor | None = None


@contextmanager
def borrowed(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode with frozen parameters; on the way out every module's mode and every
    parameter's requires_grad is what it was."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield model
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def capture(model: nn.Module, sites: Sequence[Site], batch: Batch, objective: Objective) -> Captured:
    """Run `objective(model, batch) -> [b]` forward and backward once and return what the sites saw.

    Raises ModelError if a site is never called or a layer's rows cannot be assigned to examples;
    NumericalError (with the example ids) if the objective is not finite.

    >>> seen = capture(model, find_sites(model, quiet=True), train.batch([0, 1]), task.loss)
    >>> seen.inputs["2"].shape, seen.grads["2"].shape
    (torch.Size([2, 1, 9]), torch.Size([2, 1, 3]))
    """
    with borrowed(model), torch.enable_grad():
        calls, value = _run(model, sites, batch, objective)
        if not value.requires_grad:
            raise ModelError(
                "The objective does not depend on any of the sites.",
                "Choose sites that the loss passes through (an unused copy of a layer never is).",
            )
        torch.autograd.backward(value.sum())
    seen = _rows(model, sites, calls, value.detach())
    _check_finite(seen, batch)
    return seen


def finite(seen: Captured) -> Bool[Tensor, " b"]:
    """Whether an example's objective and its output gradients at every site are finite."""
    sums = [g.flatten(1).sum(1, dtype=torch.float64) for g in seen.grads.values()]
    return torch.isfinite(torch.stack([seen.value.double(), *sums])).all(0)


def nonfinite(model: nn.Module, sites: Sequence[Site], batch: Batch, objective: Objective) -> Any:
    """Bool [b]: the examples whose objective, or gradient of it at a site, is NaN or infinite. (Examples are taken as
    not disturbing one another, which layers that mix a batch would break.)"""
    with borrowed(model), torch.enable_grad():
        calls, value = _run(model, sites, batch, objective)
        torch.autograd.backward(value.nan_to_num(0.0, 0.0, 0.0).sum())
    return (~finite(_rows(model, sites, calls, value.detach()))).cpu().numpy()


def _run(model: nn.Module, sites: Sequence[Site], batch: Batch, objective: Objective) -> tuple[list[_Call], Tensor]:
    """Forward under hooks, in the order of the calls."""
    calls: list[_Call] = []
    with ExitStack() as hooks:
        for name in dict.fromkeys(name for site in sites for name in site.modules):
            handle = _runner(model, name).register_forward_hook(_tap(calls, name, _batch_size(batch)))
            hooks.callback(handle.remove)
        value = objective(model, batch)
    return calls, value


def _runner(model: nn.Module, name: str) -> nn.Module:
    """The module that runs this layer: itself, but for TransformerLens normalisations, whose bridge computes with
    the weights of the layer it wraps and never calls it."""
    parent = model.get_submodule(name.rpartition(".")[0])
    return parent if type(parent).__name__ == "NormalizationBridge" else model.get_submodule(name)


def _tap(calls: list[_Call], name: str, size: int) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        x = args[0].detach()
        if out.shape[0] == 1 and size > 1 and isinstance(module, nn.Embedding):
            # one table of positions for the whole batch: give every example its own
            out, x = out.expand(size, *out.shape[1:]), x.reshape(1, -1).expand(size, -1)
        if not out.requires_grad:  # the first site on its path starts the graph
            out = out.detach().requires_grad_().clone()
        call = _Call(name, x, tuple(out.shape))
        calls.append(call)
        out.register_hook(lambda g: setattr(call, "g", g.detach()))
        return out

    return hook


def layer_calls(
    model: nn.Module, sites: Sequence[Site], batch: Batch, objective: Objective
) -> list[tuple[str, Tensor, Tensor]]:
    """Every call of the sites' modules in one forward and one backward pass of `objective(model, batch) -> [b]`, in
    order: the module's name, its input, and the gradient at its output, both in the shapes of the call. A call that the
    objective does not depend on is left out."""
    with borrowed(model), torch.enable_grad():
        calls, value = _run(model, sites, batch, objective)
        torch.autograd.backward(value.sum())
    return [(call.module, call.x, call.g) for call in calls if call.g is not None]


def _batch_size(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _rows(model: nn.Module, sites: Sequence[Site], calls: list[_Call], value: Tensor) -> Captured:
    size = len(value)
    inputs: dict[str, Tensor] = {}
    grads: dict[str, Tensor] = {}
    read: dict[Any, Tensor] = {}
    for site in sites:
        module = model.get_submodule(site.modules[0])
        layer = layer_of(module)
        assert layer is not None
        parts = []
        for call in (call for call in calls if call.module in site.modules):
            user = model.get_submodule(call.module)
            kind = layer_of(user)
            assert kind is not None
            g = torch.zeros(call.shape, dtype=value.dtype, device=value.device) if call.g is None else call.g
            a, g = kind.rows(user, _by_example(call.x, size, site), _by_example(g, size, site), site.group)
            if kind.kind == "embedding" and layer.kind != "embedding":  # tied: the table is the linear's transpose
                a, g = F.pad(g, (0, site.shape[1] - g.shape[-1])), a
            if site.kind == "linear":  # layers that read the same tensor share one a
                a = read.setdefault((call.x.data_ptr(), call.x.shape, call.x.stride(), a.shape), a)
            parts.append((a, g))
        if not parts:
            raise ModelError(
                f"The site {site.name} was never called on this batch.",
                "Leave it out (exclude=...): the model does not use this layer in its forward pass.",
            )
        inputs[site.name] = parts[0][0] if len(parts) == 1 else torch.cat([a for a, _ in parts], dim=1)
        grads[site.name] = parts[0][1] if len(parts) == 1 else torch.cat([g for _, g in parts], dim=1)
    return Captured(value, inputs, grads)


def _by_example(t: Tensor, size: int, site: Site) -> Tensor:
    """Rows of layers that are called on [b*s, d] as [b, s, d]; others unchanged."""
    if len(t) == size:
        return t
    if t.ndim == 2 and len(t) % size == 0 and len(t) > 0:
        return t.reshape(size, len(t) // size, -1)
    raise ModelError(
        f"{site.name} is called on a tensor of shape {tuple(t.shape)} for a batch of {size} examples.",
        "Its rows cannot be assigned to examples. Leave the site out (exclude=...).",
    )


def _check_finite(seen: Captured, batch: Batch) -> None:
    bad = ~finite(seen)
    if bad.any():  # the one synchronisation of a batch
        ids = batch["example_id"][bad].tolist() if "example_id" in batch else bad.nonzero().flatten().tolist()
        what = "gradient" if torch.isfinite(seen.value).all() else "objective"
        raise NumericalError(
            f"The {what} is not finite for {len(ids)} examples of this batch: ids {ids[:5]}.",
            "Look at these examples (empty, all masked, out of range?) or leave them out (Examples.without).",
        )


def called_sites(model: nn.Module, sites: Sequence[Site], batch: Batch, objective: Objective) -> list[str]:
    """Names of the sites whose modules run at all on this batch (one forward, no gradient)."""
    seen: set[str] = set()
    with ExitStack() as hooks, borrowed(model), torch.no_grad():
        for name in {name for site in sites for name in site.modules}:
            handle = _runner(model, name).register_forward_hook(lambda *_, name=name: seen.add(name))
            hooks.callback(handle.remove)
        objective(model, batch)
    return [site.name for site in sites if seen & set(site.modules)]


class _Enough(Exception):
    """Every requested hook point has been seen; the rest of the forward pass is not needed."""


def hook_points(model: nn.Module) -> dict[str, str]:
    """Clean name -> full name of every module whose output can be captured.

    >>> sorted(hook_points(model))
    ['0', '1', '2']
    """
    return {clean_name(name): name for name, _ in reversed(list(model.named_modules())) if name}


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
    points, modules = hook_points(model), dict(model.named_modules())
    full = {}
    for name in names:
        full[name] = name if name in modules else points.get(name, "")
        if not full[name]:
            raise ModelError(f"The model has no module or hook point {name!r}.", near_names(name, list(points)))
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: Any, out: Any) -> None:
            seen.setdefault(name, (out[0] if isinstance(out, tuple) else out).clone())  # it may be written into later
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


def position_mask(positions: Bool[Tensor, "b s"], rows: int) -> Bool[Tensor, "b r"]:
    """The task's position mask for a site with `rows` rows per example: repeated calls repeat it; a site whose
    rows are not the task's positions (patches, one vector) counts all of them."""
    size, width = positions.shape
    if rows % width == 0 and width > 1:
        return positions.repeat(1, rows // width)
    return torch.ones(size, rows, dtype=torch.bool, device=positions.device)
