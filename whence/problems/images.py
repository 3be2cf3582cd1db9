"""Images that a network learns by heart: what unlearning needs to have something to remove.

A residual network without normalisation reaches 100 % of 600 images of two or ten classes in 30 epochs, with margins
far above those of held-out images. Data are an .npz of the caller's own (CIFAR-10 in that form, say), or made images
when none is given.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64

from whence.cache import Classification, DataError, Examples
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, Recipe, Schedule

from ..classifiers import Residual
from ..files import labelled_arrays
from .problem import Problem

SHARED = 0.35  # of a made image, what its class has in common
LOUD = 4.0  # pixels of -0.5..0.5 times this have about unit variance


def made_images(
    count: int, classes: int, side: int = 16, seed: int = 0
) -> tuple[Float[np.ndarray, "n 3 side side"], Int64[np.ndarray, " n"]]:
    """Smooth random images of unit variance: a pattern of the class, one of the image's own, and pixel noise."""
    generator = np.random.default_rng(seed)

    def smooth(number: int) -> np.ndarray:
        coarse = torch.as_tensor(generator.normal(size=(number, 3, 4, 4)).astype(np.float32))
        return F.interpolate(coarse, (side, side), mode="bilinear").numpy()

    patterns, y = smooth(classes), np.arange(count) % classes
    noise = generator.normal(size=(count, 3, side, side)).astype(np.float32)
    x = SHARED * patterns[y] + smooth(count) + 0.5 * noise
    return x / x.std(), y.astype(np.int64)


def read_images(
    data: str, counts: tuple[int, int], labels: Sequence[int], side: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Random training images, then random test images, of these labels, reduced to `side` pixels.

    Args:
        data: an .npz with x_train, y_train, x_test and y_test: bytes, three channels, first or last.
        counts: training and test images.
        labels: of the classes that are taken, renumbered from 0.
        side: pixels.

    Raises DataError for another file, other images, or too few.
    """
    arrays = labelled_arrays(data)
    parts = []
    for part, count in zip(("train", "test"), counts):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"].ravel()
        if x.ndim != 4 or x.dtype != np.uint8 or 3 not in (x.shape[1], x.shape[-1]):
            raise DataError(
                f"x_{part} has shape {list(x.shape)} and type {x.dtype}.", "Give bytes with three channels an image."
            )
        rows = np.random.default_rng(0).permutation(np.flatnonzero(np.isin(y, labels)))[:count]
        if len(rows) < count:
            raise DataError(f"{data} has {len(rows)} images of these classes to {part} on.", f"Take {len(rows)}.")
        x = x[rows] if x.shape[1] == 3 else np.moveaxis(x[rows], -1, 1)
        small = F.interpolate(torch.as_tensor(x.astype(np.float32)), (side, side), mode="area").numpy()
        parts.append((LOUD * (small / 255 - 0.5), np.searchsorted(np.sort(labels), y[rows])))
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]).astype(np.int64)


def images_problem(
    classes: int = 10,
    train: int = 600,
    queries: int = 400,
    data: str | None = None,
    *,
    side: int = 16,
    width: int = 16,
    blocks: int = 2,
    grid: int = 4,
    epochs: int = 30,
    batch_norm: bool = False,
    device: str | None = None,
) -> Problem:
    """The network that learns its images by heart.

    Args:
        classes: 2 (labels 3 and 5 of the file, cats and dogs in CIFAR-10) or more (labels from 0).
        train, queries: images to learn, and held-out ones.
        data: an .npz as `read_images` takes it; made images when None.
        side: pixels.
        width, blocks, grid, batch_norm: of `Residual`.
        epochs: of training.
        device: where it is trained.
    """
    if data is None:
        x, y = made_images(train + queries, classes, side)
    else:
        x, y = read_images(data, (train, queries), (3, 5) if classes == 2 else range(classes), side)
    every = Examples.of((x, y))
    schedule = Schedule("linear", final=0.02)
    return Problem(
        f"{classes} classes of images",
        lambda seed: Residual(width, blocks, (3, side, side), classes, grid=grid, batch_norm=batch_norm),
        Classification(),
        every.select(np.arange(train)),
        every.select(np.arange(train, train + queries)),
        Recipe(epochs, 25, SGD(0.05, 0.9), schedule, "own" if batch_norm else "shared"),
        device=device,
    )


def unlearning_bank(problem: Problem) -> Bank:
    """The problem's bank for datamodels and oracles: every seed has its own start and order, and logits and margins of
    all images are kept."""
    points = problem.train.joined(problem.queries)
    assert isinstance(problem.recipe, Recipe)
    recipe = replace(problem.recipe, batches="own")
    return Bank(problem.build, problem.task, problem.train, points, recipe, device=problem.device or "cpu")
