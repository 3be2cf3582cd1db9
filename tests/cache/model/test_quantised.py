"""Quantised layers under trained adapters: the adapters are the sites, and packed weights are never read as matrices.
The stand-ins keep their weights as the libraries do: packed parameters (bitsandbytes), buffers (GPTQ), 8-bit floats,
and tensors that hold their numbers elsewhere (torchao)."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import cases
from tests.cache.model.test_checks import network
from whence.attrib import Identity
from whence.cache import Classification, ModelError, Store, TrainedModel, find_sites


class FourBit(nn.Linear):
    """Two numbers of four bits in a byte, the parameter [o*i/2 1] of bytes."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.bias = layer.bias
        self.scale = float(layer.weight.data.abs().max() / 7)
        levels = (layer.weight.data / self.scale).round().to(torch.int8).flatten() + 8
        packed = (levels[::2] * 16 + levels[1::2]).to(torch.uint8)[:, None]
        self.weight = nn.Parameter(packed, requires_grad=False)

    def unpacked(self, x: Tensor) -> Tensor:
        levels = torch.stack([self.weight // 16, self.weight % 16], 1).flatten().to(x) - 8
        return (levels * self.scale).view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.unpacked(x), self.bias.to(x))


class EightBitFloat(FourBit):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.weight = nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)

    def unpacked(self, x: Tensor) -> Tensor:
        return self.weight.to(x.dtype)


class Elsewhere(Tensor):
    """A tensor of the layer's shape and type that holds integers inside."""

    inner: Tensor

    @staticmethod
    def __new__(cls: Any, inner: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self) -> Any:
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Elsewhere(args[0].inner)
        raise NotImplementedError(f"{func} of a quantised tensor")


class Subclassed(FourBit):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        levels = (layer.weight.data / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(Elsewhere(levels), requires_grad=False)

    def unpacked(self, x: Tensor) -> Tensor:
        return self.weight.inner.to(x) * self.scale


class Buffered(nn.Module):
    """No linear layer of torch at all."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("qweight", (layer.weight.data * 8).round().to(torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.qweight.T.to(x) / 8


class Adapted(nn.Module):
    """What peft makes of a quantised layer."""

    def __init__(self, base: nn.Module, width: int, out: int) -> None:
        super().__init__()
        self.base_layer, self.lora_A, self.lora_B = base, nn.Linear(width, 2, False), nn.Linear(2, out, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


QUANTISED = {kind.__name__: kind for kind in (FourBit, EightBitFloat, Subclassed, Buffered)}


def adapted(kind: str) -> nn.Module:
    torch.manual_seed(0)
    whole = network()
    layers = [Adapted(QUANTISED[kind](whole[n]), whole[n].in_features, whole[n].out_features) for n in (0, 2)]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.element_size() > 1:
            parameter.requires_grad_("lora" in name)
    return model


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("frozen", [False, True])
def test_the_adapters_are_the_sites_and_equal_autograd(kind: str, frozen: bool, store: Store) -> None:
    model = adapted(kind)
    sites = find_sites(model, "*lora*" if frozen else "*", frozen=frozen, quiet=True)
    assert sites.names == ("0.lora_A", "0.lora_B", "2.lora_A", "2.lora_B")
    assert "2 layers are quantised" in sites.summary
    trained = TrainedModel(model, cases.vectors(6), Classification(), sites=sites, store=store, quiet=True)
    assert trained.dtype == torch.float32
    scores = Identity().fit(trained).score(trained.train).values
    wanted = [_own(model, trained, row) for row in range(6)]
    np.testing.assert_allclose(scores, np.array(wanted) @ np.array(wanted).T / 6, rtol=1e-4, atol=1e-6)


def _own(model: nn.Module, trained: TrainedModel, row: int) -> np.ndarray:
    parameters = [p for name, p in model.named_parameters() if "lora" in name]
    value = trained.task.loss(model.eval(), trained.train.batch([row], dtype=torch.float32)).sum()
    return np.concatenate([g.numpy().ravel() for g in torch.autograd.grad(value, parameters)])


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_layer_is_refused_by_name_with_why(kind: str) -> None:
    with pytest.raises(ModelError, match=r"2 layers are quantised \(0.base_layer, 2.base_layer\)"):
        find_sites(adapted(kind), "0.base_layer", frozen=True, quiet=True)


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_model_of_quantised_layers_alone_is_refused_with_why(kind: str) -> None:
    model = nn.Sequential(QUANTISED[kind](nn.Linear(4, 6)), nn.Tanh(), QUANTISED[kind](nn.Linear(6, 4)))
    with pytest.raises(ModelError, match=r"(?s)2 layers are quantised.*load the model in bfloat16"):
        find_sites(model.requires_grad_(False), quiet=True)


@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_model_compiled_by_jit_is_refused_with_why(how: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: it is deprecated
        model = torch.jit.script(network()) if how == "script" else torch.jit.trace(network(), torch.zeros(2, 4))
    with pytest.raises(ModelError, match=r"compiled by torch\.jit"):
        find_sites(model, quiet=True)
