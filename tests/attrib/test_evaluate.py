"""The judges judged: scores whose truth is known get the verdict they deserve."""

import numpy as np
import pytest
import torch
import xarray
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import nn

from tests import cases
from whence import attrib
from whence.attrib import EKFAC, Damping, FitOptions, Identity, methods
from whence.attrib.errorbars import error_bars
from whence.attrib.evaluate import (
    agreement_with_pbrf,
    brittleness,
    compare,
    detection,
    flip_labels,
    lds,
    leave_out_masks,
    pbrf,
    qld,
    recall,
)  # fmt: skip
from whence.attrib.probes import by_layer, fictional_facts, power_law, word_order
from whence.attrib.selection import bids, dsir, hashed_ngrams, top_k
from whence.cache import Classification, DataError, Examples, ModelError, Regression, UsageError
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, Recipe
from whence.cache.retrain.retrained import Retrained, subset_masks

QUIET = FitOptions(quiet=True)


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


def test_lds_is_one_for_the_truth_and_nothing_for_noise() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(6, 30))
    bank = additive_bank(truth)
    perfect = lds(labelled(truth), bank, resamples=50)
    assert perfect.value == pytest.approx(1.0)
    assert perfect.low == pytest.approx(1.0)
    assert lds(labelled(truth), bank, "losses", resamples=20).value == pytest.approx(1.0)
    shuffled = rng.permutation(30)
    again = labelled(truth[:, shuffled], train=shuffled)  # the order of the training examples does not matter
    assert lds(again, bank, resamples=20).value == pytest.approx(1.0)
    chance = lds(labelled(rng.normal(size=(6, 30))), bank, resamples=200)
    assert chance.low < 0 < chance.high
    noisy = truth + rng.normal(size=truth.shape)
    found = lds(labelled(noisy), bank, resamples=200)
    by_hand = [spearmanr(bank.masks @ noisy[q], bank["measurements"][:, q])[0] for q in range(6)]
    np.testing.assert_allclose(found.per_query, by_hand)
    assert found.low < found.value < found.high
    better = compare(labelled(noisy), labelled(rng.normal(size=(6, 30))), bank, resamples=200)
    assert better.low > 0
    assert compare(labelled(noisy), labelled(noisy), bank, resamples=20).value == 0
    assert "LDS" in str(found)
    assert "difference" in str(better)


def test_models_of_one_subset_are_averaged() -> None:
    truth = np.random.default_rng(2).normal(size=(3, 20))
    noisy = additive_bank(truth, 30, noise=3.0)
    calmer = additive_bank(truth, 30, noise=3.0, seeds=8)
    assert lds(labelled(truth), calmer, resamples=20).subsets == 30
    assert lds(labelled(truth), calmer, resamples=20).value > lds(labelled(truth), noisy, resamples=20).value


