"""Models and data of the golden files. Every number is drawn as an integer and divided by a power of two, so that it
has the same bits on every machine, and with it the fingerprints that stand in the keys.

Nothing here may change: class names, names of layers, and the text of `own_training` are parts of keys.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from whence.cache import Examples

CLASSES, WORDS, LONGEST = 3, 7, 9


def filled(model: nn.Module, seed: int, scale: int = 32) -> nn.Module:
    """The model with float32 weights of k / scale, |k| <= 24, in the order of its parameters."""
    rng = np.random.default_rng([seed, 11])
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = rng.integers(-24, 25, tuple(parameter.shape)).astype(np.float32) / scale
            parameter.copy_(torch.from_numpy(drawn))
    return model


def net(seed: int) -> nn.Module:
    """A classifier of four numbers."""
    return filled(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)), seed)


def regressor(seed: int) -> nn.Module:
    return filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), seed)


class Reader(nn.Module):
    """A language model that looks at the running mean of what it has read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(WORDS, 6), nn.Linear(6, 6), nn.Linear(6, WORDS)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        past = x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return self.head(torch.tanh(self.mix(x + past)))


def reader(seed: int) -> nn.Module:
    return filled(Reader(), seed, 16)


class Attention(nn.Module):
    """A map to queries, keys and values in one, and one back, of two heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = (part.view(b, s, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        seen = torch.ones(s, s, dtype=torch.bool).tril()
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf")).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).reshape(b, s, d))


class Transformer(nn.Module):
    """One block with every kind of layer that sites know but convolutions."""

    def __init__(self, width: int = 6, heads: int = 2) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(WORDS, width), nn.Embedding(LONGEST, width)
        self.norm, self.attn, self.head = nn.LayerNorm(width), Attention(width, heads), nn.Linear(width, WORDS)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids) + self.place(torch.arange(input_ids.shape[1])[None])
        return self.head(x + self.attn(self.norm(x)))


def transformer() -> nn.Module:
    return filled(Transformer(), 0, 16)


def convolutions() -> nn.Module:
    """Two groups of a convolution, which are two sites, and a head."""
    layers = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, CLASSES)
    return filled(nn.Sequential(*layers), 0)


def numbers(seed: int, *shape: int, scale: int = 16) -> np.ndarray:
    """Float32 of k / scale, |k| <= 32."""
    return np.random.default_rng([seed, 7]).integers(-32, 33, shape).astype(np.float32) / scale


def classes(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, 5]).integers(0, CLASSES, count)


@cache
def points() -> Examples:
    """Thirty-two examples to train on, and eight more."""
    y = classes(0, 40)
    return Examples.of((numbers(0, 40, 4) / 2 + np.eye(CLASSES, 4, dtype=np.float32)[y], y), ids=100 + np.arange(40))


def train(count: int = 32) -> Examples:
    return points().select(np.arange(count))


def held_out(count: int = 8) -> Examples:
    return points().select(np.arange(32, 32 + count))


@cache
def pairs() -> Examples:
    return Examples.of({"x": numbers(1, 16, 4), "y": numbers(2, 16, 2)}, ids=np.arange(16) + 5)


@cache
def pictures() -> Examples:
    return Examples.of({"x": numbers(3, 32, 2, 4, 4), "y": classes(7, 32)}, ids=np.arange(32) * 2)


@cache
def texts() -> Examples:
    """Token sequences of unequal length."""
    rng = np.random.default_rng(3)
    tokens = [rng.integers(0, WORDS, n) for n in rng.integers(4, LONGEST + 1, 20)]
    about = {"title": ["secret" if k < 3 else "plain" for k in range(20)]}
    return Examples({"input_ids": tokens}, np.arange(20, dtype=np.int64) * 3 + 5, about)


@cache
def questions() -> Examples:
    """Sequences of which the first two tokens are not asked about."""
    rng = np.random.default_rng(4)
    tokens = [rng.integers(0, WORDS, n) for n in (5, 7, 6)]
    labels = [np.concatenate([np.full(2, -100), t[2:]]) for t in tokens]
    return Examples.of({"input_ids": tokens, "labels": labels}, ids=np.arange(3) + 900)


@cache
def images() -> tuple[np.ndarray, np.ndarray]:
    """Thirty-two grey images of 4 by 4 (a power of two, so that their mean is exact) and their classes."""
    y = np.arange(32) % CLASSES
    return numbers(5, 32, 4, 4) + numbers(6, CLASSES, 4, 4)[y], y


@cache
def rows() -> np.ndarray:
    """Activations [192, 8] that are sums of few directions, for builders."""
    rng = np.random.default_rng([8, 7])
    directions = rng.integers(-8, 9, (12, 8))
    chosen, strength = rng.integers(0, 12, (192, 2)), rng.integers(1, 9, (192, 2))
    return (strength[:, :, None] * directions[chosen]).sum(1).astype(np.float32) / 8


def own_training(model: nn.Module, examples: Examples, seed: int) -> nn.Module:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.25)
    order = np.random.default_rng(seed).permutation(len(examples))
    for start in range(0, len(order), 8):
        batch = examples.batch(order[start : start + 8])
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(batch["x"]), batch["y"]).backward()
        optimiser.step()
    return model
