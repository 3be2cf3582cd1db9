"""Capture: the inputs of a model's layers and the gradients at their outputs, in one forward and one backward pass.

Hooks live in a context manager; parameters are frozen for the time, so no parameter gradient is computed or
kept; and the model comes back as it was (training mode, requires_grad, hooks), after an exception too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from ..errors import ModelError, NumericalError
from .borrowing import borrowed
from .calls import Ambiguous, Call, Calls, runner, tapped
from .layer_names import layer_at
from .layers import layer_of
from .sites import Site
from .stateless import unwrapped

Batch = dict[str, Tensor]
Objective = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Captured:
    """One batch seen at the sites.

    value: the objective of each example, [b].
    inputs: site -> a [b s i], the constant 1 of the bias appended; calls and tied modules joined along s.
    grads: site -> g [b s o], gradient of the example's objective with respect to the layer's output.
    weights: site -> [b s], 1 for a row that counts in moments, else 0; only for sites whose rows are no positions of
        the task (experts: positions that reach them and that the objective depends on; learned vectors).
    The gradient of example b with respect to the site's weight is sum over s of g[b s]^T a[b s], [o i].
    """

    value: Tensor
    inputs: dict[str, Tensor]
    grads: dict[str, Tensor]
    weights: dict[str, Tensor] = field(default_factory=dict)


def capture(model: nn.Module, sites: Sequence[Site], batch: Batch, objective: Objective) -> Captured:
    """Run `objective(model, batch) -> [b]` forward and backward once and return what the sites saw.

    Raises ModelError if a site is never called or a layer's rows cannot be assigned to examples;
    NumericalError (with the example ids) if the objective is not finite.

    >>> seen = capture(model, find_sites(model, quiet=True), train.batch([0, 1]), task.loss)
    >>> seen.inputs["2"].shape, seen.grads["2"].shape
    (torch.Size([2, 1, 9]), torch.Size([2, 1, 3]))
    """
    model = unwrapped(model)
    with borrowed(model, batch):
        seen = _seen(model, sites, batch, objective, lambda value: value)
    _check_finite(seen, batch)
    return seen


def _seen(
    model: nn.Module, sites: Sequence[Site], batch: Batch, objective: Objective, of: Callable[[Tensor], Tensor]
) -> Captured:
    """One forward and one backward pass of the sum of `of(objective)`, in a borrowed model; one for each example where
    the rows of a site cannot be assigned to examples otherwise."""
    size = _batch_size(batch)
    if any(site.alone for site in sites):
        return _joined([_passes(model, sites, batch_row(batch, n), objective, of) for n in range(size)], sites)
    try:
        return _passes(model, sites, batch, objective, of)
    except Ambiguous:  # with one example more, a table for all has another length than the batch
        seen = _passes(model, sites, one_more(batch), objective, of, certain=True)
        first: dict[int, Tensor] = {}  # what sites share stays shared
        inputs = {name: first.setdefault(id(a), a[:size]) for name, a in seen.inputs.items()}
        return Captured(seen.value[:size], inputs, {name: g[:size] for name, g in seen.grads.items()})


def batch_row(batch: Batch, row: int) -> Batch:
    """One example of a batch, as wide as the batch."""
    size = _batch_size(batch)
    return {name: value[row : row + 1] if len(value) == size else value for name, value in batch.items()}


def cut_short(batch: Batch, width: int) -> Batch:
    """A batch of this width without its last position."""
    return {name: v[:, :-1] if v.ndim > 1 and v.shape[1] == width else v for name, v in batch.items()}


def _joined(each: Sequence[Captured], sites: Sequence[Site]) -> Captured:
    """Examples that ran one at a time, as a batch: experts' rows are filled up with zeros."""
    inputs: dict[str, Tensor] = {}
    grads: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    shared: dict[tuple[int, ...], Tensor] = {}  # what sites share stays shared
    for site in sites:
        a, g = ([getattr(seen, part)[site.name] for seen in each] for part in ("inputs", "grads"))
        if site.routed:
            rows = row_bucket(max(x.shape[1] for x in a))
            a, g = ([F.pad(t, (0, 0, 0, rows - t.shape[1])) for t in part] for part in (a, g))
            inputs[site.name] = torch.cat(a)
        else:
            key = tuple(map(id, a))
            inputs[site.name] = shared[key] if key in shared else shared.setdefault(key, torch.cat(a))
        grads[site.name] = torch.cat(g)
        if site.alone:
            ones = torch.ones_like(grads[site.name][..., 0])
            reached = inputs[site.name].any(-1) & grads[site.name].any(-1)
            weights[site.name] = ones * reached if site.routed else ones
    return Captured(torch.cat([seen.value for seen in each]), inputs, grads, weights)


