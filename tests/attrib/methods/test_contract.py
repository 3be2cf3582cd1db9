"""What every method satisfies: a new method is one more row of ROWS."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from whence.attrib import Method, methods
from whence.attrib.methods.source import Segment
from whence.cache import Classification, Examples, LanguageModelling, ModelError, Store, TrainedModel, UsageError
from whence.cache.retrain.recipe import SGD, Recipe
from whence.cache.retrain.trajectory import Trajectory

RECIPE = Recipe(epochs=6, batch_size=6, optimiser=SGD(0.1, momentum=0.5), batches="shared")


@dataclass(frozen=True)
class Row:
    """build(start, end): the method for a run from start to end. queried: whether the query enters its scores."""

    build: Callable[[nn.Module, nn.Module], Method]
    units: str = "nats"
    classification: bool = True
    queried: bool = True


ROWS = {
    "identity": Row(lambda start, end: methods.Identity()),
    "diagonal": Row(lambda start, end: methods.Diagonal()),
    "kfac": Row(lambda start, end: methods.KFAC()),
    "ekfac": Row(lambda start, end: methods.EKFAC()),
    "shampoo": Row(lambda start, end: methods.Shampoo()),
    "cg": Row(lambda start, end: methods.CG(iterations=2)),
    "astra": Row(lambda start, end: methods.ASTRA(iterations=2, batch=4)),
    "lissa": Row(lambda start, end: methods.LiSSA(depth=3, batch=4)),
    "datainf": Row(lambda start, end: methods.DataInf()),
    "tracin": Row(lambda start, end: methods.TracIn([start, end], [0.1, 0.2])),
    "trak": Row(lambda start, end: methods.TRAK([end], width=16), "margin of the linearised model"),
    "logra": Row(lambda start, end: methods.LoGra(rank=3)),
    "source": Row(lambda start, end: methods.SOURCE([Segment([start], 0.1, 3), Segment([end], 0.1, 3)])),
    "magic": Row(lambda start, end: methods.MAGIC(start, RECIPE)),
    "adamw": Row(lambda start, end: methods.AdamWInfluence(start, RECIPE)),
    "bif": Row(lambda start, end: methods.BIF(draws=40, rate=1e-2, locality=10.0, burn_in=10, every=2)),
    "daunce": Row(lambda start, end: methods.Daunce(moved(end)), "covariance"),
    "representation": Row(lambda start, end: methods.Representation(), "cosine"),
    "grand": Row(lambda start, end: methods.GraNd([start, end]), "norm of the gradient", queried=False),
    "el2n": Row(lambda start, end: methods.EL2N([start, end]), "norm of the error", queried=False),
    "bm25": Row(lambda start, end: methods.BM25(), "BM25", classification=False),
}


def moved(end: nn.Module) -> list[nn.Module]:
    """Models beside this one, as training on other data would leave them."""
    found = [copy.deepcopy(end) for _ in range(40)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in (p for model in found for p in model.parameters()):
            p.add_(torch.randn(p.shape, generator=generator).to(p), alpha=0.05)
    return found


def test_every_method_has_a_row_and_its_own_name() -> None:
    assert set(ROWS) == set(methods.METHODS)
    assert [method.name for method in methods.METHODS.values()] == list(methods.METHODS)


@dataclass(frozen=True)
class Problem:
    """A few steps of training, float32, and both its ends."""

    start: nn.Module
    trained: TrainedModel
    recipe: Recipe = RECIPE

    @classmethod
    def of(cls, kind: str) -> "Problem":
        torch.manual_seed(0)
        if kind == "language":
            start, task, train = cases.FlatRows(), LanguageModelling(), cases.sequences(count=9, vocabulary=7)
        else:
            start, task = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), Classification()
            data = cases.vectors(count=14)
            train = Examples.of((data.columns["x"].astype(np.float32), data.columns["y"]), ids=data.ids + 40)
        begun = TrainedModel(start, train, task, quiet=True)
        return cls(start, begun.replace(model=Trajectory.record(begun, RECIPE, 0).trained()))

    def random(self) -> "Problem":
        """The same from other random weights, trained in the same way."""
        start = copy.deepcopy(self.start)
        with torch.no_grad():
            for p in start.parameters():
                p.copy_(torch.randn_like(p))
        return self._from(start, self.trained.train)

    def doubled(self) -> "Problem":
        """The same with every example there twice, in every step."""
        train = self.trained.train
        ids = np.concatenate([train.ids, train.ids + 1000])
        columns: dict[str, Any] = {
            name: np.concatenate([values, values]) if isinstance(values, np.ndarray) else [*values, *values]
            for name, values in train.columns.items()
        }
        return self._from(self.start, Examples.of(columns, ids=ids))

    def _from(self, start: nn.Module, train: Examples) -> "Problem":
        recipe = replace(RECIPE, batch_size=len(train))
        begun = self.trained.replace(model=start, train=train)
        trained = begun.replace(model=Trajectory.record(begun, recipe, 0).trained())
        return Problem(start, trained, recipe)

    def fit(self, name: str, **options: Any) -> Any:
        method = ROWS[name].build(self.start, self.trained.model)
        replayed = {"recipe": self.recipe} if isinstance(method, methods.MAGIC) else {}
        return replace(method, **replayed).fit(self.trained.replace(**options))


@pytest.fixture(scope="module")
def classified() -> Problem:
    return Problem.of("classification")


@pytest.fixture(scope="module")
def spoken() -> Problem:
    return Problem.of("language")


@pytest.fixture
def problem(name: str, classified: Problem, spoken: Problem) -> Problem:
    """The problem that the named method is for."""
    return classified if ROWS[name].classification else spoken


@pytest.mark.parametrize("name", ROWS)
def test_shape_units_batches_and_store(name: str, problem: Problem, tmp_path) -> None:
    train = problem.trained.train
    queries, row = train.select([1, 0, 4]), ROWS[name]
    scores = problem.fit(name).score(queries)
    assert scores.dims == ("query", "train")
    assert list(scores["train"].values) == list(train.ids)
    assert list(scores["query"].values) == list(queries.ids)
    assert scores.attrs["units"] == row.units
    assert scores.attrs["method"] == name
    assert np.isfinite(scores.values).all()
    assert scores.values.std() > 0
    scale = np.abs(scores.values).max()
    narrow = problem.fit(name, positions=3).score(queries)
    np.testing.assert_allclose(narrow.values, scores.values, atol=2e-4 * scale)
    store = Store(tmp_path)
    stored = problem.fit(name, store=store).score(queries)
    np.testing.assert_allclose(stored.values, scores.values, atol=2e-4 * scale)
    again = problem.fit(name, store=store).score(queries)
    np.testing.assert_array_equal(again.values, stored.values)
    assert store.events[-1].what == "hit"
    assert all(parameter.requires_grad for parameter in problem.trained.model.parameters())


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.queried])
def test_an_example_helps_itself(name: str, problem: Problem) -> None:
    fitted, train = problem.fit(name), problem.trained.train
    scores = fitted.score(train).values
    own = np.diag(scores)
    assert (own > 0).mean() > 0.85
    assert (own > np.median(scores, axis=1)).mean() > 0.85
    best = fitted.top(train, k=2)
    np.testing.assert_allclose(best["helpful"].values, -np.sort(-scores, axis=1)[:, :2], rtol=1e-4, atol=1e-6)


WEIGHTLESS = ("bm25",)  # what sees no model
DRAWN = ("lissa", "astra", "bif")  # a copy is another example to their batches


@pytest.mark.parametrize("name", [name for name in ROWS if name not in WEIGHTLESS])
def test_scores_change_if_the_weights_are_random(name: str, problem: Problem) -> None:
    """A method whose scores survive random weights explains something else than the model."""
    torch.manual_seed(5)
    other = problem.random()
    queries = problem.trained.train.select([1, 0, 4])
    one, two = (p.fit(name).score(queries).values for p in (problem, other))
    assert np.abs(one - two).max() > 0.1 * np.abs(one).max()


@pytest.mark.parametrize("name", [name for name in ROWS if name not in DRAWN])
def test_a_copy_of_an_example_has_its_score(name: str, problem: Problem) -> None:
    doubled = problem.doubled()
    scores = doubled.fit(name).score(problem.trained.train.select([1, 0, 4])).values
    half = scores.shape[1] // 2
    np.testing.assert_allclose(scores[:, :half], scores[:, half:], atol=1e-4 * np.abs(scores).max())


@pytest.mark.parametrize("name", ["cg", "trak", "logra", "magic", "representation", "el2n"])
def test_sequences_too(name: str, spoken: Problem) -> None:
    queries = spoken.trained.train.select([1, 0, 4])
    scores = spoken.fit(name).score(queries)
    narrow = spoken.fit(name, positions=20).score(queries)
    assert np.isfinite(scores.values).all()
    np.testing.assert_allclose(narrow.values, scores.values, atol=5e-4 * np.abs(scores.values).max())


@pytest.mark.parametrize("name", [name for name in ROWS if name != "bm25"])
def test_another_model_is_refused(name: str, classified: Problem) -> None:
    trained = classified.trained
    with pytest.raises(ModelError, match="fitted on a model"):
        classified.fit(name).on(trained.at(classified.start)).score(trained.train)


def test_unlike_checkpoints_are_named(classified: Problem) -> None:
    trained, other = classified.trained, nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))
    for method in (methods.TracIn([other]), methods.TRAK([other.state_dict()]), methods.GraNd([other]),
                   methods.SOURCE([Segment([other], 0.1, 1)]), methods.MAGIC(other)):  # fmt: skip
        with pytest.raises(ModelError, match="does not fit the model"):
            method.fit(trained)
    with pytest.raises(UsageError, match="2 rates for 1"):
        methods.TracIn([trained.model], [1.0, 2.0]).fit(trained)


def test_what_has_no_self_influence_says_so(classified: Problem) -> None:
    for name in ("trak", "cg"):
        with pytest.raises(UsageError, match="self-influence"):
            classified.fit(name).self_influence()
