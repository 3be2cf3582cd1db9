"""Problems whose truth is known."""

import numpy as np
import torch
import xarray
from torch import nn

from whence.cache import Classification, Examples
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, Recipe
from whence.cache.retrain.retrained import Retrained, subset_masks


def labelled(values: np.ndarray, train=None, queries=None) -> xarray.DataArray:
    q, n = values.shape
    coords = {"query": np.arange(q) if queries is None else queries, "train": np.arange(n) if train is None else train}
    return xarray.DataArray(values, dims=("query", "train"), coords=coords)


def additive_bank(truth: np.ndarray, count: int = 40, noise: float = 0.0, seeds: int = 1) -> Retrained:
    """A world where measurements are sums of true effects, plus noise."""
    q, n = truth.shape
    masks = np.repeat(subset_masks(n, count, 0.5), seeds, 0)
    rng = np.random.default_rng(0)
    measured = masks @ truth.T + noise * rng.normal(size=(len(masks), q))
    outputs = {"measurements": measured, "losses": -measured}
    return Retrained(masks, np.tile(np.arange(seeds), count), np.arange(n), np.arange(q), outputs)


def clusters() -> tuple[Examples, Examples]:
    """Three classes; each class has one cluster, so what helps a query is the examples of its own class."""
    rng = np.random.default_rng(0)
    y = np.arange(48) % 3
    x = (1.5 * np.eye(3, 6)[y] + rng.normal(size=(48, 6))).astype(np.float32)
    train = Examples.of((x[:42], y[:42]), ids=np.arange(42) + 100)
    return train, Examples.of((x[42:], y[42:]), ids=np.arange(6))


RECIPE = Recipe(30, 14, SGD(0.1, 0.5), batches="shared")


def small_bank(keep: tuple[str, ...] = ("measurements", "losses")) -> Bank:
    torch.manual_seed(0)
    train, queries = clusters()
    return Bank(nn.Linear(6, 3), Classification(), train, queries, RECIPE, keep=keep)


def trained_net(bank: Bank) -> nn.Module:
    """The bank's model, trained on everything."""
    return bank.train_replicas(np.ones((1, len(bank.train)), bool), np.array([0])).module(0)
