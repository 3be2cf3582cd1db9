"""Models that forget and their oracles: the set-up that the tables of unlearning share, and the digits they learn."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from whence.cache import Classification, Examples, Store
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, Recipe
from whence.cache.retrain.replicas import Replicas
from whence.cache.retrain.retrained import Retrained, oracle_masks
from whence.unlearn.evaluate import OracleSplit
from whence.unlearn.metrics import KLoM
from whence.unlearn.request import UnlearningRequest

TRAIN, POINTS = 400, 800
METRIC = KLoM(bins=10)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's 1,797 digits [n 8 8] in 0..1 and their labels, in one random order."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return x[order].reshape(-1, 8, 8) / 16, y[order].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Forgetting:
    """A bank, and how many of its models forget, each compared with as many oracles and those with as many more."""

    bank: Bank
    count: int
    store: Store | None = None
    metric: KLoM = METRIC

    @property
    def seeds(self) -> np.ndarray:
        return 10_000 + np.arange(self.count)

    @cached_property
    def models(self) -> Replicas:
        """Trained on everything."""
        return self.bank.models(self.count, int(self.seeds[0]), self.store, quiet=True)

    def request(self, forget: np.ndarray) -> UnlearningRequest:
        bank = self.bank
        return UnlearningRequest(self.models, Classification(), bank.train, forget, bank.recipe, bank.build, self.seeds)

    def split(self, forget: np.ndarray) -> tuple[OracleSplit, Retrained]:
        """The comparison for one forget set, and the oracles' outputs."""
        masks = oracle_masks(self.bank.train.ids, forget, 2 * self.count)
        oracles = self.bank.run(masks, 20_000 + np.arange(2 * self.count), self.store, quiet=True)
        return OracleSplit.of(self.request(forget), oracles, self.bank.points, self.metric), oracles

    def own_oracles(self, forget: np.ndarray) -> Retrained:
        """Outputs of oracles of the seeds of the models that forget: one each, with its start and order of examples."""
        masks = oracle_masks(self.bank.train.ids, forget, self.count)
        return self.bank.run(masks, self.seeds, self.store, quiet=True)

    def oracle_models(self, forget: np.ndarray, count: int) -> Replicas:
        """Some of the oracles themselves, of the seeds of the models that forget."""
        return self.bank.train_replicas(oracle_masks(self.bank.train.ids, forget, count), self.seeds[:count])


def mlp(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def forgetting_digits(count: int, store: Store | None = None) -> Forgetting:
    """An MLP 64-32-10 on TRAIN digits, judged at POINTS."""
    x, y = digits()
    points = Examples.of((x[:POINTS].reshape(-1, 64).astype(np.float32), y[:POINTS]))
    train = points.select(np.arange(TRAIN))
    return Forgetting(Bank(mlp, Classification(), train, points, Recipe(40, 50, SGD(0.02, 0.9))), count, store)