def row_bucket(rows: int) -> int:
    """The rows that an expert's are filled up to: a power of two from 8 on, so that few shapes occur.

    >>> row_bucket(3), row_bucket(9)
    (8, 16)
    """
    return max(8, 1 << (rows - 1).bit_length())


def one_more(batch: Batch) -> Batch:
    """The batch with its last example once more."""
    size = _batch_size(batch)
    return {name: torch.cat([value, value[-1:]]) if len(value) == size else value for name, value in batch.items()}


def _passes(
    model: nn.Module,
    sites: Sequence[Site],
    batch: Batch,
    objective: Objective,
    of: Callable[[Tensor], Tensor],
    certain: bool = False,
) -> Captured:
    calls, value = _traced(model, sites, batch, objective, of, certain)
    return _on_one_device(_rows(model, sites, calls, value.detach(), batch, objective))


def _on_one_device(seen: Captured) -> Captured:
    """Everything where the objective is, of a model on several devices. What sites share stays shared."""
    kinds = seen.inputs, seen.grads, seen.weights
    distinct = {id(tensor): tensor for parts in kinds for tensor in parts.values()}
    moved = {key: tensor.to(seen.value.device) for key, tensor in distinct.items()}
    return Captured(seen.value, *({name: moved[id(tensor)] for name, tensor in parts.items()} for parts in kinds))


def _traced(
    model: nn.Module,
    sites: Sequence[Site],
    batch: Batch,
    objective: Objective,
    of: Callable[[Tensor], Tensor],
    certain: bool,
    spread: bool = True,
) -> tuple[Calls, Tensor]:
    """The calls of the sites' modules, with the gradients at their outputs, and the objective. A model that cannot be
    run where its tables are spread over the batch is run again with them as they are."""
    for started in (False, True):  # a checkpointed block has gradients only if its input does
        calls = Calls(_batch_size(batch), tables=spread and not any(site.alone for site in sites))
        value: Tensor | None = None
        with torch.enable_grad(), ExitStack() as hooks:
            hooks.enter_context(tapped(model, sites, calls, certain))
            if started:
                hooks.enter_context(graph_from_the_first_layer(model))
            try:
                value = objective(model, batch)
                _check_value(value, calls.size)
            except Ambiguous:
                raise
            except Exception:
                if not calls.spread:
                    raise
                value = None
                break
            calls.backward = True
            if value.requires_grad:
                torch.autograd.backward(of(value).sum())
        called = {call.module for call in calls.live}
        if all(called & set(site.modules) or site.routed for site in sites):
            break
    if value is None:
        return _traced(model, sites, batch, objective, of, certain, spread=False)
    if not value.requires_grad and calls.dead and not calls.live:
        raise ModelError(
            "The model's forward pass runs its layers without a graph, so nothing has a gradient.",
            "Take torch.no_grad, torch.inference_mode and .detach() out of forward and of the task's loss.",
        )
    if not value.requires_grad:
        raise ModelError(
            "The objective does not depend on any of the sites.",
            "Choose sites that the loss passes through (an unused copy of a layer never is).",
        )
    return calls, value


def _check_value(value: Any, size: int) -> None:
    if not isinstance(value, Tensor) or value.shape != (size,):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ModelError(
            f"The task's objective is {shape} for a batch of {size} examples; it must be one number per example.",
            "Do not average or sum over the batch in the task, nor in the model.",
        )


@contextmanager
def graph_from_the_first_layer(model: nn.Module) -> Iterator[None]:
    """The first layer on every path has an output that requires a gradient, as in training, whatever is frozen."""

    def start(module: nn.Module, args: Any, out: Any) -> Any:
        if isinstance(out, Tensor) and out.is_floating_point() and not out.requires_grad and torch.is_grad_enabled():
            return out.detach().requires_grad_().clone()
        return None

    with ExitStack() as hooks:
        for module in model.modules():
            if layer_of(module) is not None:
                hooks.callback(module.register_forward_hook(start).remove)
        yield


