"""Banks of retrained models, and the datamodels that are fitted on them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from whence import attrib
from whence.cache import (
    AdamW,
    Bank,
    Classification,
    LanguageModelling,
    Recipe,
    Regression,
    Store,
    TrainedModel,
    oracle_masks,
    subset_masks,
)  # fmt: skip
from whence.cache.retrain.recipe import Schedule
from whence.cache.retrain.retrained import Retrained, retrained_from
from whence.unlearn import datamodels
from whence.unlearn.datamodels.regression import Regression as FittedRegression

from . import models as given
from .registry import ARTEFACTS, READERS, Made, artefact, last, only, stored
from .tasks import RECIPE

FORGET = np.array([101, 105, 109, 113])


def bank(**changed: Any) -> Bank:
    own = {"model": given.net, "task": Classification(), "train": given.train(), "points": given.points()}
    return Bank(**{**own, "recipe": RECIPE, **changed})


def reading_bank() -> Bank:
    recipe = Recipe(epochs=2, batch_size=8, optimiser=AdamW(0.03125))
    return Bank(given.reader, LanguageModelling(), given.texts(), given.texts(), recipe)


class Retraining(NamedTuple):
    bank: Callable[[], Bank]
    masks: Callable[[], np.ndarray]
    seeds: Any = None


def neighbourhoods() -> np.ndarray:
    near = datamodels.nearest(given.train(), given.train(), 8)
    return datamodels.neighbourhood_masks(near, 44, smallest=3, seed=1)


BANKS = {
    "subsets": Retraining(bank, lambda: subset_masks(32, 44, 0.75)),
    "neighbourhoods": Retraining(bank, neighbourhoods),
    "oracles": Retraining(bank, lambda: oracle_masks(given.train().ids, FORGET, 8), 500 + np.arange(8)),
    "one start": Retraining(
        lambda: bank(model=given.net(5)), lambda: subset_masks(32, 3, 0.5, seed=2), np.array([-4, 0, 7])
    ),
    "everything kept": Retraining(
        lambda: bank(keep=("weights", "losses", "measurements", "margins", "logits")),
        lambda: subset_masks(32, 2, 0.5, seed=3),
        np.array([4, 9]),
    ),
    "recipe": Retraining(
        lambda: bank(recipe=Recipe(3, 16, AdamW(0.03125), Schedule("cosine", 0.25, 0.125), "shared", 1.0)),
        lambda: subset_masks(32, 2, 0.75),
    ),
    "own training": Retraining(lambda: bank(recipe=given.own_training), lambda: subset_masks(32, 2, 0.75)),
    "text": Retraining(reading_bank, lambda: oracle_masks(given.texts().ids, given.texts().ids[:3], 2)),
    "regression": Retraining(
        lambda: bank(
            model=given.regressor, task=Regression(), train=given.pairs(), points=given.pairs(), keep=("losses",)
        ),
        lambda: subset_masks(16, 2, 0.5),
    ),
}  # fmt: skip


def retrained(name: str, store: Store) -> Retrained:
    row = BANKS[name]
    return row.bank().run(row.masks(), row.seeds, store, quiet=True)


def banked(name: str, store: Store) -> Made:
    found = retrained(name, store)
    return stored(store, "bank", found.about["key"], train_ids=found.train_ids, point_ids=found.point_ids)


def read_bank(store: Store, key: str) -> dict[str, np.ndarray]:
    found = retrained_from(store.get(key))
    kept = {f"stored {name}": found[name] for name in found.outputs}
    return kept | {"train_ids": found.train_ids, "point_ids": found.point_ids, "stored mask": found.masks}


ARTEFACTS |= {f"bank/{name}": partial(banked, name) for name in BANKS}
READERS |= {f"bank/{name}": read_bank for name in BANKS}


@artefact("bank/models")
def _(store: Store) -> Made:
    replicas = bank().models(3, 100, store, quiet=True)
    return last(store, "bank", weights=replicas.flat)


DATAMODELS: dict[str, Callable[[Retrained], FittedRegression]] = {
    "ridge": lambda found: datamodels.ridge(found, (1.0, 10.0, 100.0), seed=1),
    "lasso": lambda found: datamodels.lasso(found, (0.3, 0.1)),
}


def bounds(found: Any) -> np.ndarray:
    return np.array([found.value, found.low, found.high])


def predicted(datamodel: Any) -> np.ndarray:
    return datamodel.predict_delta(FORGET, given.points().select([1, 5, 20, 39]))


def datamodel(name: str, store: Store) -> Made:
    """Kept as the command does."""
    found = retrained("subsets", store)
    made = DATAMODELS[name](found)
    header = store.header("bank", found.about["key"])
    same = {part: header.inputs[part] for part in ("train", "points")}
    key = made.save(store, {"bank": header.key, "method": name, **same})
    # a lasso predicts ties; those were ranked in order of place, and have their mean rank since
    lds = {} if name == "lasso" else {"lds": bounds(made.lds)}
    return stored(store, "datamodel", key, delta=predicted(made), penalty=made.penalty, **lds)


def read_datamodel(store: Store, key: str) -> dict[str, np.ndarray]:
    found = FittedRegression.of(store.get(key))
    return {"delta": predicted(found), "penalty": np.asarray(found.penalty), "lds": bounds(found.lds)}


ARTEFACTS |= {f"datamodel/{name}": partial(datamodel, name) for name in DATAMODELS}
READERS |= {f"datamodel/{name}": read_datamodel for name in DATAMODELS}


@artefact("datamodel/grouped")
def _(store: Store) -> Made:
    near = datamodels.nearest(given.train(), given.points(), 30)
    made = datamodels.grouped(retrained("neighbourhoods", store), near, penalty=5.0)
    return only({"penalty": 5.0}, delta=predicted(made), lds=bounds(made.lds))


@artefact("datamodel/influence")
def _(store: Store) -> Made:
    trained = TrainedModel(given.net(0), given.train(), Classification(), store=store, quiet=True)
    exact = datamodels.exact(trained, damping=0.25, l2=0.125)
    # "averaged" over projections was frozen too: the projection has other random numbers since
    return only(
        {},
        ekfac=predicted(datamodels.Influence(attrib.EKFAC().fit(trained))),
        exact=predicted(datamodels.Influence(exact, scale=0.5)),
        group=predicted(datamodels.Influence(exact, group=1)),
    )
