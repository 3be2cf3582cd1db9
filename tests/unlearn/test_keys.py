"""The key law for unlearning: whatever is a setting changes the key of what it is used for, or says why it does not."""

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.unlearn import cases
from tests.unlearn.condense.cases import vector_pool
from whence.cache import SGD, AdamW, Bank, Recipe, Store, subset_masks
from whence.cache.retrain.recipe import Schedule
from whence.cache.store.keys import key_of
from whence.unlearn import METHODS, Matching
from whence.unlearn.condense import METHODS as CONDENSATION
from whence.unlearn.condense import MLP, ConvNet, Settings, select
from whence.unlearn.condense.condensing import Job
from whence.unlearn.condense.selection import RULES
from whence.unlearn.datamodels import lasso, ridge

# another value of fields for which a number larger by one, or the text with a letter more, is no value
OTHER: dict[str, Any] = {
    "kind": "linear", "batches": "shared", "clip": 1.0, "optimiser": SGD(0.03), "schedule": Schedule("cosine", 0.2),
    "warmup": 0.5, "betas": (0.5, 0.9), "momentum": 0.7, "network": MLP((3,)), "inner": 3, "epochs": 4,
    "init": "noise", "augment": ("flip",), "norm": "group", "pool": "max", "activation": "tanh", "inverse": None,
    "matching": Matching(3), "nesterov": True, "retain": "kl",
}  # fmt: skip
# of the fields without a default
NEEDED = {"datamodel": lambda: ridge(cases.subsets()), "oracles": cases.oracles, "layer": lambda: "mix"}


def changed(value: Any) -> Iterator[tuple[str, Any]]:
    """Every setting's name with a copy of the dataclass in which that setting is another."""
    for field in fields(value):
        if "why" in field.metadata or field.name == "method":
            continue
        now = getattr(value, field.name)
        new = OTHER.get(field.name, MISSING)
        if new is MISSING or new == now:
            new = not now if isinstance(now, bool) else now + ("x" if isinstance(now, str) else 1)
        yield field.name, replace(value, **{field.name: new})


def built(name: str) -> Any:
    own = {field.name for field in fields(METHODS[name])}
    return METHODS[name](**{field: make() for field, make in NEEDED.items() if field in own})


@pytest.mark.parametrize("name", METHODS)
def test_every_field_of_a_method_is_a_setting_or_says_why_not(name):
    method = built(name)
    assert method.settings()["method"] == name
    for field in fields(method):
        assert (field.name in method.settings()) != bool(field.metadata.get("why")), field.name
    for field, other in changed(method):
        assert other.settings() != method.settings(), field
        inner = getattr(method, field)
        for nested, changed_inner in changed(inner) if is_dataclass(inner) else ():
            assert replace(method, **{field: changed_inner}).settings() != method.settings(), nested


def test_settings_of_methods_differ():
    everything = [str(built(name).settings()) for name in METHODS]
    assert len(set(everything)) == len(METHODS)


RECIPES = [Recipe(), Recipe(optimiser=AdamW()), Recipe(schedule=Schedule("cosine", 0.1, 0.1))]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_every_field_of_a_recipe_changes_the_key_of_a_bank(recipe):
    masks, seeds = subset_masks(cases.TRAIN, 4, 0.5), np.arange(4)

    def key(recipe: Recipe) -> str:
        bank = Bank(cases.net, cases.bank().task, cases.train(), cases.points(), recipe)
        return key_of("bank", bank.inputs(masks, seeds))

    others = [other for _, other in changed(recipe)]
    others += [replace(recipe, optimiser=other) for _, other in changed(recipe.optimiser)]
    others += [replace(recipe, schedule=other) for _, other in changed(recipe.schedule)]
    keys = [key(recipe), *map(key, others)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("method", CONDENSATION)
def test_every_field_of_a_condensation_changes_its_key(method):
    settings = Settings(method, ConvNet(), per_class=2, outer=4, warm_outer=1)
    others = [replace(settings, method=other) for other in CONDENSATION if other != method]

    def key(settings: Settings) -> str:
        return key_of("model", Job(settings, vector_pool(), (0,)).inputs(settings.outer))

    found = {other.method: key(other) for other in others}
    found |= {name: key(other) for name, other in changed(settings)}
    found |= {f"network.{name}": key(replace(settings, network=other)) for name, other in changed(settings.network)}
    assert key(settings) not in found.values()
    assert len(set(found.values())) == len(found)


def test_every_field_of_a_selection_changes_the_data_that_keys_name():
    pool = vector_pool()
    prints = [select(pool, rule, 3).fingerprint for rule in RULES]
    prints += [select(pool, "random", 3, seed=1).fingerprint, select(pool, "random", 4).fingerprint]
    prints += [select(pool, "herding", 3, features=pool.x[:, ::-1] ** 3).fingerprint]
    assert len({pool.fingerprint, *prints}) == len(prints) + 1


def test_how_a_datamodel_was_fitted_is_in_its_key_unless_by_default(tmp_path):
    store, bank = Store(tmp_path), cases.subsets()
    fits = [
        ridge(bank), ridge(bank, seed=1), ridge(bank, (1.0, 10.0)), ridge(bank, (1.0, 10.0), seed=1),
        lasso(bank), lasso(bank, (0.3, 0.1)),
    ]  # fmt: skip
    keys = [fit.save(store, {"bank": "b", "method": str(number > 3)}) for number, fit in enumerate(fits)]
    assert len(set(keys)) == len(fits)
    for number, method in ((0, "False"), (4, "True")):
        usual = {"datamodel": "regression", "penalty": fits[number].penalty, "bank": "b", "method": method}
        assert keys[number] == key_of("datamodel", usual)
