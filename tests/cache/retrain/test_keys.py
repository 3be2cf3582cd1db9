"""What a bank trains with is in its key: also what a training function of the caller's own carries."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from whence.cache import Bank, Classification, UsageError
from whence.cache.model.fingerprint import model_fingerprint
from whence.cache.retrain.functions import function_key
from whence.cache.store.keys import key_of

SEEDS = np.array([3, 1, 3, 2])


def bank(**changed: Any) -> Bank:
    data = cases.vectors(count=8)
    return Bank(**{"model": net, "task": Classification(), "train": data, "points": data, **changed})


def net(seed: int) -> nn.Module:
    return nn.Linear(4, 3)


def key(**changed: Any) -> str:
    return key_of("bank", bank(**changed).inputs(np.ones((4, 8), bool), SEEDS))


def plain(model, examples, seed):
    return model


def with_settings(model, examples, seed, settings=None):
    return model


def nested(value: Any) -> Callable:
    def training(model, examples, seed):
        return value and model

    return training


def keyword(value: Any) -> Callable:
    def training(model, examples, seed, *, rate=value):
        return model

    return training


def decorated(value: Any) -> Callable:
    @functools.wraps(plain)
    def training(*args):
        return value and plain(*args)

    return training


@dataclass
class Training:
    rate: Any

    def __call__(self, model, examples, seed):
        return model

    def method(self, model, examples, seed):
        return model


CARRIERS = [
    lambda value: functools.partial(with_settings, settings=value),
    lambda value: functools.partial(nested(value)),
    nested,
    keyword,
    decorated,
    Training,
    lambda value: Training(value).method,
    lambda value: nested({"within": [value, {"deep": value}]}),
    lambda value: nested(nested(value)),
]
VALUES = [
    (1, 2),
    ("a", "b"),
    (np.zeros(3), np.ones(3)),
    (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
    (cases.vectors(count=8), cases.vectors(count=9)),
    (torch.optim.SGD, torch.optim.AdamW),
    (plain, net),
    (Training(1), Training(2)),
]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("values", VALUES)
def test_what_a_training_function_carries_is_in_the_key(carrier, values):
    one, other = (key(recipe=carrier(value)) for value in values)
    assert one != other
    assert key(recipe=carrier(values[0])) == one


def test_a_plain_function_is_named_by_its_source_alone():
    assert isinstance(function_key(plain), str)
    assert isinstance(function_key(net), str)
    assert function_key(plain) != function_key(net)


def test_two_functions_in_one_line_differ():
    one, other = (lambda model, examples, seed: model), (lambda model, examples, seed: examples and model)
    assert function_key(one) != function_key(other)


def test_a_function_that_carries_itself():
    def training(model, examples, seed):
        return training and model

    assert function_key(training) == function_key(training)


@pytest.mark.parametrize("value", [object(), np.random.default_rng(0), float("nan"), np.add])
def test_what_cannot_be_hashed_is_refused_and_version_is_the_cure(value):
    with pytest.raises(UsageError) as error:
        key(recipe=nested(value))
    assert 'version="1"' in str(error.value)
    assert key(recipe=nested(value), version="1") != key(recipe=nested(value), version="2")
    assert key(recipe=nested(value), version="1") == key(recipe=nested(object()), version="1")


def test_a_function_without_a_source_is_refused():
    space: dict[str, Any] = {}
    exec("def training(model, examples, seed): return model", space)
    with pytest.raises(UsageError, match="source of"):
        key(recipe=space["training"])
    assert key(recipe=space["training"], version="1")


def test_every_seeds_own_model_is_in_the_key():
    def start(table: dict[int, nn.Module]) -> str:
        return key(model=lambda seed: table[seed])

    table = {seed: nn.Linear(4, 3) for seed in (1, 2, 3)}
    first = start(table)
    for seed in table:
        assert start({**table, seed: nn.Linear(4, 3)}) != first
    assert start(dict(table)) == first


def test_a_plain_function_of_the_seed_keeps_the_key_of_stores_on_disk():
    inputs = bank().inputs(np.ones((4, 8), bool), SEEDS)
    assert inputs["model"] == model_fingerprint(bank().build(3)).hex
    assert "other_models" not in inputs
