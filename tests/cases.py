"""Tiny problems, one table for every package: a model, its data, its task and the sites to look at.

Each case is a few hundred to a few thousand parameters, float64 where exactness is tested, seeded.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.cache import Classification, Examples, LanguageModelling, Regression, Sites, Task, TrainedModel, find_sites

ALL_KINDS = ("linear", "conv", "embedding", "norm")


@dataclass(frozen=True)
class Case:
    name: str
    model: nn.Module
    examples: Examples
    task: Task
    find: dict[str, Any] = field(default_factory=dict)

    @property
    def sites(self) -> Sites:
        return find_sites(self.model, quiet=True, **({"kinds": ALL_KINDS} | self.find))

    def trained(self, **more: Any) -> TrainedModel:
        """The case as a trained model at its sites."""
        given: dict[str, Any] = {"train": self.examples, "task": self.task, "sites": self.sites, "quiet": True}
        return TrainedModel(**({"model": self.model} | given | more))


class Repeated(nn.Module):
    """One linear layer called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        for _ in range(3):
            x = torch.tanh(self.again(x))
        return self.last(x)


class InPlace(nn.Module):
    """Writes into what its layers have returned, as residual networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu_()
        y = self.b(x)
        y += x
        return self.c(y.mul_(0.5).tanh_())


class Attention(nn.Module):
    """A one-block causal transformer with every kind of layer: embeddings (positions shared by the batch, head
    optionally tied to the table), attention, LayerNorm, RMSNorm, an MLP."""

    def __init__(self, vocabulary: int = 11, d: int = 8, context: int = 9, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, d), nn.Embedding(context, d)
        self.ln, self.rms = nn.LayerNorm(d), nn.RMSNorm(d, eps=1e-5)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.head = nn.Linear(d, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        b, s = input_ids.shape
        x = self.embed(input_ids) + self.place(torch.arange(s, device=input_ids.device)[None])
        q, k, v = self.qkv(self.ln(x)).chunk(3, -1)
        allowed = torch.ones(s, s, dtype=torch.bool, device=input_ids.device).tril()[None].expand(b, s, s)
        if attention_mask is not None:
            allowed = allowed & (
                attention_mask[:, None, :].bool() | torch.eye(s, dtype=torch.bool, device=input_ids.device)
            )
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~allowed, float("-inf")).softmax(-1)
        x = x + self.out(weights @ v)
        x = x + self.down(torch.nn.functional.gelu(self.up(self.rms(x))))
        return self.head(x)


class Convolutional(nn.Module):
    """Strided, dilated, padded and grouped convolutions, one- and two-dimensional."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.b = nn.Conv2d(4, 6, 3, padding="same", dilation=2, groups=2)
        self.c = nn.Conv2d(6, 6, (1, 2), groups=6, bias=False, padding=(0, 1), padding_mode="circular")
        self.d = nn.Conv1d(6, 4, 3, stride=2, padding=2, dilation=2, groups=2)
        self.e = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(x))))))
        return self.e(torch.tanh(self.d(x.flatten(2))).mean(2))


class Volumes(nn.Module):
    """A strided, dilated, padded and grouped convolution over volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv3d(2, 4, (3, 2, 3), stride=(2, 1, 1), padding=1, dilation=(1, 2, 1), groups=2)
        self.b = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)).mean((2, 3, 4)))


class FlatRows(nn.Module):
    """Calls its layer on [b*s, d], as routed models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        return self.head(torch.tanh(self.mix(x.flatten(0, 1))).view_as(x))


def sequences(count: int = 6, vocabulary: int = 11, longest: int = 9, seed: int = 0, prompts: bool = False) -> Examples:
    """Token sequences of unequal length, with prompts that are not predicted, if `prompts`."""
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(0, vocabulary, n) for n in rng.integers(3, longest + 1, count)]
    columns: dict[str, Any] = {"input_ids": tokens}
    if prompts:
        columns["labels"] = [np.concatenate([np.full(2, -100), t[2:]]) for t in tokens]
    return Examples.of(columns, ids=np.arange(count) * 3 + 5)


def vectors(count: int = 12, width: int = 4, classes: int = 3, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    return Examples.of({"x": rng.normal(size=(count, width)), "y": rng.integers(0, classes, count)})


def _conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(6, 4), nn.Tanh(), Conv1D(3, 6))


def regression_data(count: int = 500, width: int = 20, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width)) * np.linspace(0.3, 3.0, width)
    return Examples.of({"x": x, "y": x @ rng.normal(size=width) + 0.5 + rng.normal(size=count)})


def build(name: str) -> Case:
    """The named case, built anew (models are mutable)."""
    torch.manual_seed(0)
    model, examples, task, find = TABLE[name]()
    return Case(name, model.double(), examples, task, find)


TABLE: dict[str, Callable[[], tuple[nn.Module, Examples, Task, dict[str, Any]]]] = {
    "mlp": lambda: (
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)),
        vectors(),
        Classification(),
        {},
    ),
    "repeated": lambda: (Repeated(), vectors(), Classification(), {}),
    "in place": lambda: (InPlace(), vectors(), Classification(), {}),
    "transposed linear": lambda: (_conv1d(), vectors(), Classification(), {}),
    "convolutions": lambda: (
        Convolutional(),
        Examples.of((np.random.default_rng(0).normal(size=(5, 2, 9, 8)), np.arange(5) % 3)),
        Classification(),
        {},
    ),
    "volumes": lambda: (
        Volumes(),
        Examples.of((np.random.default_rng(0).normal(size=(5, 2, 4, 5, 3)), np.arange(5) % 3)),
        Classification(),
        {},
    ),
    "attention": lambda: (Attention(), sequences(), LanguageModelling(), {}),
    "attention with prompts": lambda: (Attention(), sequences(prompts=True), LanguageModelling(), {}),
    "tied": lambda: (Attention(tied=True), sequences(), LanguageModelling(), {}),
    "flat rows": lambda: (FlatRows(), sequences(vocabulary=7), LanguageModelling(), {}),
    "regression": lambda: (
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)),
        Examples.of((np.random.default_rng(0).normal(size=(10, 4)), np.random.default_rng(1).normal(size=(10, 2)))),
        Regression(),
        {},
    ),
    "linear regression": lambda: (nn.Linear(20, 1), regression_data(), Regression(noise="sign"), {}),
}
