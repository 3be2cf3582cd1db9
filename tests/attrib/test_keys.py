"""The key law: a setting that changes a result changes its key, and so do all the stages on the way to it.

Every field of every method, and of the dataclasses and methods in it, has a row in `others`: a second value. With it
the key of the fit differs, or the field says (`not_in_key`) why not and the key of the scores differs. A result that
is computed in a store with everything else in it equals one that is computed in an empty store, bit for bit.
"""

import copy
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from whence.attrib import CurvatureMethod, Damping, Method, methods
from whence.attrib.index import Sketch, build_index
from whence.attrib.merge import Basis, factors_of, merge, moment_sums, square_sums, subtract
from whence.attrib.method import CheckpointMethod
from whence.attrib.methods.source import Segment
from whence.cache import (
    Classification,
    DataError,
    Examples,
    LanguageModelling,
    Regression,
    Store,
    TrainedModel,
    gradients,
)
from whence.cache.retrain.recipe import SGD, AdamW, Recipe, Schedule

RECIPE = Recipe(2, 6, SGD(0.1, momentum=0.5), batches="shared")


@dataclass(frozen=True)
class Problem:
    trained: TrainedModel
    early: nn.Module
    late: nn.Module

    def others(self) -> dict[type, dict[str, Any]]:
        """A second value of every field, by the class that declares it."""
        m, early, late = methods, self.early, self.late
        return {
            Damping: {"value": 0.7, "rule": "absolute", "per_site": {"0": 0.5}},
            CurvatureMethod: {"damping": Damping(0.7), "labels": "true", "seed": 1},
            CheckpointMethod: {"checkpoints": [late, early]},
            m.Identity: {"labels": "sampled"},
            m.KFAC: {"eigen": "float64"},
            m.EKFAC: {"eigen": "float64", "basis_examples": 5, "redraw": False, "products": "bfloat16"},
            m.Shampoo: {"corrected": False, "eigen": "float64"},
            m.CG: {"ekfac": m.KFAC(), "tolerance": 0.3, "iterations": 3},
            m.ASTRA: {"ekfac": m.KFAC(), "iterations": 3, "batch": 5, "rate": 0.1, "seed": 1},
            m.LiSSA: {"damping": Damping(0.7), "depth": 4, "batch": 5, "repeats": 2, "scale": 30.0, "seed": 1},
            m.DataInf: {"damping": Damping(0.7)},
            m.TracIn: {"rates": [0.2, 0.1]},
            m.TRAK: {"width": 8, "damping": 0.1, "seed": 1},
            m.LoGra: {"rank": 2, "start": "pca", "damping": Damping(0.7), "seed": 1},
            m.SOURCE: {"segments": (Segment([early], 0.1, 3),), "seed": 1, "parts": 2},
            Segment: {"checkpoints": [late, early], "rate": 0.2, "steps": 5},
            m.BIF: {"draws": 5, "every": 1, "burn_in": 2, "rate": 2e-5, "locality": 10.0, "beta": 0.5, "batch": 5,
                    "seed": 1},
            m.Daunce: {"checkpoints": [late, early, late]},
            m.MAGIC: {"start": late, "recipe": Recipe(1, 5, batches="shared"), "seed": 1},
            Recipe: {"epochs": 1, "batch_size": 5, "optimiser": SGD(0.3), "schedule": Schedule("linear"),
                     "batches": "own", "clip": 0.1},
            SGD: {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
            AdamW: {"lr": 0.2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.1},
            Schedule: {"kind": "cosine", "warmup": 0.5, "final": 0.2},
            m.Representation: {"at": "0"},
            m.BM25: {"k1": 1.1, "b": 0.2},
        }  # fmt: skip

    def method(self, name: str) -> Method:
        """The method with its first values: its defaults, if nothing is smaller or necessary."""
        m, early, late = methods, self.early, self.late
        given = {
            "identity": m.Identity(damping=Damping()),
            "cg": m.CG(iterations=2),
            "astra": m.ASTRA(iterations=2, batch=4),
            "lissa": m.LiSSA(depth=3, batch=4),
            "tracin": m.TracIn([early, late], [0.1, 0.2]),
            "trak": m.TRAK(width=16),
            "logra": m.LoGra(rank=3, start="random"),
            "source": m.SOURCE((Segment([early], 0.1, 3), Segment([late], 0.1, 3))),
            "magic": m.MAGIC(early, RECIPE),
            "adamw": m.AdamWInfluence(early, RECIPE),
            "bif": m.BIF(draws=4, every=2, burn_in=3),
            "daunce": m.Daunce([early, late]),
            "magic, AdamW": m.MAGIC(early, replace(RECIPE, optimiser=AdamW(0.05))),
        }
        return given.get(name) or methods.METHODS[name]()


@pytest.fixture(scope="module")
def problem() -> Problem:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), cases.vectors(count=14)
    train = Examples.of((data.columns["x"].astype(np.float32), data.columns["y"]), ids=data.ids + 40)
    return Problem(TrainedModel(model, train, Classification(), quiet=True), moved(model), moved(model))


