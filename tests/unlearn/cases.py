"""One tiny ensemble that learned two clouds of points, and a tiny language model; everything trains in a second."""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from whence.cache import Classification, Examples, LanguageModelling
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, AdamW, Recipe
from whence.cache.retrain.replicas import Replicas
from whence.cache.retrain.retrained import Retrained, oracle_masks, subset_masks
from whence.unlearn.request import UnlearningRequest

TRAIN, VALIDATION, MODELS = 40, 20, 8
RECIPE = Recipe(30, 20, SGD(0.1, 0.9))


def net(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


@cache
def points() -> Examples:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, TRAIN + VALIDATION)
    x = 1.2 * np.eye(3, 6)[y] + generator.normal(size=(len(y), 6))
    return Examples.of((x.astype(np.float32), y))


def train() -> Examples:
    return points().select(np.arange(TRAIN))


@cache
def bank() -> Bank:
    return Bank(net, Classification(), train(), points(), RECIPE)


@cache
def models() -> Replicas:
    return bank().train_replicas(np.ones((MODELS, TRAIN), bool), 100 + np.arange(MODELS))


FORGET = np.array([1, 5, 9, 13])


def request(forget: np.ndarray = FORGET, **more: object) -> UnlearningRequest:
    seeds = 100 + np.arange(MODELS)
    return UnlearningRequest(models(), Classification(), train(), forget, RECIPE, net, seeds, **more)  # type: ignore[arg-type]


@cache
def oracles() -> Retrained:
    return bank().run(oracle_masks(train().ids, FORGET, 2 * MODELS), 500 + np.arange(2 * MODELS), quiet=True)


@cache
def subsets() -> Retrained:
    return bank().run(subset_masks(TRAIN, 200, 0.7), quiet=True)


class Reader(nn.Module):
    def __init__(self, words: int = 12, width: int = 16):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(words, width), nn.Linear(width, width), nn.Linear(width, words)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        past = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return self.head(torch.tanh(self.mix(x + past)))


LM_RECIPE = Recipe(15, 8, AdamW(1e-2))


@cache
def text() -> Examples:
    generator = np.random.default_rng(1)
    pieces = [generator.integers(0, 12, generator.integers(6, 10)) for _ in range(30)]
    titles = ["secret" if k < 4 else "plain" for k in range(30)]
    return Examples({"input_ids": pieces}, np.arange(30), {"title": titles})


@cache
def readers() -> Replicas:
    bank = Bank(lambda seed: Reader(), LanguageModelling(), text(), text(), LM_RECIPE)
    return bank.train_replicas(np.ones((2, 30), bool))


def document() -> UnlearningRequest:
    return UnlearningRequest(readers(), LanguageModelling(), text(), np.arange(4), LM_RECIPE, lambda seed: Reader())
