"""Batch normalisation: running statistics travel with a model through every deletion."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from tests.unlearn import cases
from whence.cache import Classification, Examples, ModelError, Store
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, Recipe
from whence.cache.retrain.replicas import Replicas
from whence.cache.retrain.retrained import oracle_masks, subset_masks
from whence.unlearn import audit
from whence.unlearn.datamodels import Influence, exact, ridge
from whence.unlearn.evaluate import OracleSplit, evaluate
from whence.unlearn.loop import run
from whence.unlearn.methods import (
    DMM,
    NPO,
    DescentAscent,
    DMDirect,
    FineTune,
    GradientAscent,
    Matching,
    Newton,
    OracleMatching,
    Retrain,
    SalUn,
    Scrub,
)
from whence.unlearn.request import UnlearningRequest


def net(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


BANK = Bank(net, Classification(), cases.train(), cases.points(), Recipe(10, 20, SGD(0.1, 0.9)))
SEEDS = 100 + np.arange(8)


@cache
def models() -> Replicas:
    return BANK.train_replicas(np.ones((8, cases.TRAIN), bool), SEEDS)


@cache
def oracles():
    return BANK.run(oracle_masks(cases.train().ids, cases.FORGET, 16), 500 + np.arange(16), quiet=True)


def request(forget=cases.FORGET) -> UnlearningRequest:
    return UnlearningRequest(models(), Classification(), cases.train(), forget, BANK.recipe, BANK.build, SEEDS)


def exact_of(trained):
    return exact(trained, damping=1.0)


def statistics(replicas: Replicas) -> np.ndarray:
    return replicas.buffers["1.running_mean"].numpy().copy()


def test_the_no_op_is_within_noise_of_the_oracles():
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 260)
    x = (1.2 * np.eye(3, 6)[y] + generator.normal(size=(260, 6))).astype(np.float32)
    points = Examples.of((x, y))
    bank = Bank(net, Classification(), points.select(np.arange(200)), points, Recipe(4, 25, SGD(0.1, 0.9)))
    forget, count = np.array([7, 9]), 16
    trained = bank.train_replicas(np.ones((count, 200), bool), 100 + np.arange(count))
    retrained = bank.run(oracle_masks(bank.train.ids, forget, 2 * count), 500 + np.arange(2 * count), quiet=True)
    asked = UnlearningRequest(trained, bank.task, bank.train, forget, bank.recipe)
    split = OracleSplit.of(asked, retrained, points)
    fresh = net(0).state_dict()  # statistics of a network that has seen nothing
    lost = {name: fresh[name].expand_as(buffer) for name, buffer in trained.buffers.items()}
    blind = replace(split, request=replace(asked, models=replace(trained, buffers=lost)))
    noise = split.null().klom["retain"].mean
    assert split.no_op().klom["retain"].mean < 1.2 * noise
    assert blind.no_op().klom["retain"].mean > 1.5 * noise


def test_copies_taken_from_a_bank_have_its_statistics(tmp_path):
    for _ in range(2):  # trained, then read
        asked = UnlearningRequest.of_bank(BANK, cases.FORGET, 8, seed=100, store=Store(tmp_path))
        np.testing.assert_allclose(statistics(asked.models), statistics(models()), atol=1e-6)


METHODS = {
    "retrain": Retrain(),
    "fine-tune": FineTune(1),
    "ascent": GradientAscent(1),
    "descent-ascent": DescentAscent(3, 4, 8),
    "scrub": Scrub(1, 1, forget_batch=4, retain_batch=16),
    "salun": SalUn(steps=2, forget_batch=4, retain_batch=8),
    "npo": NPO(steps=2, forget_batch=4, retain_batch=8),
    "newton": Newton(exact_of, 0.1),
    "dmm": DMM(lambda trained: Influence(exact_of(trained)), Matching(2, 16)),
    "dm-direct": DMDirect(lambda trained: Influence(exact_of(trained))),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_neither_drops_statistics_nor_moves_those_of_the_request(name):
    before = statistics(models())
    found = run(METHODS[name], request())
    np.testing.assert_array_equal(statistics(models()), before)
    after = statistics(found.models)
    assert np.abs(after).max() > 0.1  # a fresh network's are zero
    x = torch.as_tensor(cases.train().columns["x"])
    alone = found.module(3).eval()
    np.testing.assert_allclose(dict(alone.named_buffers())["1.running_mean"], after[3])
    if found.shift is None:
        whole = found.outputs(cases.train(), ("logits",))["logits"][3]
        np.testing.assert_allclose(alone(x).detach().numpy(), whole, atol=1e-5)


def test_matching_oracles_and_a_second_deletion_keep_statistics():
    first = run(OracleMatching(oracles(), Matching(2, 16)), request())
    once = statistics(first.models)
    second = first.then(FineTune(1), np.array([2, 3]))
    np.testing.assert_array_equal(statistics(first.models), once)
    assert np.abs(statistics(second.models) - once).max() > 0


def test_a_stopped_model_keeps_its_statistics():
    flat = models().flat.clone()
    flat[2] = float("nan")
    found = run(FineTune(1), replace(request(), models=models().with_flat(flat)))
    assert [(stop.model, stop.step) for stop in found.stopped] == [(2, 0)]
    before, after = statistics(models()), statistics(found.models)
    np.testing.assert_array_equal(after[2], before[2])
    assert (np.abs(np.delete(after - before, 2, 0)).max(1) > 0).all()


@pytest.mark.parametrize("method", [GradientAscent(1), Scrub(1, 1)])
def test_a_batch_of_one_is_refused_before_training(method):
    with pytest.raises(ModelError, match=r"(?i)batch normalisation"):
        run(method, request(np.array([3])))


@pytest.mark.parametrize("method", [DescentAscent(2), SalUn(steps=2), NPO(steps=2), FineTune(1), Newton(exact_of)])
def test_one_example_is_forgotten_where_steps_see_others_too(method):
    assert torch.isfinite(run(method, request(np.array([3]))).models.flat).all()


def test_one_example_is_enough_for_normalisation_over_positions():
    def images(seed):
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(24, 3)
        )

    replicas = Replicas.of([images(0), images(1)])
    found = run(
        GradientAscent(1), UnlearningRequest(replicas, Classification(), cases.train(), np.array([3]), cases.RECIPE)
    )
    assert not found.stopped


def test_relearning_one_example_is_refused_by_name():
    with pytest.raises(ModelError, match=r"(?i)batch normalisation"):
        audit.relearning_curve(request().trained(quiet=True), cases.train().select([0]), cases.points(), steps=1)


def test_a_retraining_is_that_of_the_bank():
    """The untrained model of a seed is the bank's, so that seed 0 repeats the training."""
    kept = ~np.isin(np.arange(cases.TRAIN), cases.FORGET)
    again = BANK.train_replicas(np.repeat(kept[None], 8, 0), SEEDS)
    plain = replace(request(), build=net)
    np.testing.assert_allclose(run(Retrain(), plain).models.flat, again.flat, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_unlearned_and_measured(dtype):
    columns = {"x": cases.points().columns["x"].astype(np.float16), "y": cases.points().columns["y"]}
    points = Examples.of(columns)

    class Half(nn.Module):
        def __init__(self, seed: int):
            super().__init__()
            self.inner = cases.net(seed).to(dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.to(dtype))

    train = points.select(np.arange(cases.TRAIN))
    bank = Bank(Half, Classification(), train, points, Recipe(3, 20, SGD(0.1)))
    replicas = bank.train_replicas(np.ones((8, cases.TRAIN), bool), SEEDS)
    assert replicas.flat.dtype == dtype
    split = OracleSplit.of(
        UnlearningRequest(replicas, Classification(), train, cases.FORGET, bank.recipe, Half, SEEDS),
        bank.run(oracle_masks(train.ids, cases.FORGET, 16), quiet=True),
        points,
    )
    subsets = bank.run(subset_masks(cases.TRAIN, 60, 0.7), quiet=True)
    influence = DMM(lambda trained: Influence(exact_of(trained)), Matching(2, 16), ahead=0.5)
    methods = [FineTune(1), Scrub(1, 1), NPO(steps=2), Newton(exact_of, 0.1), DMM(ridge(subsets), Matching(2, 16)),
               influence, DMDirect(ridge(subsets))]  # fmt: skip
    results = [run(method, split.request) for method in methods]
    assert all(found.models.flat.dtype == dtype for found in results)
    assert all(np.isfinite(row.klom["forget"].p95) for row in evaluate(split, results, resamples=0).rows)