def moved(model: nn.Module) -> nn.Module:
    out = copy.deepcopy(model)
    with torch.no_grad():
        for p in out.parameters():
            p.add_(torch.randn_like(p), alpha=0.2)
    return out


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for all methods and values."""
    return Store(tmp_path_factory.mktemp("shared"))


def variations(value: Any, others: dict[type, dict[str, Any]]) -> Iterator[tuple[str, Field, Any]]:
    """(path, field, value with that field changed) for every field, those of nested dataclasses too."""
    for each in fields(value):
        own = getattr(value, each.name)
        other = next(others[c][each.name] for c in type(value).__mro__ if each.name in others.get(c, {}))
        assert other != own, each.name
        yield each.name, each, replace(value, **{each.name: other})
        first = own[0] if isinstance(own, tuple) and own else own
        if is_dataclass(first):
            for path, _, changed in variations(first, others):
                nested = (changed, *own[1:]) if isinstance(own, tuple) else changed
                yield f"{each.name}.{path}", each, replace(value, **{each.name: nested})


def scored(method: Method, trained: TrainedModel, store: Store) -> tuple[dict, str, np.ndarray]:
    """The fit's inputs, the scores' key, and the scores."""
    fitted = method.fit(trained.replace(store=store))
    values = fitted.score(trained.train.select([1, 0, 4])).values
    return dict(fitted.inputs), store.events[-1].key, values


@pytest.mark.parametrize("name", [*methods.METHODS, "magic, AdamW"])
def test_every_field_is_in_a_key(
    name: str, problem: Problem, shared: Store, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whence.attrib.methods.magic.AGREES", np.inf)  # other recipes end elsewhere
    trained = problem.trained
    if name == "bm25":
        trained = trained.replace(train=cases.sequences(count=9, vocabulary=7), task=LanguageModelling())
    first = problem.method(name)
    inputs, key, _ = scored(first, trained, shared)
    for number, (path, field, method) in enumerate(variations(first, problem.others())):
        other_inputs, other_key, values = scored(method, trained, shared)
        assert other_key != key, f"{name}.{path} changes no key"
        assert other_inputs != inputs or "why" in field.metadata, f"{name}.{path} is not in the fit's key"
        alone = scored(method, trained, Store(tmp_path / str(number)))
        assert (alone[0], alone[1]) == (other_inputs, other_key)
        np.testing.assert_array_equal(values, alone[2], err_msg=f"{name}.{path} shares a stage with another value")


def test_a_reason_is_given_for_every_field_that_is_not_in_the_key() -> None:
    reasons = {
        each.metadata["why"]
        for method in methods.METHODS.values()
        for each in fields(method)
        if "why" in each.metadata
    }  # fmt: skip
    assert all(reason.startswith("enters") for reason in reasons)


def test_another_loss_than_was_fitted_is_in_the_key_of_the_scores() -> None:
    case = cases.build("regression")
    normal, sign = (methods.GraNd().fit(case.trained(task=Regression(noise=noise))) for noise in ("normal", "sign"))
    queries = case.examples.select([0])
    other = normal.measuring(sign.trained.task)
    assert other.score_inputs(queries, case.examples) != sign.score_inputs(queries, case.examples)


def test_of_a_trained_model_only_model_data_task_and_sites_are_in_the_key(problem: Problem, tmp_path) -> None:
    trained = problem.trained
    changes = {
        "model": problem.late, "train": trained.train.select(range(13)), "task": Classification("margin"),
        "sites": "0", "dtype": torch.float64,
    }  # fmt: skip
    options = {
        "store": Store(tmp_path), "device": "cpu", "memory": 10**9, "positions": 3, "spill": 0, "quiet": False,
        "check": False, "cluster": "local:1", "log": str(tmp_path / "log"), "verdicts": {},
        "training": None,
    }  # fmt: skip
    assert {*changes, *options} == {each.name for each in fields(trained) if each.name != "_"} - {"checks"} | {"check"}
    inputs = methods.Identity().fit(trained).inputs
    for name, value in changes.items():
        assert methods.Identity().fit(trained.replace(**{name: value})).inputs != inputs, name
    for name, value in options.items():
        assert methods.Identity().fit(trained.replace(**{name: value})).inputs == inputs, name


def test_gradients_stored_in_another_type_are_in_the_key(problem: Problem, tmp_path) -> None:
    """What is computed from bfloat16 gradients is neither stored as the exact result nor read as it."""
    trained = problem.trained
    queries, exact = trained.train.select([1, 0, 4]), Store(tmp_path / "exact")
    factors = methods.EKFAC().fit(trained)

    def answers(store: Store) -> tuple[list[str], list[np.ndarray]]:
        own, seen = factors.on(trained.replace(store=store)), len(store.events)
        scores, best, self_influence = own.score(queries), own.top(queries, 2), own.self_influence()
        index = build_index(own, sketch=Sketch("largest", 20))
        found = [scores.values, best["helpful"].values, self_influence.values, index.scores(queries)]
        events = [event for event in store.events[seen:] if event.kind == "scores" or event.key == index.entry.key]
        return list(dict.fromkeys(event.key for event in events)), found

    keys, values = answers(exact)
    run = trained.run("loss", factors.sites)
    for shared in (exact, Store(tmp_path / "halves")):
        gradients(run, shared, dtype="bfloat16")
        half_keys, halves = answers(shared)
        assert not {*keys} & {*half_keys}
        assert all((one != other).any() for one, other in zip(values, halves))
    gradients(run, shared)
    again, found = answers(shared)
    assert again == keys
    for one, other in zip(values, found):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_merged_sums_are_named_by_the_contents_of_their_examples(problem: Problem) -> None:
    trained = problem.trained
    train = trained.train
    changed = Examples({**train.columns, "x": np.asarray(train.columns["x"]) + 1}, train.ids)
    basis = Basis.of(moment_sums(trained, train))
    one, other = (square_sums(basis, trained, data) for data in (train, changed))
    first, second = train.select(range(5)), train.select(range(5, len(train)))
    both = merge(square_sums(basis, trained, second), square_sums(basis, trained, first))
    keys = [factors_of(basis, trained, sums).inputs["data"] for sums in (one, other, both)]
    assert keys[0] == keys[2] != keys[1]
    with pytest.raises(DataError, match="others there"):
        subtract(one, square_sums(basis, trained, changed.select([0])))
