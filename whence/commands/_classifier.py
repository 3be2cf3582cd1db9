"""What the commands of bank and unlearn share: the classifier that is retrained, and forget sets by name."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from whence.cache import Examples, UsageError
from whence.files import read_text
from whence.options import Count, Device, Positive, Share

from ._problem import ProblemOptions
from ._shared import Stored

if TYPE_CHECKING:
    from whence.cache.retrain.bank import Bank


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions(ProblemOptions, Stored):
    """A model and how it is trained: a classifier by name, or a problem."""

    on: str | None = None
    """A problem in place of --data and --network: a name of `whence attrib evaluate --on`, or a Python file of your own
    (docs/models.md)."""
    data: str | None = None
    """digits (the default), an .npz with x_train, y_train, x_test and y_test, or a table (.csv, .parquet, .jsonl) with
    a column of classes (--label-column) and columns of numbers. With --on, data of a problem of your own."""
    network: str = "mlp-32"
    """mlp-32, mlp-64-32 (hidden widths), conv-8-16 (channels) or residual-16-2 (width and blocks)."""
    share: Share = 0.75
    """Share of the training examples in each random subset."""
    epochs: Count = 40
    """Epochs of each training."""
    batch: Count = 50
    """Examples per step."""
    rate: Positive = 0.02
    """Learning rate."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """sgd has momentum 0.9."""
    device: Device = "cpu"
    """The device of the models: cpu, cuda, cuda:1."""

    def make_bank(self, keep: str = "logits,margins") -> "Bank":
        """The bank of these options that keeps the outputs named in `keep`."""
        from whence.classifiers import make_bank, recipe_of

        recipe = recipe_of(self.epochs, self.batch, self.rate, self.optimiser)
        if self.on is not None:
            problem = replace(self.problem(recipe=recipe), device=self.device)
            return problem.population(tuple(name.strip() for name in keep.split(",")))
        if self.training is not None:
            raise UsageError("A recorded run needs the file that builds its model.", "Give --on FILE.py.")
        bank = make_bank(self.data or "digits", self.network, recipe, keep, self.columns)
        return replace(bank, device=self.device)


def forget_ids(text: str, train: Examples) -> np.ndarray:
    """ids: `random:20`, `random:20:3` (seed), `neighbours:ID:20` (within its class), `class:8:20`, `3,17,29`, or a
    file of ids (.txt, .csv, .json). Raises UsageError for another text, and for an id named twice."""
    from whence.unlearn import forget_sets

    parts = text.split(":")
    try:
        if parts[0] == "random":
            return forget_sets.random_set(train, *map(int, parts[1:]))
        if parts[0] == "neighbours":
            return forget_sets.neighbours(train, int(parts[1]), int(parts[2]), within="y")
        if parts[0] == "class":
            return forget_sets.class_slice(train, int(parts[1]), int(parts[2]))
        return listed_ids(text)
    except (ValueError, IndexError, TypeError) as error:
        raise UsageError(
            f"{text!r} names no forget set.",
            "Use random:20, neighbours:17:20, class:8:20, ids such as 3,17,29, or a file of ids.",
        ) from error


def listed_ids(text: str) -> np.ndarray:
    """Ids separated by commas, or a file of them as `whence attrib select --out` writes it. Raises UsageError for what
    is no id, or is named twice."""
    path = Path(text)
    words = re.split(r"[\s,\[\]]+", read_text(path).removeprefix("id\n") if path.is_file() else text)
    names = [word for word in words if word]
    wrong = [name for name in names if not re.fullmatch(r"-?[0-9]{1,18}", name)]
    if wrong or not names:
        where = f" in {path}" if path.is_file() else ""
        raise UsageError(
            f"{wrong[0] if wrong else text!r}{where} names no example.",
            "Use random:20, neighbours:17:20, class:8:20, ids such as 3,17,29, or a file of ids.",
        )
    twice = [name for n, name in enumerate(names) if name in names[:n]]
    if twice:
        raise UsageError(f"The id {twice[0]} is named twice.", "Name every example once.")
    return np.array([int(name) for name in names], np.int64)
