"""Layers as linear maps: how each kind of layer's input and output gradient become a [b s i] and g [b s o].

The gradient of one example with respect to the layer's weight, bias appended as the last input column, is then
sum over s of g[s] a[s]^T, [o i], whatever the layer: linear, transposed (Hugging Face `Conv1D`), convolutional,
an embedding (whose input is one-hot), or the scale and shift of a normalisation (whose gradient is already a
vector, kept as a with g = 1). One class a kind; a new kind is one more class in KINDS.

Some modules multiply by a parameter of their own instead of calling a layer: the experts of transformers keep all their
weights in one parameter [e o i], their routers one [e d] (`Multiplied`); torch's attention keeps the projections of
queries, keys and values in one [3d d] (`Stacked`). Each such parameter is a layer too.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Rows = Float[Tensor, "b s _"]


def _flat(t: Tensor, width: int) -> Tensor:
    return t.reshape(len(t), -1, width)


def with_ones(a: Rows, has_bias: bool) -> Rows:
    """Append the constant input of the bias."""
    return F.pad(a, (0, 1), value=1.0) if has_bias else a


def _bias(module: Any) -> bool:
    return isinstance(getattr(module, "bias", None), nn.Parameter)  # a plain tensor is no parameter to differentiate


class Layer(ABC):
    """One kind of layer: a product with a weight, whose bias is the last column of the matrix, unless a subclass says
    otherwise. `group` is one of a grouped convolution, or one expert; other kinds have one group."""

    kind = "linear"

    @abstractmethod
    def matches(self, module: Any) -> bool:
        """Whether a module is of this kind."""

    def transposed(self, module: Any) -> bool:
        """Whether the weight is kept as [i o]."""
        return False

    def groups(self, module: Any) -> int:
        return 1

    def bias_columns(self, module: Any) -> int:
        """How many of the last columns of the [o i] matrix are the bias."""
        return int(_bias(module))

    def shape(self, module: Any) -> tuple[int, int]:
        """(o, i) of one group, i counting the bias."""
        o, i = module.weight.shape[-2:][:: -1 if self.transposed(module) else 1]
        return o, i + _bias(module)

    def rows(self, module: Any, x: Tensor, g: Tensor, group: int) -> tuple[Rows, Rows]:
        """Input rows a [b s i] and output-gradient rows g [b s o] of one call. x and g are [b ...]."""
        o, i = self.shape(module)
        return with_ones(_flat(x, i - _bias(module)), _bias(module)), _flat(g, o)

    def weight(self, module: Any, matrix: Tensor) -> dict[str, Tensor]:
        """A matrix [... o i] of one group as slices of the layer's parameters, by attribute name."""
        weight = matrix[..., :-1] if _bias(module) else matrix
        found = {"weight": weight.transpose(-1, -2) if self.transposed(module) else weight}
        return {**found, "bias": matrix[..., -1]} if _bias(module) else found

    def matrix(self, module: Any, values: dict[str, Tensor], group: int) -> Tensor:
        """The inverse of `weight`: parameter-shaped values as the [o i] matrix of one group."""
        weight = values["weight"].transpose(-1, -2) if self.transposed(module) else values["weight"]
        return torch.cat([weight, values["bias"].unsqueeze(-1)], dim=-1) if _bias(module) else weight


class Linear(Layer):
    def matches(self, module: Any) -> bool:
        return isinstance(module, nn.Linear)


class TransposedLinear(Layer):
    """Hugging Face's `Conv1D` (GPT-2): weight [i o]."""

    def matches(self, module: Any) -> bool:
        return type(module).__name__ == "Conv1D" and hasattr(module, "nf")

    def transposed(self, module: Any) -> bool:
        return True


class Convolution(Layer):
    """1-D, 2-D and 3-D convolutions, each group a linear map over its patches (im2col)."""

    kind = "conv"

    def matches(self, module: Any) -> bool:
        return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))

    def groups(self, module: Any) -> int:
        return module.groups

    def shape(self, module: Any) -> tuple[int, int]:
        return module.out_channels // module.groups, module.weight[0].numel() + _bias(module)

    def rows(self, module: Any, x: Tensor, g: Tensor, group: int) -> tuple[Rows, Rows]:
        per_in, per_out = x.shape[1] // module.groups, module.out_channels // module.groups
        patches = self._patches(module, x[:, group * per_in : (group + 1) * per_in])
        g = g[:, group * per_out : (group + 1) * per_out].flatten(2).transpose(1, 2)
        return with_ones(patches, _bias(module)), g

    def _patches(self, module: Any, x: Tensor) -> Rows:
        """[b positions c*kernel] in the order of the weight's own flattening."""
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
        if x.ndim == 5:
            for axis, (size, step, apart) in enumerate(zip(kernel, stride, dilation), 2):
                x = x.unfold(axis, (size - 1) * apart + 1, step)[..., ::apart]
            return x.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3)
        if x.ndim == 3:  # as a picture of height one
            x, kernel, stride, dilation = x.unsqueeze(2), (1, *kernel), (1, *stride), (1, *dilation)
        return F.unfold(x, kernel, dilation=dilation, stride=stride).transpose(1, 2)

    def weight(self, module: Any, matrix: Tensor) -> dict[str, Tensor]:
        found = super().weight(module, matrix)
        shape = (*matrix.shape[:-1], *module.weight.shape[1:])
        return {**found, "weight": found["weight"].reshape(shape)}

    def matrix(self, module: Any, values: dict[str, Tensor], group: int) -> Tensor:
        own = {name: t.chunk(module.groups)[group] for name, t in values.items()}
        return super().matrix(module, {**own, "weight": own["weight"].flatten(1)}, group)


