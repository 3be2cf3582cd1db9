"""What every method keeps to: a new method is one more row of ROWS."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from whence.attrib.states import scores_of

from tests import cases
from whence.attrib import FitOptions, methods
from whence.attrib.methods.source import Segment
from whence.cache import Classification, Examples, LanguageModelling, ModelError, Store, UsageError
from whence.cache.retrain.recipe import SGD, Recipe

QUIET = FitOptions(quiet=True)
RECIPE = Recipe(epochs=6, batch_size=6, optimiser=SGD(0.1, momentum=0.5), batches="shared")


@dataclass(frozen=True)
class Row:
    """build(start, end): the method for a run from start to end. asks: whether the query enters its scores.
    called: the name that its scores carry, where it is another."""

    build: Callable[[nn.Module, nn.Module], Any]
    units: str = "nats"
    classification: bool = True
    asks: bool = True
    called: str = ""


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
    "representation": Row(lambda start, end: methods.Representation(), "cosine"),
    "grand": Row(lambda start, end: methods.GraNd([start, end]), "norm of the gradient", asks=False),
    "el2n": Row(lambda start, end: methods.EL2N([start, end]), "norm of the error", asks=False),
    "bm25": Row(lambda start, end: methods.BM25(), "BM25", classification=False),
}


def test_every_method_has_a_row() -> None:
    assert set(ROWS) == set(methods.METHODS)


@dataclass(frozen=True)
class Problem:
    start: nn.Module
    end: nn.Module
    task: Any
    train: Examples


def problem(kind: str) -> Problem:
    """A few steps of training, float32, and both its ends."""
    from whence.attrib.methods.magic import record, trained

    torch.manual_seed(0)
    if kind == "language":
        start, task, train = cases.FlatRows(), LanguageModelling(), cases.sequences(count=9, vocabulary=7)
    else:
        start, task = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), Classification()
        data = cases.vectors(count=14)
        train = Examples.of((data.columns["x"].astype(np.float32), data.columns["y"]), ids=data.ids + 40)
    return Problem(start, trained(record(start, task, train, RECIPE, 0, True)), task, train)


PROBLEMS: dict[str, Problem] = {}


def scored(name: str, kind: str, options: FitOptions = QUIET, store: Store | None = None, queries: Any = None) -> Any:
    p = PROBLEMS.setdefault(kind, problem(kind))
    method = ROWS[name].build(p.start, p.end)
    state = method.fit(p.end, p.task, p.train, store=store, options=options)
    asked = p.train.select([1, 0, 4]) if queries is None else queries
    return scores_of(state, p.end, p.task, asked, p.train, store=store, options=options)


@pytest.mark.parametrize("name", ROWS)
def test_shape_units_batches_and_store(name: str, tmp_path) -> None:
    row = ROWS[name]
    kind = "classification" if row.classification else "language"
    scores = scored(name, kind)
    p = PROBLEMS[kind]
    assert scores.dims == ("query", "train")
    assert list(scores["train"].values) == list(p.train.ids)
    assert list(scores["query"].values) == list(p.train.ids[[1, 0, 4]])
    assert scores.attrs["units"] == row.units
    assert scores.attrs["method"] == (row.called or name)
    assert np.isfinite(scores.values).all()
    assert scores.values.std() > 0
    scale = np.abs(scores.values).max()
    narrow = scored(name, kind, FitOptions(quiet=True, positions=3))
    np.testing.assert_allclose(narrow.values, scores.values, atol=2e-4 * scale)
    store = Store(tmp_path)
    kept = scored(name, kind, store=store)
    np.testing.assert_allclose(kept.values, scores.values, atol=2e-4 * scale)
    again = scored(name, kind, store=store)
    np.testing.assert_array_equal(again.values, kept.values)
    assert store.events[-1].what == "hit"
    assert all(parameter.requires_grad for parameter in p.end.parameters())


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.asks])
def test_an_example_helps_itself(name: str) -> None:
    kind = "classification" if ROWS[name].classification else "language"
    p = PROBLEMS.setdefault(kind, problem(kind))
    scores = scored(name, kind, queries=p.train).values
    own = np.diag(scores)
    assert (own > 0).mean() > 0.85
    assert (own > np.median(scores, axis=1)).mean() > 0.85


@pytest.mark.parametrize("name", ["cg", "trak", "logra", "magic", "representation", "el2n"])
def test_sequences_too(name: str) -> None:
    scores = scored(name, "language")
    narrow = scored(name, "language", FitOptions(quiet=True, positions=20))
    assert np.isfinite(scores.values).all()
    np.testing.assert_allclose(narrow.values, scores.values, atol=5e-4 * np.abs(scores.values).max())


def test_another_model_is_refused() -> None:
    p = PROBLEMS.setdefault("classification", problem("classification"))
    for name in ("tracin", "trak", "logra", "source", "magic", "representation"):
        state = ROWS[name].build(p.start, p.end).fit(p.end, p.task, p.train, options=QUIET)
        with pytest.raises(ModelError, match="fitted on a model"):
            scores_of(state, p.start, p.task, p.train, p.train, options=QUIET)


def test_unlike_checkpoints_are_named() -> None:
    p = PROBLEMS.setdefault("classification", problem("classification"))
    other = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))
    for method in (methods.TracIn([other]), methods.TRAK([other.state_dict()]), methods.GraNd([other]),
                   methods.SOURCE([Segment([other], 0.1, 1)]), methods.MAGIC(other)):  # fmt: skip
        with pytest.raises(ModelError, match="does not fit the model"):
            method.fit(p.end, p.task, p.train, options=QUIET)
    with pytest.raises(UsageError, match="2 rates for 1"):
        methods.TracIn([p.end], [1.0, 2.0]).fit(p.end, p.task, p.train, options=QUIET)
