"""The networks that sets are condensed for and judged by: parameters are a dict, application a pure function.

Each has `init(key, shape, classes) -> params`, `features(params, x) -> [n f]` and is called for logits [n c];
x is [n h w channels] or [n d]. Initial weights are those of a new torch layer.
Source: Zhao, Mopuri and Bilen 2021, "Dataset condensation with gradient matching" (their ConvNet and pool of
architectures); Lee et al. 2022, arXiv 2202.02916 uses the same.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from whence.cache.errors import ModelError, UsageError, check_known

from .layers import Params, conv_layer, dense, dense_params, normalise, pool

ACTIVATIONS = {"relu": jax.nn.relu, "leaky": jax.nn.leaky_relu, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}


@runtime_checkable
class Network(Protocol):
    """What a network has to provide; its settings must be hashable, since they key compiled programs."""

    def __hash__(self) -> int: ...

    def init(self, key: Array, shape: tuple[int, ...], classes: int) -> Params: ...

    def features(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n f"]: ...

    def __call__(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n c"]: ...


class Headed(ABC):
    """A network whose logits are one linear map of its features."""

    @abstractmethod
    def features(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n f"]:
        """What the linear map reads."""

    def __call__(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n c"]:
        return dense(params, "head", self.features(params, x))


@dataclass(frozen=True)
class MLP(Headed):
    """Dense layers with ReLU; images are flattened."""

    widths: tuple[int, ...] = (128, 128)

    def init(self, key: Array, shape: tuple[int, ...], classes: int) -> Params:
        sizes: list[int] = [math.prod(shape), *self.widths]
        params: Params = {}
        for layer, (i, o) in enumerate(pairwise(sizes)):
            params |= dense_params(jax.random.fold_in(key, layer), i, o, f"dense{layer}")
        return params | dense_params(jax.random.fold_in(key, len(sizes)), sizes[-1], classes, "head")

    def features(self, params: Params, x: Float[Array, "n ..."]) -> Float[Array, "n f"]:
        x = x.reshape(len(x), -1)
        for layer in range(len(self.widths)):
            x = jax.nn.relu(dense(params, f"dense{layer}", x))
        return x


@dataclass(frozen=True)
class ConvNet(Headed):
    """`depth` blocks of 3x3 convolution, normalisation, activation and 2x2 pooling.

    norm: "instance", "group" (four groups), "layer" (one) or "none". pool: "average", "max" or "none".
    Raises ModelError where images are too small for the depth, or the data are vectors.
    """

    depth: int = 3
    width: int = 128
    norm: str = "instance"
    pool: str = "average"
    activation: str = "relu"

    def __post_init__(self) -> None:
        check_known("norm", self.norm, ("instance", "group", "layer", "none"))
        check_known("pool", self.pool, ("average", "max", "none"))
        check_known("activation", self.activation, ACTIVATIONS)
        if self.norm == "group" and self.width % 4:
            raise UsageError(f"Width {self.width} is not four equal groups.", "Use a multiple of four.")

    @property
    def groups(self) -> int:
        return {"instance": self.width, "group": 4, "layer": 1, "none": 0}[self.norm]

    def init(self, key: Array, shape: tuple[int, ...], classes: int) -> Params:
        h, w, channels = _image(shape, type(self).__name__)
        params: Params = {}
        for layer in range(self.depth):
            if min(h, w) < (2 if self.pool != "none" or self.norm == "instance" else 1):
                raise ModelError(
                    f"A ConvNet of depth {self.depth} does not fit images of {shape[0]} by {shape[1]}: "
                    f"{h} by {w} is left before block {layer + 1}.",
                    f"Use depth {layer} or less, or pool='none'.",
                )
            params |= _conv_params(jax.random.fold_in(key, layer), 3, channels, self.width, f"conv{layer}")
            if self.norm != "none":
                params |= _norm_params(self.width, f"norm{layer}")
            channels = self.width
            if self.pool != "none":
                h, w = h // 2, w // 2
        return params | dense_params(jax.random.fold_in(key, self.depth), channels * h * w, classes, "head")

    def features(self, params: Params, x: Float[Array, "n h w i"]) -> Float[Array, "n f"]:
        for layer in range(self.depth):
            x = conv_layer(params, f"conv{layer}", x, 3, 1)
            if self.norm != "none":
                x = normalise(x, params[f"norm{layer}.scale"], params[f"norm{layer}.shift"], self.groups)
            x = ACTIVATIONS[self.activation](x)
            if self.pool != "none":
                x = pool(x, self.pool)
        return x.reshape(len(x), -1)


@dataclass(frozen=True)
class LeNet(Headed):
    """Two 5x5 convolutions (6 and 16 channels) with max pooling, two dense layers (120, 84).

    Both convolutions are padded, so that images from 4 by 4 fit.
    """

    def init(self, key: Array, shape: tuple[int, ...], classes: int) -> Params:
        h, w, channels = _image(shape, "LeNet")
        if min(h, w) < 4:
            raise ModelError(f"LeNet does not fit images of {h} by {w}.", "Use images of 4 by 4 or more, or an MLP.")
        keys = jax.random.split(key, 5)
        return {
            **_conv_params(keys[0], 5, channels, 6, "conv0"),
            **_conv_params(keys[1], 5, 6, 16, "conv1"),
            **dense_params(keys[2], 16 * (h // 4) * (w // 4), 120, "dense0"),
            **dense_params(keys[3], 120, 84, "dense1"),
            **dense_params(keys[4], 84, classes, "head"),
        }

    def features(self, params: Params, x: Float[Array, "n h w i"]) -> Float[Array, "n f"]:
        for layer in range(2):
            x = pool(jax.nn.relu(conv_layer(params, f"conv{layer}", x, 5, 2)), "max")
        x = x.reshape(len(x), -1)
        for layer in range(2):
            x = jax.nn.relu(dense(params, f"dense{layer}", x))
        return x


@dataclass(frozen=True)
class ResNet(Headed):
    """A small residual network: a 3x3 stem, then stages of one block of two 3x3 convolutions, the width doubled
    and the image halved (mean pooling) from stage to stage; instance normalisation; mean over positions."""

    width: int = 16
    stages: int = 3

    def init(self, key: Array, shape: tuple[int, ...], classes: int) -> Params:
        h, w, channels = _image(shape, "ResNet")
        if min(h, w) >> (self.stages - 1) < 2:
            raise ModelError(
                f"A ResNet of {self.stages} stages does not fit images of {h} by {w}.", "Use fewer stages, or an MLP."
            )
        params = {**_conv_params(key, 3, channels, self.width, "stem"), **_norm_params(self.width, "stem")}
        for stage in range(self.stages):
            i, o = self.width << max(stage - 1, 0), self.width << stage
            first, second, third = jax.random.split(jax.random.fold_in(key, stage), 3)
            params |= _conv_params(first, 3, i, o, f"stage{stage}.a") | _norm_params(o, f"stage{stage}.a")
            params |= _conv_params(second, 3, o, o, f"stage{stage}.b") | _norm_params(o, f"stage{stage}.b")
            params |= _conv_params(third, 1, i, o, f"stage{stage}.skip")
        return params | dense_params(jax.random.fold_in(key, self.stages), o, classes, "head")

    def features(self, params: Params, x: Float[Array, "n h w i"]) -> Float[Array, "n f"]:
        x = jax.nn.relu(_conv_norm(params, "stem", x))
        for stage in range(self.stages):
            if stage:
                x = pool(x, "average")
            y = jax.nn.relu(_conv_norm(params, f"stage{stage}.a", x))
            y = _conv_norm(params, f"stage{stage}.b", y)
            x = jax.nn.relu(y + conv_layer(params, f"stage{stage}.skip", x, 1, 0))
        return x.mean((1, 2))


def check_network(network: Network, shape: tuple[int, ...], classes: int) -> None:
    """Raises ModelError if the network does not fit the data, or if an example's logits depend on its batch (batch
    statistics): padding and blocks would then change results, and a batch of one example has no statistics."""

    def probe(key: Array) -> Array:
        params, x = network.init(key, shape, classes), jax.random.normal(key, (3, *shape))
        return jnp.stack([network(params, x)[0], network(params, x[:1])[0]])

    if type(network).__module__ == __name__:
        jax.eval_shape(probe, jax.random.key(0))
        return
    together, alone = jax.jit(probe)(jax.random.key(0))
    if not jnp.allclose(together, alone, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise ModelError(
            f"The logits that {network!r} gives an example depend on the other examples of its batch.",
            "Normalise each example by itself (instance, group or layer normalisation), not over the batch.",
        )


def network(name: str) -> Network:
    """A network by name: mlp, mlp-64-64, convnet, convnet-3-32 (depth, width), convnet-2-16-none (norm), lenet,
    resnet. Raises UsageError for any other.

    >>> network("convnet-2-16-none")
    ConvNet(depth=2, width=16, norm='none', pool='average', activation='relu')
    """
    kind, *parts = name.lower().split("-")
    try:
        if kind == "mlp":
            return MLP(tuple(int(p) for p in parts)) if parts else MLP()
        if kind == "convnet":
            sizes: list = [int(p) for p in parts[:2]]
            return ConvNet(*sizes, *parts[2:])
        if kind == "lenet" and not parts:
            return LeNet()
        if kind == "resnet":
            return ResNet(*(int(p) for p in parts))
    except (ValueError, TypeError):
        pass
    raise UsageError(f"{name!r} names no network.", "Use mlp-64-64, convnet-3-32, convnet-2-16-none, lenet or resnet.")


def _image(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ModelError(f"{name} takes images, these examples have shape {list(shape)}.", "Use an MLP for vectors.")
    return shape  # type: ignore[return-value]


def _conv_params(key: Array, k: int, i: int, o: int, name: str) -> Params:
    return dense_params(key, k * k * i, o, name)


def _norm_params(width: int, name: str) -> Params:
    return {f"{name}.scale": jnp.ones(width), f"{name}.shift": jnp.zeros(width)}


def _conv_norm(params: Params, name: str, x: Array) -> Array:
    x = conv_layer(params, name, x, 3, 1)
    return normalise(x, params[f"{name}.scale"], params[f"{name}.shift"], x.shape[-1])