def test_lds_of_what_does_not_match_is_refused() -> None:
    truth = np.random.default_rng(3).normal(size=(3, 20))
    with pytest.raises(DataError, match="too few"):
        lds(labelled(truth), additive_bank(truth, 8))
    with pytest.raises(DataError, match="20 training examples"):
        lds(labelled(truth), additive_bank(truth[:, :18]))
    with pytest.raises(DataError, match="no outputs for 1"):
        lds(labelled(truth, queries=[0, 1, 9]), additive_bank(truth))
    with pytest.raises(DataError, match="kept no"):
        lds(labelled(truth), additive_bank(truth), "margins")
    with pytest.raises(DataError, match="other queries"):
        compare(labelled(truth), labelled(truth[::-1], queries=[2, 1, 0]), additive_bank(truth))
    broken = truth.copy()
    broken[0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        lds(labelled(broken), additive_bank(truth))
    masks = leave_out_masks(20, 5, 0.1)
    assert (masks.sum(1) == 18).all()


# --- retraining ------------------------------------------------------------------------------------------


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


def test_influence_predicts_retraining_and_removals_hurt() -> None:
    bank = small_bank()
    model = bank.train_replicas(np.ones((1, 42), bool), np.array([0])).module(0)
    retrained = bank.run(subset_masks(42, 40, 0.5), np.zeros(40, int), quiet=True)
    factors = EKFAC(damping=Damping(0.03)).fit(model, bank.task, bank.train, options=QUIET)
    scores = attrib.score(factors, model, bank.task, bank.points, bank.train, options=QUIET)
    found = lds(scores, retrained, resamples=100)
    assert found.value > 0.6
    chance = scores.copy(data=np.random.default_rng(0).normal(size=scores.shape))
    assert compare(scores, chance, retrained, resamples=100).low > 0
    removals = brittleness(scores, bank, [2, 6], seeds=1, random=3, quiet=True)
    assert all(excess.value > 0 for excess in removals.excess)
    assert removals.excess[1].value > removals.excess[0].value
    assert "left out" in str(removals)
    rise = qld(scores, bank, share=0.1, seeds=1, random=3, quiet=True)
    assert rise.removed.tolist() == [4]
    assert rise.excess[0].value > 0
    np.testing.assert_allclose(  # log-probability falls by what the loss rises
        brittleness(scores, bank, [4], seeds=1, random=3, quiet=True).top, rise.top, rtol=1e-4
    )
    with pytest.raises(UsageError, match="Cannot leave"):
        brittleness(scores, bank, [42], quiet=True)
    with pytest.raises(DataError, match="keeps no 'losses'"):
        qld(scores, small_bank(("measurements",)), quiet=True)


def test_mislabelled_examples_are_found() -> None:
    train, _ = clusters()
    flawed, flipped = flip_labels(train, 0.15, 3)
    assert (flawed.columns["y"] != train.columns["y"]).sum() == flipped.sum() == 6
    bank = Bank(small_bank().model, Classification(), flawed, flawed, RECIPE)
    model = bank.train_replicas(np.ones((1, 42), bool), np.array([0])).module(0)
    factors = EKFAC().fit(model, bank.task, flawed, options=QUIET)
    own = attrib.self_influence(factors, model, bank.task, flawed, options=QUIET)
    assert detection(own.values, flipped).auc > 0.8
    el2n = attrib.methods.EL2N().fit(model, bank.task, flawed, options=QUIET)
    assert detection(el2n.values(bank.task, flawed, QUIET), flipped).auc > 0.8


def test_detection_by_hand() -> None:
    flipped = np.array([True, False, True, False, False])
    found = detection(np.array([0.9, 0.8, 0.7, 0.1, 0.2]), flipped)
    assert found.auc == pytest.approx(5 / 6)
    np.testing.assert_allclose(found.found, [0.5, 0.5, 1, 1, 1])
    axes = Figure().subplots()
    assert found.plot("self-influence", axes) is axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), found.found)
    assert "AUC 0.833" in str(found)
    with pytest.raises(DataError, match="1 NaN"):
        detection(np.array([np.nan, 1, 2, 3, 4]), flipped)
    with pytest.raises(DataError, match="Cannot flip"):
        flip_labels(clusters()[0], 0.0, 3)


def test_recall_by_hand() -> None:
    scores = labelled(np.array([[0.1, 0.9, 0.5, 0.3], [0.4, 0.1, 0.2, 0.3]]))
    found = recall(scores, {0: [1, 3], 1: [2]}, ks=(1, 3))
    assert found.at == {1: 0.5, 3: 1.0}
    assert found.mrr == pytest.approx((1 + 1 / 3) / 2)
    assert "recall@1 0.500" in str(found)
    with pytest.raises(DataError, match="has no answer"):
        recall(scores, {0: [1]})
    with pytest.raises(DataError, match="was not scored"):
        recall(scores, {0: [1], 1: [77]})


def test_the_proximal_response_is_what_influence_predicts() -> None:
    """Linear regression: the response is (H + damping + x x^T / N)^-1 exactly, and influence its first order."""
    case = cases.build("linear regression")
    with torch.no_grad():
        case.model.weight.mul_(0.3)
    rows, damping = np.arange(40, 70), 0.5
    queries = case.examples.select(range(5))
    found = pbrf(
        case.model, case.task, case.examples, queries, rows, damping, sites=case.sites, tolerance=1e-6, quiet=True
    )
    x = np.concatenate([case.examples.columns["x"], np.ones((500, 1))], 1)
    theta = np.concatenate([case.model.weight.detach().numpy()[0], case.model.bias.detach().numpy()])
    for column, row in enumerate(rows[:4]):
        slope = x[row] * (x[row] @ theta - case.examples.columns["y"][row]) / 500
        curved = x.T @ x / 500 + damping * np.eye(21) + np.outer(x[row], x[row]) / 500
        np.testing.assert_allclose(found.change[:, column], -x[:5] @ np.linalg.solve(curved, slope), rtol=1e-4)
    factors = EKFAC(damping=Damping(damping, "absolute")).fit(
        case.model, case.task, case.examples, sites=case.sites, options=QUIET
    )
    scores = attrib.score(factors, case.model, case.task, queries, case.examples, options=QUIET)
    each, slope_of = agreement_with_pbrf(scores, found)
    assert each.min() > 0.999
    assert slope_of == pytest.approx(1.0, abs=0.1)
    with pytest.raises(ModelError, match="undefined"):
        pbrf(case.model, case.task, case.examples, queries, rows, 0.0, sites=case.sites)
    with pytest.raises(DataError, match="classification and regression"):
        pbrf(case.model, case.task, cases.sequences(), queries, rows, 1.0, sites=case.sites)


