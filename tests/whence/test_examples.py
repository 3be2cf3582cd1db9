"""The examples in the docstrings of public names run as they stand.

They call by the names of `STAGE` what a reader has: a model, its task and data, a dictionary, retrained models, a pool.
"""

import doctest
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.cases import vectors
from tests.unlearn import cases
from tests.unlearn.condense.cases import vector_pool
from whence import attrib, cache, decomp
from whence.cache import Classification, Store, find_sites
from whence.unlearn import OracleSplit

ROOMS = ("cache", "attrib", "decomp", "unlearn", "whence.unlearn.condense")
# what no room works without shows how it is used
SHOWN = {
    "cache": {"Examples", "Store", "find_sites", "capture", "activations", "Classification"},
    "attrib": {"EKFAC", "score", "self_influence", "top", "Reading"},
    "decomp": {"Activations", "ITDA", "Dictionary", "evaluate", "compare", "save", "load"},
    "unlearn": {"ridge", "UnlearningRequest", "run", "evaluate", "KLoM"},
    "whence.unlearn.condense": {"Pool", "condense", "select", "evaluate"},
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def factors() -> attrib.Factors:
    sites, options = find_sites(model(), quiet=True), attrib.FitOptions(quiet=True)
    return attrib.EKFAC().fit(model(), Classification(), vectors(), sites=sites, options=options)


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
    "factors": factors,
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
    "deletion": cases.request,
    "panel": lambda: OracleSplit.of(cases.request(), cases.oracles(), cases.points()),
}


def examples() -> Iterator[Any]:
    """Every public name that has an example, with its room."""
    for room in ROOMS:
        package = importlib.import_module(room)
        for name, value in vars(package).items():
            if not name.startswith("_") and not inspect.ismodule(value) and ">>>" in (inspect.getdoc(value) or ""):
                yield pytest.param(room, name, id=f"{room}.{name}")


@pytest.mark.filterwarnings("ignore:p95")  # eight models show nothing, and the evaluation says so
@pytest.mark.parametrize(("room", "name"), examples())
def test_it_runs(room: str, name: str, store: Store, tmp_path: Path) -> None:
    package = importlib.import_module(room)
    text = inspect.getdoc(getattr(package, name)) or ""
    stage = {**STAGE, **(UNLEARNED if room == "unlearn" else {})}
    words = set(re.findall(r"\w+", text))
    known = vars(cache) | vars(package) | {"np": np, "torch": torch, "store": store, "folder": tmp_path}
    known |= {word: make() for word, make in stage.items() if word in words}
    example = doctest.DocTestParser().get_doctest(text, known, f"{room}.{name}", None, None)
    said: list[str] = []
    doctest.DocTestRunner().run(example, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("room", SHOWN)
def test_what_is_used_first_has_an_example(room: str) -> None:
    package = importlib.import_module(room)
    assert {name for name in SHOWN[room] if ">>>" not in (inspect.getdoc(getattr(package, name)) or "")} == set()
