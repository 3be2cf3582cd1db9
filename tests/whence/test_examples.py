"""The examples in the docstrings of public names run as they stand.

They call by the names of `STAGE` what a reader has: a model, its task and data, a dictionary, retrained models, a pool.
"""

import doctest
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.cases import vectors
from tests.unlearn import cases
from tests.unlearn.condense.cases import vector_pool
from whence import attrib, decomp
from whence.cache import Classification, Store, TrainedModel
from whence.unlearn import OracleSplit

PACKAGES = ("cache", "attrib", "decomp", "unlearn", "unlearn.datamodels", "unlearn.condense")
# the names that a reader uses first have an example
SHOWN = {
    "cache": {"Examples", "TrainedModel", "Store", "find_sites", "activations", "Classification"},
    "attrib": {"Method.fit", "Factors.score", "Factors.self_influence", "Factors.top", "ActivationMeasurement"},
    "decomp": {"Activations", "ITDA", "Dictionary", "evaluate", "compare", "save", "load"},
    "unlearn": {"UnlearningRequest", "run", "evaluate", "KLoM"},
    "unlearn.datamodels": {"ridge"},
    "unlearn.condense": {"Pool", "condense", "select", "evaluate"},
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def trained() -> TrainedModel:
    return TrainedModel(model(), vectors(), Classification(), quiet=True)


def read() -> decomp.Activations:
    x = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    return decomp.Activations.of(x, np.arange(200) // 20, np.arange(200) % 20)


def dictionary() -> decomp.Dictionary:
    return decomp.ITDA(size=32, k=4, unexplained=0.1).build(read())


STAGE: dict[str, Callable[[], Any]] = {
    "model": model,
    "task": Classification,
    "train": vectors,
    "queries": lambda: vectors(3, seed=1),
    "trained": trained,
    "factors": lambda: attrib.EKFAC().fit(trained()),
    "read": read,
    "dictionary": dictionary,
    "pool": vector_pool,
}
UNLEARNED: dict[str, Callable[[], Any]] = {
    "task": Classification,
    "train": cases.train,
    "points": cases.points,
    "forget": lambda: cases.FORGET,
    "models": cases.models,
    "recipe": lambda: cases.RECIPE,
    "subsets": cases.subsets,
    "request": cases.request,
    "split": lambda: OracleSplit.of(cases.request(), cases.oracles(), cases.points()),
}


def names_of(module: str) -> dict[str, Any]:
    """What a module has by name, those that it imports when they are first used included."""
    found = importlib.import_module(module)
    return {name: getattr(found, name) for name in (*vars(found), *dir(found))}


def documented(package: str, name: str) -> str:
    """The docstring of a public name, or of a public class's method ("Class.method")."""
    return inspect.getdoc(attrgetter(name)(importlib.import_module(f"whence.{package}"))) or ""


def examples() -> Iterator[Any]:
    """Every public name, and method of a public class, that has an example, with its package."""
    for package in PACKAGES:
        for name, value in names_of(f"whence.{package}").items():
            if name.startswith("_") or inspect.ismodule(value):
                continue
            methods = [m for m, f in vars(value).items() if inspect.isfunction(f)] if inspect.isclass(value) else []
            for full in [name, *(f"{name}.{method}" for method in methods if not method.startswith("_"))]:
                if ">>>" in documented(package, full):
                    yield pytest.param(package, full, id=f"{package}.{full}")


@pytest.mark.filterwarnings("ignore:p95")  # eight models show nothing, and the evaluation says so
@pytest.mark.parametrize(("package", "name"), examples())
def test_it_runs(package: str, name: str, store: Store, tmp_path: Path) -> None:
    text, public = documented(package, name), names_of(f"whence.{package}")
    stage = {**STAGE, **(UNLEARNED if package in ("unlearn", "unlearn.datamodels") else {})}
    words = set(re.findall(r"\w+", text))
    known = names_of("whence.cache") | public | {"np": np, "torch": torch, "store": store, "folder": tmp_path}
    known |= {word: make() for word, make in stage.items() if word in words}
    example = doctest.DocTestParser().get_doctest(text, known, f"{package}.{name}", None, None)
    failures: list[str] = []
    doctest.DocTestRunner().run(example, out=failures.append)
    assert not failures, "".join(failures)


@pytest.mark.parametrize("package", SHOWN)
def test_what_is_used_first_has_an_example(package: str) -> None:
    assert {name for name in SHOWN[package] if ">>>" not in documented(package, name)} == set()
