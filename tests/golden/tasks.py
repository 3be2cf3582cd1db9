"""Tasks and training recipes: settings that are in the keys of others."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from whence.cache import (
    SGD,
    AdamW,
    Bank,
    Classification,
    LanguageModelling,
    Recipe,
    Regression,
    Store,
    Task,
    subset_masks,
)  # fmt: skip
from whence.cache.retrain.recipe import Schedule

from . import models as given
from .registry import ARTEFACTS, Made, settings

TASKS: dict[str, Task] = {
    "language": LanguageModelling(),
    "language margin": LanguageModelling(measure="margin"),
    "classification": Classification(),
    "classification margin": Classification(measure="margin"),
    "classification loss": Classification(measure="loss"),
    "regression": Regression(),
    "regression loss": Regression(measure="loss"),
    "regression sign": Regression(noise="sign"),
}


def task_settings(name: str, store: Store) -> Made:
    task = TASKS[name]
    model, data = {
        "language": (given.reader(0), given.questions()),
        "classification": (given.net(0), given.train(8)),
        "regression": (given.regressor(0), given.pairs()),
    }[name.split()[0]]
    batch = data.batch(np.arange(len(data)))
    return settings(
        task.settings,
        loss=task.loss(model, batch),
        sampled=torch.stack([task.sampled_loss(model, batch, seed) for seed in (0, 5)]),
        measurement=task.measurement(model, batch),
        positions=task.positions(batch),
        logits=task.logits(model, batch),
    )


ARTEFACTS |= {f"task/{name}": partial(task_settings, name) for name in TASKS}

RECIPE = Recipe(epochs=2, batch_size=8, optimiser=SGD(0.25, momentum=0.5))
RECIPES = {
    "published": Recipe(),
    "sgd": RECIPE,
    "nesterov": replace(RECIPE, optimiser=SGD(0.25, 0.5, weight_decay=0.125, nesterov=True)),
    "adamw": replace(RECIPE, optimiser=AdamW(0.03125)),
    "adamw decay": replace(RECIPE, optimiser=AdamW(0.03125, (0.5, 0.75), 1e-3, 0.25)),
    "linear": replace(RECIPE, schedule=Schedule("linear", warmup=0.25, final=0.125)),
    "cosine": replace(RECIPE, schedule=Schedule("cosine", final=0.125)),
    "shared": replace(RECIPE, batches="shared"),
    "clip": replace(RECIPE, clip=0.25),
}


def recipe_settings(name: str, store: Store) -> Made:
    bank = Bank(given.net, Classification(), given.train(), given.points(), RECIPES[name])
    replicas = bank.train_replicas(subset_masks(32, 2, 0.75), np.array([3, 4]))
    return settings(RECIPES[name], weights=replicas.flat)


ARTEFACTS |= {f"recipe/{name}": partial(recipe_settings, name) for name in RECIPES}
