"""Two classes of small images, a convolutional network with group normalisation: the same protocol as the digits'.

The .npz holds x_train, y_train, x_test, y_test (bytes, channels last or first); the classes with labels 3 and 5 are
taken, at 16 x 16 pixels. Judged by the mean of KLoM: at 24 models a side its 95th percentile is mostly noise.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from whence.cache import Classification, DataError, Examples, UsageError
from whence.cache.jobs.progress import say
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, AdamW, Recipe, Schedule
from whence.cache.retrain.retrained import subset_masks
from whence.classifiers import Convolutions
from whence.unlearn import forget_sets
from whence.unlearn.datamodels import ridge
from whence.unlearn.evaluate import evaluate
from whence.unlearn.methods import DMM, DescentAscent, DMDirect, FineTune, Matching, OracleMatching, UnlearningMethod
from whence.unlearn.results import Evaluation

from .forgetting import Forgetting
from .harness import Run

CLASSES, KEPT = (3, 5), 400
MATCHING = Matching(steps=60, batch_size=128, optimiser=AdamW(3e-3))


def images(path: str | None) -> tuple[Examples, Examples]:
    """(training examples, all points). Raises UsageError without a path, DataError for another file."""
    if path is None:
        raise UsageError("This benchmark needs images.", "Give --data FILE.npz.")
    with np.load(Path(path)) as arrays:
        if "x_train" not in arrays:
            raise DataError(f"{path} has no array x_train.", "Name them x_train, y_train, x_test, y_test.")
        parts = []
        for part, most in (("train", KEPT), ("test", KEPT // 2)):
            x, y = arrays[f"x_{part}"], arrays[f"y_{part}"].ravel()
            rows = np.flatnonzero(np.isin(y, CLASSES))[:most]
            parts.append((x[rows], np.searchsorted(CLASSES, y[rows])))
    x = np.concatenate([p[0] for p in parts]).astype(np.float32) / 255 - 0.5
    x = x if x.shape[1] == 3 else np.moveaxis(x, -1, 1)
    small = F.interpolate(torch.as_tensor(x), (16, 16), mode="area").numpy()
    points = Examples.of((small, np.concatenate([p[1] for p in parts]).astype(np.int64)))
    return points.select(np.arange(len(parts[0][0]))), points


def evaluations(run: Run, data: str | None, count: int, subsets: int) -> Iterator[Evaluation]:
    """One per forget set, with `count` models per side."""
    train, points = images(data)
    recipe = Recipe(12, 64, SGD(0.05, 0.9, 5e-4), Schedule("linear", 0.2))
    bank = Bank(lambda seed: Convolutions([16, 16, 16], (3, 16, 16), 2), Classification(), train, points, recipe)
    say(f"{len(train)} images to train on, {len(points) - len(train)} held out; {subsets} models on subsets")
    datamodel = ridge(bank.run(subset_masks(len(train), subsets, 0.6), store=run.store))
    run.say(f"datamodel: penalty {datamodel.penalty:g}, LDS {datamodel.lds}")
    models = Forgetting(bank, count, run.store)
    for title, forget in {
        "10 at random": forget_sets.random_set(train, 10),
        "40 at random": forget_sets.random_set(train, 40),
        "30 of the first principal direction": forget_sets.principal(datamodel, 30),
    }.items():
        split, oracles = models.split(forget)
        matching = DMM(datamodel, MATCHING), DMDirect(datamodel), OracleMatching(oracles, MATCHING)
        methods: list[UnlearningMethod] = [*matching, DescentAscent(20), FineTune(2)]
        yield evaluate(split, methods, title=title)


def verdicts(evaluation: Evaluation) -> dict[str, bool]:
    """The digits' claims, on the mean."""
    mean = {row.method: row.klom["forget"].mean for row in evaluation.rows}
    return {
        "DMM < half of no-op": mean["DMM"] < 0.5 * mean["no-op"],
        "DMM < half of descent-ascent": mean["DMM"] < 0.5 * mean["descent-ascent"],
        "OM < DMM": mean["oracle matching"] < mean["DMM"],
    }
