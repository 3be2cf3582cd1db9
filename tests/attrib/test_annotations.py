"""Results say beside their numbers what they are of, and what cannot be right."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from whence.attrib import CG, EKFAC, METHODS
from whence.cache import Classification, DataError, Examples, TrainedModel

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("f4")
Y = RNG.integers(0, 3, 12)


def linear(measure: str = "logprob", quiet: bool = True) -> TrainedModel:
    torch.manual_seed(0)
    train = Examples.of((X, Y), about={"title": [f"row {n}" for n in range(12)], "text": ["long " * 99] * 12})
    return TrainedModel(nn.Sequential(nn.Linear(4, 3)), train, Classification(measure=measure), quiet=quiet)


def certain(subject: TrainedModel) -> Examples:
    """Two queries of the data, and one whose label has a probability of one."""
    with torch.no_grad():
        sure = int(subject.model(torch.as_tensor(X[2:3] * 1000)).argmax())
    return Examples.of((np.concatenate([X[:2], X[2:3] * 1000]), np.r_[Y[:2], sure]), ids=[100, 101, 102])


@pytest.mark.parametrize("measure", ["logprob", "loss", "margin"])
@pytest.mark.parametrize("rank", [None, 1])
def test_a_certain_query_changes_nothing_for_the_others(measure: str, rank: int | None) -> None:
    subject = linear(measure)
    factors, queries = EKFAC().fit(subject), certain(subject)
    scores = factors.score(queries, rank=rank)
    alone = factors.score(queries.select([0, 1]), rank=rank)
    np.testing.assert_allclose(scores[:2], alone, rtol=1e-5, atol=1e-7)
    assert scores.logprob.values[2] == 0
    if measure == "margin":
        assert scores.values[2].any()
    else:
        assert np.abs(scores.values[2]).max() < 1e-9
        assert "certain of the queries with ids [102]" in scores.attrs["warning"]
        assert np.abs(factors.score(queries.select([2])).values).max() < 1e-9


def test_a_query_without_any_gradient_scores_zero() -> None:
    """A dead layer: nothing flows to the covered site."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    subject = linear().replace(model=model)
    dead = Examples.of((np.stack([X[0], X[1]]), Y[:2]))
    with torch.no_grad():
        model[0].weight.copy_(torch.as_tensor(np.outer(np.ones(5), X[0])))
        model[0].bias.zero_()
        dead.columns["x"][1] = -X[0]
    scores = EKFAC().fit(subject, sites="0").score(dead)
    assert scores.values[0].any()
    assert not scores.values[1].any()


def test_a_certain_example_has_a_finite_relative_influence() -> None:
    subject = linear()
    factors, queries = EKFAC().fit(subject), certain(subject)
    assert factors.self_influence(queries).values[2] < 1e-20
    scores = factors.score(subject.train, queries)
    found = factors.relative(scores, queries, per="loss").values
    assert np.isfinite(found).all()
    assert found[:, :2].any()


def test_an_uncounted_query_is_refused_beside_others() -> None:
    subject = cases.build("attention").trained(model=cases.build("attention").model.float())
    tokens = subject.train.columns["input_ids"][:2]
    queries = Examples.of({"input_ids": tokens, "labels": [np.full(len(tokens[0]), -100), tokens[1]]}, ids=[7, 8])
    with pytest.raises(DataError, match=r"ids \[7\] have a zero gradient"):
        EKFAC().fit(subject).score(queries)


def test_impossible_predictions_are_marked(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHENCE_QUIET")
    factors = EKFAC().fit(linear(quiet=False)).with_damping(1e-7, "absolute")
    scores = factors.score(factors.trained.train)
    left = -scores.logprob.values
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(
            factors.trained.model(torch.as_tensor(X)), torch.as_tensor(Y), reduction="none"
        )
    np.testing.assert_allclose(left, wanted, rtol=1e-5)
    tiny = replace(factors, size=1)  # one training example: every step is a whole one
    found = tiny.score(factors.trained.train)
    assert found.impossible.values.any()
    np.testing.assert_array_equal(found.impossible, found.values > left[:, None] + 1e-3)
    assert "predicted changes are impossible" in found.attrs["warning"]
    assert "impossible" in capsys.readouterr().err
    best = tiny.top(factors.trained.train, 2)
    np.testing.assert_array_equal(best.helpful_impossible, best.helpful > left[:, None] + 1e-3)
    assert "impossible" in best.attrs["warning"]
    loss = tiny.measuring(Classification(measure="loss")).score(factors.trained.train)
    np.testing.assert_array_equal(loss.impossible, found.impossible)
    groups = tiny.group_scores(factors.trained.train)  # all queries and all examples are one group each
    assert groups.values > left.sum()
    assert groups.impossible.values.all()
    np.testing.assert_allclose(groups.logprob, -left.sum(), rtol=1e-6)
    assert "query all, example all" in groups.attrs["warning"]


def test_a_fit_on_too_few_examples_says_so(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHENCE_QUIET")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 3))
    x = RNG.normal(size=(600, 16)).astype("f4")
    data = Examples.of((x, RNG.integers(0, 3, 600)))
    few = EKFAC().fit(TrainedModel(model, data.select(range(5)), Classification()))
    assert "5 examples (5 positions) are too few for 1283 directions" in few.caution
    assert "larger damping or at fewer sites" in capsys.readouterr().err
    assert few.caution in repr(few)
    assert few.caution in few._repr_html_()
    assert few.caution in few.score(data.select([9])).attrs["warning"]
    assert few.caution in few.self_influence().attrs["warning"]
    assert few.with_damping(1e4).caution == ""
    assert EKFAC().fit(TrainedModel(model, data, Classification())).caution == ""


def test_titles_and_texts_travel_with_scores() -> None:
    subject = linear()
    factors = EKFAC().fit(subject)
    scores = factors.score(subject.train.select([3]))
    assert scores.title.values[4] == "row 4"
    assert scores.text.values[0].startswith("long long")
    assert max(map(len, scores.text.values)) <= 80
    assert scores.query_text.values[0].startswith("long")
    table = scores.to_dataframe().reset_index()
    assert {"query", "train", "title", "text", "logprob", "influence"} <= set(table)
    best = factors.top(subject.train.select([3]), 2)
    assert [f"row {i}" for i in best.helpful_id.values[0]] == best.helpful_title.values[0].tolist()


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"magic", "adamw", "source", "daunce", "bm25"}))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_method_takes_half_precision(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    method = CG(iterations=3) if name == "cg" else METHODS[name]()
    both = []
    for each in (model, nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))):
        each.load_state_dict(model.state_dict())
        subject = TrainedModel(each, Examples.of((X, Y)), Classification(), quiet=True)
        both.append(method.fit(subject).score(subject.train.select([0, 3, 5])).values)
    assert np.isfinite(both[0]).all()
    assert np.corrcoef(both[0].ravel(), both[1].ravel())[0, 1] > 0.98
