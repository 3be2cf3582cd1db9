"""What the other packages share: models and data are watched, copies are trained, and arrays are stored.

This is what users need. Inside, from the bottom up: `errors`; `display` (tables, charts, pages from plain values);
`store` (keys, entries, commits); `jobs` (partitions on any number of workers); `model` (data, tasks, sites, capture);
`retrain` (recipes, banks). A part imports only those before it.

A name is imported when it is first used: what reads the store needs neither torch nor JAX.
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if __name__ != "whence.cache":
    raise ImportError("This package is whence.cache: write `from whence import cache`, not `import cache`.")

# errors
from .errors import DataError as DataError
from .errors import NotCached as NotCached
from .errors import ModelError as ModelError
from .errors import NumericalError as NumericalError
from .errors import ResourceError as ResourceError
from .errors import UsageError as UsageError

if TYPE_CHECKING:
    # data and models
    from .model.examples import Examples as Examples
    from .model.sites import Sites as Sites
    from .model.finding import find_sites as find_sites
    from .model.task import Classification as Classification
    from .model.task import LanguageModelling as LanguageModelling
    from .model.task import Regression as Regression
    from .model.task import Task as Task
    from .model.trained import TrainedModel as TrainedModel

    # loops over data
    from .model.activations import activations as activations
    from .model.gradients import gradients as gradients

    # retraining
    from .retrain.bank import Bank as Bank
    from .retrain.recipe import SGD as SGD
    from .retrain.recipe import AdamW as AdamW
    from .retrain.recipe import Recipe as Recipe
    from .retrain.retrained import oracle_masks as oracle_masks
    from .retrain.retrained import subset_masks as subset_masks

    # recording a run that trains a model
    from . import runs as runs

    # the store
    from .store.entry import Entry as Entry
    from .store.layout import ArraySpec as ArraySpec
    from .store.store import Store as Store

    # more tasks
    from . import tasks as tasks

_PLACES: Mapping[str, str] = {
    "Examples": "model.examples",
    "Sites": "model.sites",
    "find_sites": "model.finding",
    "Classification": "model.task",
    "LanguageModelling": "model.task",
    "Regression": "model.task",
    "Task": "model.task",
    "TrainedModel": "model.trained",
    "activations": "model.activations",
    "gradients": "model.gradients",
    "Bank": "retrain.bank",
    "SGD": "retrain.recipe",
    "AdamW": "retrain.recipe",
    "Recipe": "retrain.recipe",
    "oracle_masks": "retrain.retrained",
    "subset_masks": "retrain.retrained",
    "Entry": "store.entry",
    "ArraySpec": "store.layout",
    "Store": "store.store",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        found = getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    elif name in ("runs", "tasks"):
        found = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.endswith("Error")), "NotCached", *_PLACES, "runs", "tasks"})
