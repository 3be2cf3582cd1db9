"""A problem of one's own: a Python file that says how a model is built and trained, and a recorded run.

    def build(seed): ...                          # an untrained model
    recipe = Recipe(10, 32, AdamW(1e-3))          # or a function (model, examples, seed) -> trained model
    def data(): ...                               # (training examples, held-out points); or --data

The file may also have `task` (by default Classification if the data have `y`, else LanguageModelling), `sites` (globs
of the layers that are attributed), `tokenizer` (of a model that reads text: a folder or an object) and `epochs`
(passes of a training function, for the compute that unlearning is compared with).
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

from whence.cache import (
    Classification,
    DataError,
    Examples,
    LanguageModelling,
    Recipe,
    TrainedModel,
    UsageError,
)
from whence.cache.model.checkpoints import with_weights
from whence.cache.model.runs import TrainingRun
from whence.cache.retrain.trajectory import Trajectory

from ..classifiers import labelled
from ..corpora import Vocabulary, load
from .problem import Problem

PROTOCOL = "Give it `build(seed)`, a `recipe` and `data()`; see docs/models.md."
TABLES = (".csv", ".parquet", ".jsonl", ".arrow")


@dataclass(frozen=True)
class TrainingFunction:
    """A training function of a problem's file, and how many passes over the examples it makes."""

    function: Callable[[nn.Module, Examples, int], nn.Module]
    epochs: int

    def __call__(self, model: nn.Module, examples: Examples, seed: int) -> nn.Module:
        return self.function(model, examples, seed)

    def passes(self, examples: int) -> int:
        return self.epochs * examples


@dataclass(frozen=True, eq=False)
class Replay:
    """A recorded run as a recipe: the same steps, without the examples that are left out. The key of a bank has the
    run's fingerprint in its place (`Bank(version=...)`)."""

    trained: TrainedModel
    run: TrainingRun

    @cached_property
    def trajectory(self) -> Trajectory:
        return Trajectory.again(self.trained, self.run)

    def __call__(self, model: nn.Module, examples: Examples, seed: int) -> nn.Module:
        kept = np.isin(self.trained.train.ids, examples.ids).astype(np.float64)
        return with_weights(model, self.trajectory.reweighted(kept))

    def __repr__(self) -> str:
        return f"again: {self.run!r}"

    def passes(self, examples: int) -> int:
        assert self.run.ids is not None  # else there is no trajectory
        return round(sum(map(len, self.run.ids)) * examples / len(self.trained.train))


def own_problem(
    file: str | Path,
    *,
    data: str | None = None,
    training: str | Path | None = None,
    recipe: Recipe | None = None,
    columns: Mapping[str, str] | None = None,
    length: int = 128,
) -> Problem:
    """The problem of a Python file, which is run.

    Args:
        file: see the docstring of this module.
        data: a file of the data, in place of the file's own: an .npz with x_train, y_train, x_test and y_test; a table
            with a column of classes; or texts, of which the last tenth are the queries.
        training: a folder that `cache.runs` recorded: its model is the trained one, and retraining takes its steps
            again. The file's recipe is then not used.
        recipe: if the file has none.
        columns: names of the data's columns by the names used here.
        length: tokens at which texts are cut.

    Raises UsageError for a file that lacks something, and what reading the data and the run raises.
    """
    module = _imported(Path(file))
    build = getattr(module, "build", None)
    if not callable(build):
        raise UsageError(f"{file} has no function `build`.", PROTOCOL)
    train, queries = _data(module, data, columns or {}, length)
    task = getattr(module, "task", None) or (Classification() if "y" in train.columns else LanguageModelling())
    sites = getattr(module, "sites", "*")
    chosen: Any = getattr(module, "recipe", None) or recipe or Recipe()
    if callable(chosen) and not isinstance(chosen, Recipe):
        chosen = TrainingFunction(chosen, int(getattr(module, "epochs", 1)))
    name, patterns = Path(file).stem, (sites,) if isinstance(sites, str) else tuple(sites)
    if training is None:
        return Problem(name, build, task, train, queries, chosen, patterns)
    architecture = build(0)
    trained = TrainedModel.from_run(training, architecture, train, task, quiet=True)
    assert trained.training is not None  # of a run
    start = with_weights(architecture, trained.training.checkpoints[0].read())
    replay = Replay(trained, trained.training)
    return Problem(
        name, lambda seed: start, task, train, queries, replay, patterns, pretrained=True, recorded=trained
    )  # fmt: skip


def is_own(name: str) -> bool:
    return name.endswith(".py")


def _imported(path: Path) -> ModuleType:
    """The module of a file, under a name by which its objects can be pickled within this process."""
    if not path.is_file():
        raise UsageError(f"There is no file {path}.", PROTOCOL)
    name = f"whence_problem_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file.", PROTOCOL)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        cause = f"{path} cannot be run: {type(error).__name__}: {error}"
        raise UsageError(cause, "Run it with Python first.") from error
    return module


def _data(module: ModuleType, data: str | None, columns: Mapping[str, str], length: int) -> tuple[Examples, Examples]:
    """Training examples and held-out points, of the file's `data()` or of the data that are named."""
    own = getattr(module, "data", None)
    if data is None:
        if own is None:
            raise UsageError(f"{module.__file__} has no `data()`.", "Give it one, or name the data with --data.")
        train, points = own()
        train, points = Examples.of(train), Examples.of(points)
        if len(np.intersect1d(train.ids, points.ids)):
            points = Examples(points.columns, points.ids + int(train.ids.max()) + 1, points.about)
        return train, points
    tokenizer = getattr(module, "tokenizer", None)
    if data.endswith(".npz") or (tokenizer is None and Path(data).suffix in TABLES):
        train, points = labelled(data, columns)
        return train, points.without(train.ids)
    corpus = load(data, _vocabulary(tokenizer), length=length, columns=columns)
    if len(corpus.train) < 2:
        raise DataError(f"{data} has {len(corpus.train)} examples.", "Give at least two: the last tenth are queries.")
    cut = len(corpus.train) - max(1, len(corpus.train) // 10)
    return corpus.train.select(range(cut)), corpus.train.select(range(cut, len(corpus.train)))


def _vocabulary(tokenizer: Any) -> Vocabulary | None:
    if isinstance(tokenizer, (str, Path)):
        from transformers import AutoTokenizer

        return Vocabulary(AutoTokenizer.from_pretrained(tokenizer))
    return tokenizer if isinstance(tokenizer, Vocabulary) or tokenizer is None else Vocabulary(tokenizer)