class Embedding(Layer):
    """A look-up table [vocabulary d] as a linear map of one-hot inputs."""

    kind = "embedding"

    def matches(self, module: Any) -> bool:
        return isinstance(module, nn.Embedding)

    def transposed(self, module: Any) -> bool:
        return True

    def rows(self, module: Any, x: Tensor, g: Tensor, group: int) -> tuple[Rows, Rows]:
        one_hot = F.one_hot(x.reshape(len(x), -1).long(), module.num_embeddings).to(g.dtype)
        if module.padding_idx is not None:  # autograd gives the padding row no gradient either
            one_hot[..., module.padding_idx] = 0
        scale = getattr(module, "embed_scale", 1.0)  # transformers' scaled tables (Gemma, BART) return table * scale
        return one_hot, _flat(g, module.embedding_dim) * torch.as_tensor(scale, dtype=g.dtype, device=g.device)


class Normalisation(Layer):
    """The scale and shift of LayerNorm and RMSNorm. Their gradient [2d] (or [d]) is a vector already: it stands
    as the input with an output gradient of one, so that the "input" moment of the site is the exact Fisher
    block of these parameters."""

    kind = "norm"

    def matches(self, module: Any) -> bool:
        named = type(module).__name__.endswith(("RMSNorm", "T5LayerNorm"))
        return (isinstance(module, nn.LayerNorm) or named) and isinstance(getattr(module, "weight", None), Tensor)

    def shape(self, module: Any) -> tuple[int, int]:
        return 1, module.weight.numel() * (1 + _bias(module))

    def rows(self, module: Any, x: Tensor, g: Tensor, group: int) -> tuple[Rows, Rows]:
        over = tuple(range(-module.weight.ndim, 0))
        eps = next((getattr(module, n) for n in ("eps", "variance_epsilon") if hasattr(module, n)), None)
        if isinstance(module, nn.LayerNorm):
            x = x - x.mean(over, keepdim=True)
        if eps is None:  # torch.nn.RMSNorm(eps=None) means the type's own epsilon
            eps = torch.finfo(x.dtype).eps
        unit = x * torch.rsqrt(x.square().mean(over, keepdim=True) + eps)
        width = module.weight.numel()
        parts = [_flat(g * unit, width).sum(1, keepdim=True)]
        if _bias(module):
            parts.append(_flat(g, width).sum(1, keepdim=True))
        rows = torch.cat(parts, dim=-1)
        return rows, torch.ones_like(rows[..., :1])

    def bias_columns(self, module: Any) -> int:
        return module.weight.numel() * _bias(module)

    def weight(self, module: Any, matrix: Tensor) -> dict[str, Tensor]:
        width, lead = module.weight.numel(), matrix.shape[:-2]
        out = {"weight": matrix[..., 0, :width].reshape(*lead, *module.weight.shape)}
        if _bias(module):
            out["bias"] = matrix[..., 0, width:].reshape(*lead, *module.weight.shape)
        return out

    def matrix(self, module: Any, values: dict[str, Tensor], group: int) -> Tensor:
        parts = [values["weight"].reshape(1, -1)]
        if _bias(module):
            parts.append(values["bias"].reshape(1, -1))
        return torch.cat(parts, dim=-1)


class Multiplied(NamedTuple):
    """A parameter that its module multiplies by without a layer, and the bias beside it: the stand-in for a module that
    layers of this kind have. `transposed`: the parameter is [e i o] (or [i o]), not [e o i]."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    transposed: bool


class MultipliedLinear(Layer):
    """Experts in one parameter [e o i], each a group; or a router [o i]."""

    def matches(self, module: Any) -> bool:
        return isinstance(module, Multiplied)

    def groups(self, module: Any) -> int:
        return len(module.weight) if module.weight.ndim == 3 else 1

    def transposed(self, module: Any) -> bool:
        return module.transposed

    def weight(self, module: Any, matrix: Tensor) -> dict[str, Tensor]:
        found, lead = super().weight(module, matrix), matrix.ndim - 2
        return {name: t.unsqueeze(lead) for name, t in found.items()} if module.weight.ndim == 3 else found

    def matrix(self, module: Any, values: dict[str, Tensor], group: int) -> Tensor:
        return super().matrix(
            module, {name: t[group] for name, t in values.items()} if module.weight.ndim == 3 else values, group
        )


class Stacked(NamedTuple):
    """A parameter [groups*o i] that its module multiplies by in equal parts, each with an input of its own, and the
    bias beside it: the stand-in for a module."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    groups: int
    transposed: bool = False


class StackedLinear(Layer):
    """The projections of queries, keys and values of `torch.nn.MultiheadAttention`, each a group."""

    def matches(self, module: Any) -> bool:
        return isinstance(module, Stacked)

    def groups(self, module: Any) -> int:
        return module.groups

    def shape(self, module: Any) -> tuple[int, int]:
        o, i = module.weight.shape
        return o // module.groups, i + _bias(module)

    def matrix(self, module: Any, values: dict[str, Tensor], group: int) -> Tensor:
        return super().matrix(module, {name: t.chunk(module.groups)[group] for name, t in values.items()}, group)


KINDS: tuple[Layer, ...] = (
    Linear(), TransposedLinear(), Convolution(), Embedding(), Normalisation(), MultipliedLinear(), StackedLinear(),
)  # fmt: skip


def layer_of(module: Any) -> Layer | None:
    """The kind of layer this module (or `Multiplied`) is, or None if it is none of KINDS."""
    return next((layer for layer in KINDS if layer.matches(module)), None)
