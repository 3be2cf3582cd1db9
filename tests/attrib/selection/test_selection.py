"""Selection by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.attrib.evaluate.problems import clusters, labelled
from whence.attrib.selection import RULES, bids, color, dsir, hashed_ngrams, loss_reduction, loss_weights, top_k
from whence.cache import (
    DataError,
    Examples,
    LanguageModelling,
    TrainedModel,
    UsageError,
)


def test_top_k_and_balance_by_hand() -> None:
    # one task dwarfs the other: top-k serves only it, balance serves both
    values = np.array([[10.0, 9.0, 8.0, 0.0, 0.0], [0.0, 0.0, 0.1, 0.3, 0.2]])
    scores = labelled(values, train=[50, 51, 52, 53, 54])
    assert top_k(scores, 2).tolist() == [50, 51]
    assert top_k(scores, 1, by="max").tolist() == [50]
    a = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    chosen = [int(np.argmax(a.max(0)))]
    while len(chosen) < 3:
        gain = (a - a[:, chosen].mean(1, keepdims=True)).max(0)
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
    assert bids(scores, 3).tolist() == (50 + np.array(chosen)).tolist()
    assert set(bids(scores, 2).tolist()) == {50, 53}
    assert len(set(bids(scores, 5, tasks=["a", "a"]).tolist())) == 5
    with pytest.raises(UsageError, match="Cannot choose 6"):
        bids(scores, 6)
    with pytest.raises(DataError, match="1 tasks for 2"):
        bids(scores, 2, tasks=["a"])


def test_importance_resampling_prefers_what_looks_like_the_target() -> None:
    rng = np.random.default_rng(0)
    raw = Examples.of({"input_ids": [rng.integers(0, 50, 20) + (50 if row < 10 else 0) for row in range(60)]})
    target = Examples.of({"input_ids": [rng.integers(50, 100, 20) for _ in range(10)]})
    assert set(dsir(target, raw, 10, seed=None).tolist()) == set(range(10))
    drawn = dsir(target, raw, 10, seed=1)
    assert len(set(drawn.tolist())) == 10
    assert np.isin(drawn, np.arange(10)).mean() > 0.8
    counts = hashed_ngrams(Examples.of({"input_ids": [np.array([1, 2, 1])]}), 1000)
    assert counts.sum() == 5
    assert counts.max() == 2
    with pytest.raises(DataError, match="compares tokens"):
        dsir(clusters()[0], raw, 2)


def test_loss_reduction_is_the_fall_of_the_loss_per_token_and_color_takes_the_largest() -> None:
    prior, conditional = (language(seed) for seed in (0, 1))
    each = []
    for row in range(len(prior.train)):
        batch = prior.train.batch([row])
        count = len(batch["input_ids"][0]) - 1
        falls = [float(at.task.loss(at.model, batch).detach()) / count for at in (prior, conditional)]
        each.append(falls[0] - falls[1])
    np.testing.assert_allclose(loss_reduction(prior, conditional), each, rtol=1e-4, atol=1e-6)
    best = prior.train.ids[np.argsort(each)[::-1]]
    assert color(prior, conditional, 4).tolist() == best[:4].tolist()
    few = prior.train.select(np.arange(3))
    assert set(color(prior, conditional, 3, few).tolist()) == set(few.ids.tolist())
    with pytest.raises(UsageError, match="Cannot choose 9"):
        color(prior, conditional, 9, few)


def language(seed: int) -> TrainedModel:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(12, 6), nn.Linear(6, 12))
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 12, int(n)) for n in rng.integers(3, 9, 10)]
    return TrainedModel(model, Examples.of({"input_ids": tokens}), LanguageModelling(), quiet=True, check=False)


def test_weights_by_loss_follow_the_published_strategies() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0, 5.0])
    h = 2 * (losses - 1) / 4 - 1  # brought to [-1, 1]
    for strategy, values in (
        ("linupper", torch.minimum(h + 1, torch.ones(4))),
        ("quadratic", 1 - h**2),
        ("extremes", h.abs()),
    ):
        weights = loss_weights(losses, strategy, r=0.5)
        expected = torch.exp(values / 0.5)
        torch.testing.assert_close(weights, 4 * expected / expected.sum())
    assert loss_weights(torch.ones(3)).tolist() == [1, 1, 1]
    with pytest.raises(UsageError, match="no strategy"):
        loss_weights(losses, "upper")
    with pytest.raises(UsageError, match="r = 0"):
        loss_weights(losses, r=0.0)


def test_the_registry_names_what_each_rule_chooses_by() -> None:
    assert {rule.needs for rule in RULES.values()} == {"scores", "models", "text"}
    assert RULES["color"].choose is color