def finite(seen: Captured) -> Bool[Tensor, " b"]:
    """Whether an example's objective and its output gradients at every site are finite."""
    sums = [g.flatten(1).sum(1, dtype=torch.float64) for g in seen.grads.values()]
    return torch.isfinite(torch.stack([seen.value.double(), *sums])).all(0)


def nonfinite(model: nn.Module, sites: Sequence[Site], batch: Batch, objective: Objective) -> Any:
    """Bool [b]: the examples whose objective, or gradient of it at a site, is NaN or infinite. (Examples are taken as
    not disturbing one another, which layers that mix a batch would break.)"""
    model = unwrapped(model)
    with borrowed(model, batch):
        seen = _seen(model, sites, batch, objective, lambda value: value.nan_to_num(0.0, 0.0, 0.0))
    return (~finite(seen)).cpu().numpy()


def layer_calls(model: nn.Module, sites: Sequence[Site], batch: Batch, objective: Objective) -> list[Call]:
    """Every call of the sites' layers in one forward and one backward pass of `objective(model, batch) -> [b]`, in
    order; its input x and the gradient g at its output have the shapes of the call, the example first. A call that the
    objective does not depend on is left out.

    Raises ModelError for sites whose rows are no positions of the batch."""
    model, size = unwrapped(model), _batch_size(batch)
    alone = [s.name for s in sites if s.alone]
    if alone:
        raise ModelError(
            f"The rows of {len(alone)} sites are no positions of the text: {', '.join(alone[:3])}.",
            'Score by output token (by="output"), or fit without these sites.',
        )
    with borrowed(model, batch):
        try:
            calls, _ = _traced(model, sites, batch, objective, lambda value: value, certain=False)
        except Ambiguous:
            more = one_more(batch)
            calls, _ = _traced(model, sites, more, objective, lambda value: value, certain=True)
    places = {name: site for site in sites for name in site.modules}

    def own(rows: Tensor, site: Site) -> Tensor:
        rows = _example_first(rows, site)
        return rows[: len(rows) // calls.size * size] if calls.size > size else rows

    found = [(call, places[call.module]) for call in calls.live]
    return [replace(call, x=own(call.x, site), g=own(call.g, site)) for call, site in found if call.g is not None]


def _batch_size(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _rows(
    model: nn.Module, sites: Sequence[Site], calls: Calls, value: Tensor, batch: Batch, objective: Objective
) -> Captured:
    size = len(value)
    inputs: dict[str, Tensor] = {}
    grads: dict[str, Tensor] = {}
    read: dict[Any, Tensor] = {}
    places = _Places(model, sites, batch, objective)
    for site in sites:
        layer = layer_at(model, site.modules[0])[1]
        parts = []
        for number, call in enumerate(calls.of(site)):
            user, kind = layer_at(model, call.module)
            x, g = call.x, call.g
            g = torch.zeros(call.shape, dtype=value.dtype, device=x.device) if g is None else g
            if call.stacked:
                x, g = x[site.group], g[site.group]
            if kind.kind == "conv":  # frames of a film are a batch of images: rows first, then examples
                a, g = (_by_example(rows, size, site).flatten(1, -2) for rows in kind.rows(user, x, g, site.group))
            else:
                x, g = _by_example(x, size, site), _by_example(g, size, site)
                if kind.kind != "norm":
                    axis = places.axis(site, number, x.shape[1 : -1 if kind.kind == "linear" else None])
                    x, g = (x.movedim(axis, -2) if kind.kind == "linear" else x.movedim(axis, -1)), g.movedim(axis, -2)
                a, g = kind.rows(user, x, g, site.group)
            if kind.kind == "embedding" and layer.kind != "embedding":  # tied: the table is the linear's transpose
                a, g = F.pad(g, (0, site.shape[1] - g.shape[-1])), a
            if site.partial:
                a = a[..., site.columns(model)]
            if site.kind == "linear":  # layers that read the same tensor share one a
                part = site.group if call.stacked else 0, site.partial
                place = call.x.device, call.x.data_ptr(), call.x.shape, call.x.stride()
                a = read.setdefault((place, a.shape, part), a)
            parts.append((a, g))
        if not parts and site.routed:  # no position of this example reaches the expert
            o, i = site.shape
            parts.append((value.new_zeros(size, 0, i), value.new_zeros(size, 0, o)))
        if not parts:
            raise ModelError(
                f"The site {site.name} was never called on this batch.",
                "Leave it out (exclude=...): the model does not use this layer in its forward pass.",
            )
        inputs[site.name] = parts[0][0] if len(parts) == 1 else torch.cat([a for a, _ in parts], dim=1)
        grads[site.name] = parts[0][1] if len(parts) == 1 else torch.cat([g for _, g in parts], dim=1)
    return Captured(value, inputs, grads)


def _by_example(t: Tensor, size: int, site: Site) -> Tensor:
    """[b*k ...] as [b k ...]; [b ...] unchanged; [s b ...] as [b s ...]; what one example alone gave as [1 ...].
    Whether rows lie example by example is checked once per model, by its gradients (checks.py)."""
    t = _example_first(t, site)
    if t.ndim > 0 and len(t) == size:
        return t
    if t.ndim > 0 and len(t) % size == 0 and len(t) > 0:
        return t.reshape(size, len(t) // size, *t.shape[1:])
    raise ModelError(
        f"{site.name} is called on a tensor of shape {tuple(t.shape)} for a batch of {size} examples.",
        f"Its rows cannot be assigned to examples (the batch must be the first axis). Leave the site out: "
        f"find_sites(model, exclude={site.name!r}).",
    )


def _example_first(t: Tensor, site: Site) -> Tensor:
    return t.unsqueeze(0) if site.alone else t.movedim(1, 0) if site.rows == "second" else t


@dataclass
class _Places:
    """Which axis of a layer's rows is the sequence's: heads and windows may stand before or after it."""

    model: nn.Module
    sites: Sequence[Site]
    batch: Batch
    objective: Objective
    shorter: dict[str, list[tuple[int, ...]]] | None = None

    @property
    def width(self) -> int:
        tokens = self.batch.get("input_ids", self.batch.get("attention_mask"))
        return 0 if tokens is None or tokens.ndim != 2 else tokens.shape[1]

    def axis(self, site: Site, number: int, rows: Sequence[int]) -> int:
        """Axis of the call's tensor, batch first, that is the sequence; the last of the rows if none is."""
        found = [axis for axis, size in enumerate(rows, 1) if size == self.width and self.width > 1]
        if not found:
            return len(rows)
        if len(found) == 1:
            return found[0]
        if self.shorter is None:
            self.shorter = self._cut()
        calls = self.shorter.get(site.name, [])
        if number < len(calls):
            found = [axis for axis in found if calls[number][axis] == self.width - 1] or found
        return found[-1]

    def _cut(self) -> dict[str, list[tuple[int, ...]]]:
        """Shapes of the calls on sequences of one position less, where another axis of the same length stays."""
        found: dict[str, list[tuple[int, ...]]] = {}
        with ExitStack() as hooks, torch.no_grad(), suppress(Exception):
            for site in self.sites:
                for name in site.modules:

                    def keep(module: nn.Module, args: Any, out: Tensor, site: Site = site) -> None:
                        found.setdefault(site.name, []).append(tuple(_example_first(out, site).shape))

                    if isinstance(layer_at(self.model, name)[0], nn.Module):
                        hooks.callback(runner(self.model, name).register_forward_hook(keep).remove)
            self.objective(self.model, cut_short(self.batch, self.width))
        return found


def _check_finite(seen: Captured, batch: Batch) -> None:
    bad = ~finite(seen)
    if bad.any():  # the one synchronisation of a batch
        ids = batch["example_id"][bad].tolist() if "example_id" in batch else bad.nonzero().flatten().tolist()
        what = "gradient" if torch.isfinite(seen.value).all() else "objective"
        raise NumericalError(
            f"The {what} is not finite for {len(ids)} examples of this batch: ids {ids[:5]}.",
            "Look at these examples (empty, all masked, out of range?) or leave them out (Examples.without).",
        )


def position_mask(positions: Tensor | Sequence[Tensor], rows: int) -> Bool[Tensor, "b r"]:
    """The task's position mask [b s] for a site with `rows` rows per example: repeated calls repeat it; a site whose
    rows are not the task's positions (patches, one vector) counts all of them. Of several masks (encoder and decoder)
    it is the one as wide as the site, or else the first whose repetition is."""
    masks = [positions] if isinstance(positions, Tensor) else list(positions)
    fitting = [mask for mask in masks if rows % mask.shape[1] == 0]
    positions = next((mask for mask in fitting if mask.shape[1] == rows), fitting[0] if fitting else masks[0])
    size, width = positions.shape
    if rows % width == 0 and width > 1:
        return positions.repeat(1, rows // width)
    return torch.ones(size, rows, dtype=torch.bool, device=positions.device)
