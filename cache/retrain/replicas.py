"""Many copies of one small model, side by side: lane e of every tensor is copy e.

All trainable parameters of all copies are one matrix [e, P], so an optimiser step is a handful of large
operations, whatever the model; the forward runs under `torch.func.vmap` over stacked parameters, and the
backward of the sum of the lanes' losses is the lanes' own gradients, since no lane reads another.

One lane runs without vmap: that is the sequential path for a model that cannot be stacked, and the path of a
single large model. Batch normalisation and dropout belong there (`why_not_stacked` says why).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..errors import ModelError
from ..model.sites import call_with, copied, named_parameters

Batch: TypeAlias = Mapping[str, Tensor]
# what runs for each lane: (the lane's model, the lane's batch, what else the lane has) -> tensor(s)
PerLane: TypeAlias = Callable[[nn.Module, dict[str, Tensor], dict[str, Tensor]], Any]


@dataclass(frozen=True, eq=False)
class Lanes:
    """`flat[e]` holds lane e's trainable parameters, in `names` order; `buffers[name][e]` its buffers.

    template: a copy of the module whose code runs; its own tensors are never written to.
    shapes: name -> shape, of the trainable parameters, in the order in which they stand in `flat`.
    frozen: parameters that all lanes share and nothing trains.
    """

    template: nn.Module
    flat: Float[Tensor, "e p"]
    shapes: dict[str, torch.Size]
    buffers: dict[str, Tensor]
    frozen: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(modules: Sequence[nn.Module], trainable: Callable[[str], bool] | None = None) -> "Lanes":
        """Stack modules of one architecture. `trainable(name)` picks the parameters to train (all that require
        a gradient, unless given); the others must not differ between the modules.

        Raises ModelError when the modules differ in their parameters' names or shapes, or none is trainable.
        """
        template = copied(modules[0])
        first = named_parameters(template)
        chosen = [name for name, p in first.items() if (trainable(name) if trainable else p.requires_grad)]
        if not chosen:
            raise ModelError(
                f"No parameter of this {type(template).__name__} is trainable.",
                "Set requires_grad, or pass `trainable`.",
            )
        everyone = [named_parameters(module) for module in modules]
        shapes = {name: first[name].shape for name in chosen}
        for own in everyone:
            if {name: p.shape for name, p in own.items()} != {name: p.shape for name, p in first.items()}:
                raise ModelError(
                    "These models differ in their parameters' names or shapes, so they cannot be lanes of one.",
                    "Stack copies of one architecture only.",
                )
        flat = torch.stack([torch.cat([own[name].detach().reshape(-1) for name in chosen]) for own in everyone])
        buffers = [dict(nn.Module.named_buffers(module)) for module in modules]
        return Lanes(
            template,
            flat,
            shapes,
            {name: torch.stack([own[name].detach() for own in buffers]) for name in buffers[0]},
            {name: p.detach() for name, p in first.items() if name not in shapes},
        )

    def __len__(self) -> int:
        return len(self.flat)

    def views(self, flat: Float[Tensor, "e p"] | None = None) -> dict[str, Tensor]:
        """name -> [e ...] views into `flat` (the lanes' own parameters unless another matrix is given)."""
        flat = self.flat if flat is None else flat
        out, start = {}, 0
        for name, shape in self.shapes.items():
            out[name] = flat[:, start : start + shape.numel()].view(len(flat), *shape)
            start += shape.numel()
        return out

    def select(self, lanes: Sequence[int] | slice) -> "Lanes":
        """These lanes only, copied."""
        index = list(range(len(self)))[lanes] if isinstance(lanes, slice) else list(lanes)
        return Lanes(
            self.template,
            self.flat[index].clone(),
            self.shapes,
            {name: b[index].clone() for name, b in self.buffers.items()},
            self.frozen,
        )

    def to(self, device: str | torch.device) -> "Lanes":
        """The same lanes on a device."""
        return Lanes(
            self.template.to(device),
            self.flat.to(device),
            self.shapes,
            {name: b.to(device) for name, b in self.buffers.items()},
            {name: p.to(device) for name, p in self.frozen.items()},
        )

    def with_flat(self, flat: Float[Tensor, "e p"]) -> "Lanes":
        """The same lanes with other parameters."""
        return Lanes(self.template, flat, self.shapes, self.buffers, self.frozen)

    def module(self, lane: int) -> nn.Module:
        """A module of its own with this lane's weights and buffers."""
        out = copied(self.template)
        own = named_parameters(out) | dict(nn.Module.named_buffers(out))
        with torch.no_grad():
            for name, values in (self.views() | self.buffers).items():
                own[name].copy_(values[lane])
        return out

    def apply(
        self,
        function: PerLane,
        batch: Batch,
        extra: Batch | None = None,
        *,
        shared: bool = False,
        views: dict[str, Tensor] | None = None,
    ) -> Any:
        """`function(model, batch, extra)` of every lane, stacked on a leading axis e.

        batch: name -> [e b ...], or [b ...] when `shared`, the same for every lane.
        extra: name -> [e ...], always one a lane.
        views: parameters to use instead of the lanes' own, as `views()` gives them.
        """
        wrapped = _Bound(self.template, function)
        named = {f"model.{name}": v for name, v in (views or self.views()).items()}
        named |= {f"model.{name}": v for name, v in self.buffers.items()}
        fixed = {f"model.{name}": v for name, v in self.frozen.items()}
        extra = dict(extra or {})
        if len(self) == 1:
            lane = {name: v[0] for name, v in named.items()}
            inputs = dict(batch) if shared else {name: v[0] for name, v in batch.items()}
            out = call_with(wrapped, lane | fixed, (inputs, {name: v[0] for name, v in extra.items()}))
            return torch.utils._pytree.tree_map(lambda t: t.unsqueeze(0), out)

        def one(own: dict, inputs: dict, more: dict) -> Any:
            # fused attention has no batching rule on a CPU
            with _MergeLanesIntoChannels(), sdpa_kernel(SDPBackend.MATH):
                return call_with(wrapped, own | fixed, (inputs, more))

        return torch.func.vmap(one, in_dims=(0, None if shared else 0, 0))(named, dict(batch), extra)

    def gradient(
        self, function: PerLane, batch: Batch, extra: Batch | None = None, *, shared: bool = False
    ) -> tuple[Float[Tensor, " e"], Float[Tensor, "e p"]]:
        """Value [e] of a scalar function of every lane and its gradient [e P]."""
        views = {name: v.detach().requires_grad_() for name, v in self.views().items()}
        with torch.enable_grad():
            values = self.apply(function, batch, extra, shared=shared, views=views)
            parts = torch.autograd.grad(values.sum(), list(views.values()), allow_unused=True)
        whole = [torch.zeros_like(v) if g is None else g for g, v in zip(parts, views.values())]
        return values.detach(), torch.cat([g.reshape(len(self), -1) for g in whole], 1)


@contextmanager
def mode(lanes: Lanes, *, training: bool) -> Iterator[None]:
    """The template in training or evaluation mode for a while."""
    before = {module: module.training for module in lanes.template.modules()}
    lanes.template.train(training)
    try:
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


class _Bound(nn.Module):
    """Makes `function(model, ...)` a module, so that `call_with` can put a lane's weights into the model."""

    def __init__(self, model: nn.Module, function: PerLane):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Any:
        return self.function(self.model, batch, extra)


# --- convolutions of stacked models on a CPU ---------------------------------------------------------------
# vmap turns a convolution with stacked weights into a grouped one over [b, e*c, h, w]. On a CPU that is twice
# as fast in channels-last order, and stays so only if pooling keeps the lanes among the channels as well.
# (Measured alternatives, all slower: unfold or shifted windows with a batched product, and a loop.)


def _channels_last(x: Tensor, dim: int) -> Tensor:
    """[.. e .. b c h w] with the lanes at `dim` -> [b, e*c, h, w], channels last."""
    x = x.movedim(dim, 1)
    return x.reshape(x.shape[0], -1, *x.shape[-2:]).contiguous(memory_format=torch.channels_last)


class _LanewiseConv2d(torch.autograd.Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(x, weight, bias, stride, padding, dilation, groups):  # type: ignore[override]
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, dims, x, weight, bias, stride, padding, dilation, groups):
        lanes = info.batch_size
        if dims[1] is None:
            weight = weight.expand(lanes, *weight.shape)
        if bias is not None and dims[2] is None:
            bias = bias.expand(lanes, *bias.shape)
        if dims[0] is None and groups == 1:  # the same images for all: one wide convolution
            x, groups = x.contiguous(memory_format=torch.channels_last), 1
        else:
            x = x.expand(lanes, *x.shape) if dims[0] is None else x.movedim(dims[0], 0)
            x, groups = _channels_last(x, 0), groups * lanes
        out = F.conv2d(
            x,
            weight.flatten(0, 1),
            None if bias is None else bias.flatten(),
            stride,
            padding,
            dilation,
            groups,
        )
        return out.view(len(out), lanes, -1, *out.shape[-2:]), 1


class _LanewisePool2d(torch.autograd.Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(x, pool, args, named):  # type: ignore[override]
        return pool(x, *args, **named)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, dims, x, pool, args, named):
        out = pool(_channels_last(x, dims[0]), *args, **named)
        return out.view(len(out), info.batch_size, -1, *out.shape[-2:]), 1


class _MergeLanesIntoChannels(TorchFunctionMode):
    """Inside vmap, sends 2-D convolution and pooling on a CPU to the rules above."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.conv2d and not kwargs and len(args) == 7 and args[0].device.type == "cpu":
            return _LanewiseConv2d.apply(*args)
        pools = (F.max_pool2d, F.avg_pool2d)
        if (
            function in pools
            and args[0].device.type == "cpu"
            and not kwargs.get("return_indices")
            and torch._C._functorch.is_batchedtensor(args[0])
            and args[0].ndim == 4
        ):
            return _LanewisePool2d.apply(args[0], function, args[1:], kwargs)
        if function is F.group_norm:
            return _group_norm(*args, **kwargs)
        return function(*args, **kwargs)


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Group normalisation by way of layer normalisation: torch's own has no rule for channels-last lanes."""
    out = F.layer_norm(x.reshape(len(x), groups, -1), (x[0].numel() // groups,), eps=eps).reshape(x.shape)
    per_channel = (1, -1, *[1] * (x.ndim - 2))
    out = out if weight is None else out * weight.view(per_channel)
    return out if bias is None else out + bias.view(per_channel)
