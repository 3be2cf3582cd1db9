"""Two classes of small images, a convolutional network with group normalisation: the same protocol as the digits'.

    python -m benchmarks.unlearning images --data images.npz

The .npz holds x_train, y_train, x_test, y_test (bytes, channels last or first); the classes with labels 3 and 5 are
taken, at 16 x 16 pixels. Judged by the mean of KLoM: at 24 models a side its 95th percentile is mostly noise.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from whence.cache import Classification, DataError, Examples, Store, UsageError, say
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, AdamW, Recipe, Schedule
from whence.cache.retrain.retrained import oracle_masks, subset_masks
from whence.unlearn import forget_sets
from whence.unlearn.datamodels import ridge
from whence.unlearn.deletion import Deletion
from whence.unlearn.evaluate import Evaluation, Panel, evaluate
from whence.unlearn.loop import Method
from whence.unlearn.methods import DMM, DescentAscent, DMDirect, FineTune, Matching, OracleMatching
from whence.unlearn.metrics import KLoM
from whence.unlearn.report import save, table

CLASSES, MODELS, SUBSETS, KEPT = (3, 5), 24, 384, 400
MATCHING = Matching(steps=60, batch_size=128, optimiser=AdamW(3e-3))


class Network(nn.Module):
    """Three 3x3 convolutions of 16 channels, each normalised and halved."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (3, 16, 16):
            layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.AvgPool2d(2)]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


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
    small = nn.functional.interpolate(torch.as_tensor(x), (16, 16), mode="area").numpy()
    points = Examples.of((small, np.concatenate([p[1] for p in parts]).astype(np.int64)))
    return points.select(np.arange(len(parts[0][0]))), points


def show(path: str | None, store: Store, out: Path) -> None:
    began = time.perf_counter()
    train, points = images(path)
    recipe = Recipe(12, 64, SGD(0.05, 0.9, 5e-4), Schedule("linear", 0.2))
    bank = Bank(lambda seed: Network(), Classification(), train, points, recipe)
    say(f"{len(train)} images to train on, {len(points) - len(train)} held out; {SUBSETS} models on subsets")
    datamodel = ridge(bank.run(subset_masks(len(train), SUBSETS, 0.6), store=store))
    print(f"datamodel: penalty {datamodel.penalty:g}, LDS {datamodel.lds}")
    models = bank.train_replicas(np.ones((MODELS, len(train)), bool), 10_000 + np.arange(MODELS))
    evaluations: list[Evaluation] = []
    for title, forget in {
        "10 at random": forget_sets.random_set(train, 10),
        "40 at random": forget_sets.random_set(train, 40),
        "30 of the first principal direction": forget_sets.principal(datamodel, 30),
    }.items():
        masks = oracle_masks(train.ids, forget, 2 * MODELS)
        oracles = bank.run(masks, 20_000 + np.arange(2 * MODELS), store)
        seeds = 10_000 + np.arange(MODELS)
        deletion = Deletion(models, Classification(), train, forget, recipe, bank.build, seeds)
        panel = Panel.of(deletion, oracles, points, KLoM(bins=10))
        methods: list[Method] = [
            DMM(datamodel, MATCHING),
            DMDirect(datamodel),
            OracleMatching(oracles, MATCHING),
            DescentAscent(20),
            FineTune(2),
        ]
        evaluations.append(evaluate(panel, methods, title=title))
        print(f"\n{title}, {MODELS} models a side, 10 bins\n\n{table(evaluations[-1])}\n", flush=True)
        for claim, held in verdicts(evaluations[-1]).items():
            print(f"{'held' if held else 'DID NOT HOLD'}: {claim}", flush=True)
    where = save(evaluations, out / "unlearning-images.html", "Two classes of images")
    print(f"\n{time.perf_counter() - began:.0f} s; report: {where}")


def verdicts(evaluation: Evaluation) -> dict[str, bool]:
    """The digits' claims, on the mean."""
    mean = {row.method: row.klom["forget"].mean for row in evaluation.rows}
    return {
        "DMM < half of doing nothing": mean["DMM"] < 0.5 * mean["do nothing"],
        "DMM < half of descent-ascent": mean["DMM"] < 0.5 * mean["descent-ascent"],
        "OM < DMM": mean["oracle matching"] < mean["DMM"],
    }
