"""Replicas of one model, trained and evaluated side by side: row e of every tensor belongs to replica e.

All trainable parameters of all replicas are one matrix [e, P], so an optimiser step is a handful of large operations,
whatever the model. The forward runs under `torch.func.vmap` over stacked parameters, and the backward of the sum of the
replicas' losses is each replica's own gradient, since no replica reads another.

A single replica runs without vmap, and so does, one after the other, each of several whose model cannot be stacked:
with batch normalisation or dropout, for instance (`why_not_stacked`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from ..errors import DataError, ModelError, enough_memory
from ..model.bridge import to_numpy
from ..model.examples import Examples
from ..model.stateless import copied, devices_of, named_parameters, stateless
from ..model.task import Task, margin
from .stacked_convolution import ReplicasAsChannels

Batch: TypeAlias = Mapping[str, Tensor]
# what runs for each replica: (its model, its batch, its other tensors) -> tensor(s)
PerReplica: TypeAlias = Callable[[nn.Module, dict[str, Tensor], dict[str, Tensor]], Any]
POINTS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Replicas:
    """Parameters and buffers of several models of one architecture.

    Args:
        template: a copy of the module whose code runs; its own tensors are never written to.
        flat: [e P], the trainable parameters of each replica, in the order of `shapes`.
        shapes: name -> shape, of the trainable parameters.
        buffers: name -> [e ...], of each replica; also frozen parameters in which the replicas differ.
        frozen: parameters that all replicas share and nothing trains.
    """

    template: nn.Module
    flat: Float[Tensor, "e p"]
    shapes: dict[str, torch.Size]
    buffers: dict[str, Tensor]
    frozen: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(modules: Sequence[nn.Module], trainable: Callable[[str], bool] | None = None) -> "Replicas":
        """Stack modules of one architecture. `trainable(name)` picks the parameters to train (all that require
        a gradient, unless given).

        Raises ModelError when the modules differ in their parameters' names or shapes, one is on several devices, or
        none is trainable.
        """
        if any(len(devices_of(module)) > 1 for module in modules):
            raise ModelError(
                "The model is on several devices, where it is not trained again: the copies' weights are one vector.",
                "Load it on one device (no device_map), in bfloat16 if it does not fit.",
            )
        template = copied(modules[0])
        first = named_parameters(template)
        chosen = [name for name, p in first.items() if (trainable(name) if trainable else p.requires_grad)]
        if not chosen:
            raise ModelError(
                f"No parameter of this {type(template).__name__} is trainable.",
                "Set requires_grad, or pass `trainable`.",
            )
        everyone = [named_parameters(module) for module in modules]
        sizes = {name: p.shape for name, p in first.items()}
        if any({name: p.shape for name, p in own.items()} != sizes for own in everyone):
            raise ModelError(
                "These models differ in their parameters' names or shapes, so they cannot be replicas of one.",
                "Stack copies of one architecture only.",
            )
        buffers: list[dict[str, Tensor]] = [dict(nn.Module.named_buffers(module)) for module in modules]
        frozen = {name: p.detach() for name, p in first.items() if name not in chosen}
        for name in [n for n, p in frozen.items() if any(not torch.equal(own[n], p) for own in everyone[1:])]:
            del frozen[name]
            buffers = [{**its, name: own[name]} for its, own in zip(buffers, everyone)]
        return Replicas(
            template,
            torch.stack([torch.cat([own[name].detach().reshape(-1) for name in chosen]) for own in everyone]),
            {name: sizes[name] for name in chosen},
            {name: torch.stack([own[name].detach() for own in buffers]) for name in buffers[0]},
            frozen,
        )

    def __len__(self) -> int:
        return len(self.flat)

    def views(self, flat: Float[Tensor, "e p"] | None = None) -> dict[str, Tensor]:
        """name -> [e ...] views into `flat` (the replicas' own parameters unless another matrix is given)."""
        flat = self.flat if flat is None else flat
        parts = flat.split([shape.numel() for shape in self.shapes.values()], 1)
        return {name: part.view(len(flat), *shape) for (name, shape), part in zip(self.shapes.items(), parts)}

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Replicas":
        buffers = {name: function(b) for name, b in self.buffers.items()}
        return replace(self, flat=function(self.flat), buffers=buffers)

    def select(self, chosen: Sequence[int] | slice) -> "Replicas":
        """These replicas only, copied."""
        index = list(range(len(self)))[chosen] if isinstance(chosen, slice) else list(chosen)
        return self._map(lambda tensor: tensor[index].clone())

    def to(self, device: str | torch.device) -> "Replicas":
        """The same replicas on a device."""
        moved = self._map(lambda tensor: tensor.to(device))
        frozen = {name: p.to(device) for name, p in self.frozen.items()}
        return replace(moved, template=self.template.to(device), frozen=frozen)

    def with_flat(self, flat: Float[Tensor, "e p"]) -> "Replicas":
        """The same replicas with other parameters."""
        return replace(self, flat=flat)

    def buffer_bytes(self) -> UInt8[np.ndarray, "e v"]:
        """The bytes of every buffer of the modules, in their order."""
        own = [self.buffers[name] for name, _ in nn.Module.named_buffers(self.template)]
        parts = [b.detach().cpu().reshape(len(self), -1).contiguous().view(torch.uint8) for b in own]
        return torch.cat(parts, 1).numpy()

    def with_buffer_bytes(self, data: UInt8[np.ndarray, "e v"]) -> "Replicas":
        """The same replicas with these buffers, as `buffer_bytes` gives them. Raises ModelError for another number of
        bytes than the buffers have."""
        names = [name for name, _ in nn.Module.named_buffers(self.template)]
        sizes = [self.buffers[name][0].numel() * self.buffers[name].element_size() for name in names]
        if data.shape != (len(self), sum(sizes)):
            raise ModelError(
                f"Buffers of {list(data.shape)} bytes for {len(self)} models with {sum(sizes)} bytes of buffers each.",
                "Use the model that these buffers were stored for.",
            )
        stored = dict(self.buffers)
        for name, part in zip(names, torch.from_numpy(np.array(data)).split(sizes, 1)):
            old = self.buffers[name]
            stored[name] = part.contiguous().clone().view(old.dtype).view(old.shape).to(old.device)
        return replace(self, buffers=stored)

    def module(self, replica: int) -> nn.Module:
        """A module of its own with this replica's weights and buffers."""
        out = copied(self.template)
        own = named_parameters(out) | dict(nn.Module.named_buffers(out))
        with torch.no_grad():
            for name, values in (self.views() | self.buffers).items():
                own[name].copy_(values[replica])
        return out

    def apply(self, function: PerReplica, batch: Batch, extra: Batch | None = None, *, shared: bool = False) -> Any:
        """`function(model, batch, extra)` of every replica, stacked on a leading axis e.

        Args:
            function: computes a tensor or a dict of tensors.
            batch: name -> [e b ...], or [b ...] when `shared`.
            extra: name -> [e ...], never shared.
            shared: every replica sees the same batch.
        """
        return self._apply(function, dict(batch), dict(extra or {}), shared, self.views())

    def _apply(self, function: PerReplica, batch: Batch, extra: Batch, shared: bool, views: Batch) -> Any:
        run, own = stateless(function, self.template), {**views, **self.buffers}
        if len(self) == 1:
            tensors, inputs, more = ({k: v[0] for k, v in named.items()} for named in (own, batch, extra))
            with _normalised():
                out = run({**tensors, **self.frozen}, dict(batch) if shared else inputs, more)
            return tree_map(lambda t: t.unsqueeze(0), out)
        if not self.stackable:
            alone = self._one_by_one(batch, extra, shared)
            parts = [one.apply(function, its, others, shared=shared) for one, its, others in alone]
            return tree_map(lambda *tensors: torch.cat(tensors), *parts)

        def one_of(tensors: dict, inputs: dict, more: dict) -> Any:
            # fused attention has no batching rule on a CPU
            with ReplicasAsChannels(), sdpa_kernel(SDPBackend.MATH):
                return run({**tensors, **self.frozen}, inputs, more)

        return torch.func.vmap(one_of, in_dims=(0, None if shared else 0, 0))(own, dict(batch), dict(extra))

    def gradient(
        self, function: PerReplica, batch: Batch, extra: Batch | None = None, *, shared: bool = False
    ) -> tuple[Float[Tensor, " e"], Float[Tensor, "e p"]]:
        """Value [e] of a scalar function of every replica and its gradient [e P]; arguments as for `apply`."""
        if len(self) > 1 and not self.stackable:  # one graph at a time
            found = [
                one.gradient(function, inputs, more, shared=shared)
                for one, inputs, more in self._one_by_one(batch, extra or {}, shared)
            ]
            return torch.cat([value for value, _ in found]), torch.cat([gradient for _, gradient in found])
        views = {name: v.detach().requires_grad_() for name, v in self.views().items()}
        with torch.enable_grad():
            values = self._apply(function, dict(batch), dict(extra or {}), shared, views)
            parts = torch.autograd.grad(values.sum(), list(views.values()), allow_unused=True)
        whole = [torch.zeros_like(v) if g is None else g for g, v in zip(parts, views.values())]
        return values.detach(), torch.cat([g.reshape(len(self), -1) for g in whole], 1)

    @cached_property
    def stackable(self) -> bool:
        """Whether several replicas run as one program, as far as the kinds of layers tell."""
        return why_not_stacked(self.template) is None

    def _one_by_one(self, batch: Batch, extra: Batch, shared: bool) -> Iterator[tuple["Replicas", Batch, Batch]]:
        """Each replica alone (views, so that running statistics reach the whole), its batch and extra tensors."""
        for e in range(len(self)):
            own, more = ({name: v[e : e + 1] for name, v in named.items()} for named in (self.buffers, extra))
            inputs = batch if shared else {name: v[e : e + 1] for name, v in batch.items()}
            yield replace(self, flat=self.flat[e : e + 1], buffers=own), inputs, more

    def outputs(
        self, task: Task, points: Examples, keep: Sequence[str], width: int | None = None
    ) -> dict[str, Float[np.ndarray, "e ..."]]:
        """Outputs of every replica at every point, in evaluation mode.

        Args:
            keep: some of "logits", "margins", "losses", "measurements", "weights" and "buffers" (shapes:
                `Retrained.outputs`).
            width: positions that tokens are padded to, the longest point's by default.
        """
        width = width or int(points.lengths.max())
        measures = [name for name in keep if name not in ("weights", "buffers")]
        parts: list[dict[str, Tensor]] = []
        with mode(self, training=False), torch.no_grad():
            for start in range(0, len(points) if measures else 0, POINTS_AT_ONCE):
                rows = np.arange(start, min(start + POINTS_AT_ONCE, len(points)))
                batch = points.batch(rows, width, self.flat.device, self.flat.dtype)
                parts.append(self.apply(_measured(task, measures), batch, shared=True))
        out = {name: to_numpy(torch.cat([part[name] for part in parts], 1)) for name in measures}
        if "weights" in keep:
            out["weights"] = to_numpy(self.flat)
        if "buffers" in keep:
            out["buffers"] = self.buffer_bytes()
        return out


def _measured(task: Task, keep: Sequence[str]) -> PerReplica:
    def measured(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        if "logits" in keep or "margins" in keep:
            out["logits"] = task.logits(model, batch)
        if "margins" in keep:
            out["margins"] = margins_of(task, out["logits"], batch)
        if "losses" in keep:
            out["losses"] = task.loss(model, batch)
        if "measurements" in keep:
            out["measurements"] = task.measurement(model, batch)
        return {name: out[name] for name in keep}

    return measured


def margins_of(task: Task, logits: Tensor, batch: dict[str, Tensor]) -> Float[Tensor, "b ..."]:
    """z_y - logsumexp of the others: [b] for a label each, [b t] (NaN where uncounted) for next tokens.

    Raises DataError for examples without one integer label.
    """
    if hasattr(task, "targets"):
        targets, counted = task.targets(batch)
        return margin(logits[:, :-1], targets).masked_fill(~counted, float("nan"))
    labels = batch.get("y")
    if labels is None or labels.is_floating_point() or logits.ndim != 2:
        raise DataError(
            "Margins need one integer label `y` per example and one row of logits.",
            "Keep logits, losses or measurements instead.",
        )
    return margin(logits, labels.long())


@contextmanager
def _normalised() -> Iterator[None]:
    """Batch normalisation's refusal of a batch of one example as a ModelError."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ModelError(
            "Batch normalisation has no variance in a batch of one example.",
            "Choose a batch size that leaves no batch with a single example. For a forget set of one example, forget "
            "more at once, or use a method whose batches also have retained examples (descent-ascent, neggrad). Group "
            "and layer normalisation have no such limit.",
        ) from error


@contextmanager
def mode(replicas: Replicas, *, training: bool) -> Iterator[None]:
    """The template in training or evaluation mode inside."""
    before = {module: module.training for module in replicas.template.modules()}
    replicas.template.train(training)
    try:
        with enough_memory(f"{len(replicas)} models side by side"):
            yield
    finally:
        for module, was in before.items():
            module.training = was


def why_not_stacked(module: nn.Module) -> str | None:
    """Why copies of this module cannot train side by side, or None when they can (as far as layers tell)."""
    for name, part in module.named_modules():
        kind = type(part).__name__
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats:
            return (
                f"{name} ({kind}) keeps running statistics, which are each model's own and change in place; "
                "group or layer normalisation would not"
            )
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            return f"{name} ({kind}) draws from one stream, so a model would depend on its neighbours"
        if isinstance(part, nn.RNNBase):
            return f"{name} ({kind}) has no batched rule for stacked weights"
    return None