def test_classification_responses_converge() -> None:
    bank = small_bank()
    model = bank.train_replicas(np.ones((1, 42), bool), np.array([0])).module(0).double()
    train = Examples({**bank.train.columns, "x": bank.train.columns["x"].astype(np.float64)}, bank.train.ids)
    queries = Examples({**bank.points.columns, "x": bank.points.columns["x"].astype(np.float64)}, bank.points.ids)
    ekfac = EKFAC(damping=Damping(0.01, "absolute"))
    factors = methods.CG(ekfac, tolerance=1e-4, iterations=60).fit(model, bank.task, train, options=QUIET)
    found = pbrf(model, bank.task, train, queries, np.arange(42), 0.01, sites=factors.sites, quiet=True)
    assert found.residual.max() <= 1e-3
    scores = attrib.score(factors, model, bank.task, queries, train, options=QUIET)
    identity = Identity().fit(model, bank.task, train, options=QUIET)
    plain = attrib.score(identity, model, bank.task, queries, train, options=QUIET)
    assert agreement_with_pbrf(scores, found)[0].mean() > 0.97
    assert agreement_with_pbrf(scores, found)[0].mean() > agreement_with_pbrf(plain, found)[0].mean()


# --- error bars, probes, selection -----------------------------------------------------------------------


def test_error_bars_shrink_where_there_is_nothing_to_draw() -> None:
    case = cases.build("linear regression")
    queries = case.examples.select(range(3))
    method = EKFAC(damping=Damping(0.3, "absolute"))

    def bars(task) -> object:
        return error_bars(
            method, case.model, task, case.examples, queries, case.examples, sites=case.sites, k=5, options=QUIET
        )

    exact = bars(Regression(noise="sign"))  # signs have no sampling error in their squares
    drawn = bars(Regression())
    assert float(exact.labels.max()) < 1e-4 * float(drawn.labels.max())
    assert float(exact.halves.min()) >= 0
    assert exact.top.shape == (3, 5)
    assert exact.stable.min() >= 0
    assert exact.stable.max() <= 1
    assert (exact.unstable == (exact.stable < 0.8)).all()
    assert "unstable" in str(exact)
    with pytest.raises(UsageError, match="no label noise"):
        error_bars(Identity(), case.model, case.task, case.examples, queries, case.examples)


def test_a_power_law_is_recognised() -> None:
    rng = np.random.default_rng(0)
    law = (1 - rng.random(20_000)) ** (-1 / 1.5)
    found = power_law(law, draws=60)
    assert found.exponent == pytest.approx(2.5, abs=0.25)
    assert found.p > 0.1
    other = power_law(np.abs(rng.normal(size=20_000)), top=8_000, draws=60)
    assert other.p < 0.1
    assert power_law(np.r_[np.full(20, 1e-3) * np.arange(1, 21), 100.0], top=19, draws=5).sparse
    assert "exponent" in str(found)
    with pytest.raises(DataError, match="too few"):
        power_law(np.full(30, -1.0))


def test_influence_by_layer_sums_to_one() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=(2, 5, 4)))
    scores = xarray.DataArray(
        values,
        dims=("query", "train", "site"),
        coords={"query": [0, 1], "site": ["blocks.0.mlp.in", "blocks.0.mlp.out", "blocks.1.mlp.in", "head"]},
    )
    parts = by_layer(scores, top=5)
    assert parts["layer"].values.tolist() == ["0", "1", "head"]
    np.testing.assert_allclose(parts.sum("layer"), 1.0)
    np.testing.assert_allclose(parts.values[0, 0], values[0, :, :2].sum() / values[0].sum())
    with pytest.raises(DataError, match="no sites"):
        by_layer(scores.sum("site"))


def test_word_order_is_asked_of_any_encoder() -> None:
    facts = fictional_facts(3)
    words = sorted({w for f in facts for text in [*f.forms.values(), f.prompt + f.completion] for w in text.split()})

    def encode(text: str) -> list[int]:
        return [words.index(w) for w in text.split()]

    model = cases.Attention(vocabulary=len(words), context=12).double()
    from whence.cache import LanguageModelling

    train = Examples.of({"input_ids": [np.array(encode(f.forms["exact"])) for f in facts]})
    state = Identity().fit(model, LanguageModelling(), train, options=QUIET)
    found = word_order(state, model, LanguageModelling(), encode, facts, options=QUIET)
    assert found.dims == ("fact", "form")
    assert (found.sel(form="exact") > found.sel(form="unrelated")).all()
    assert (found.sel(form="exact") > found.sel(form="flipped")).all()
    with pytest.raises(DataError, match="no token"):
        word_order(state, model, LanguageModelling(), lambda text: [], facts)


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
    with pytest.raises(DataError, match="n-grams"):
        dsir(clusters()[0], raw, 2)
