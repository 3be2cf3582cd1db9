"""Convolution and pooling of stacked models on a CPU.

vmap turns a convolution with stacked weights into a grouped one over [b, e*c, h, w]. On a CPU that is twice as fast in
channels-last order, and stays so only if pooling keeps the replicas among the channels as well. (Measured
alternatives, all slower: unfold or shifted windows with a batched product, and a loop.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def _channels_last(x: Tensor, dim: int) -> Tensor:
    """[.. e .. b c h w] with the replicas at `dim` -> [b, e*c, h, w], channels last."""
    x = x.movedim(dim, 1)
    return x.reshape(x.shape[0], -1, *x.shape[-2:]).contiguous(memory_format=torch.channels_last)


class _StackedConv2d(torch.autograd.Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(x, weight, bias, stride, padding, dilation, groups):  # type: ignore[override]
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, dims, x, weight, bias, stride, padding, dilation, groups):
        count = info.batch_size
        if dims[1] is None:
            weight = weight.expand(count, *weight.shape)
        if bias is not None and dims[2] is None:
            bias = bias.expand(count, *bias.shape)
        if dims[0] is None and groups == 1:  # the same images for all: one wide convolution
            x, groups = x.contiguous(memory_format=torch.channels_last), 1
        else:
            x = x.expand(count, *x.shape) if dims[0] is None else x.movedim(dims[0], 0)
            x, groups = _channels_last(x, 0), groups * count
        out = F.conv2d(
            x,
            weight.flatten(0, 1),
            None if bias is None else bias.flatten(),
            stride,
            padding,
            dilation,
            groups,
        )
        return out.view(len(out), count, -1, *out.shape[-2:]), 1


class _StackedPool2d(torch.autograd.Function):
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


class ReplicasAsChannels(TorchFunctionMode):
    """Inside vmap, sends 2-D convolution and pooling on a CPU to the rules above."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.conv2d and not kwargs and len(args) == 7 and args[0].device.type == "cpu":
            return _StackedConv2d.apply(*args)
        pools = (F.max_pool2d, F.avg_pool2d)
        if (
            function in pools
            and args[0].device.type == "cpu"
            and not kwargs.get("return_indices")
            and torch._C._functorch.is_batchedtensor(args[0])
            and args[0].ndim == 4
        ):
            return _StackedPool2d.apply(args[0], function, args[1:], kwargs)
        if function is F.group_norm:
            return _group_norm(*args, **kwargs)
        return function(*args, **kwargs)


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Group normalisation by way of layer normalisation: torch's own has no rule for channels-last replicas."""
    out = F.layer_norm(x.reshape(len(x), groups, -1), (x[0].numel() // groups,), eps=eps).reshape(x.shape)
    per_channel = (1, -1, *[1] * (x.ndim - 2))
    out = out if weight is None else out * weight.view(per_channel)
    return out if bias is None else out + bias.view(per_channel)
