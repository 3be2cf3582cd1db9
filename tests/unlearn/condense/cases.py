"""Tiny pools for the condensation tests: blobs of images and of vectors, unequal classes."""

import numpy as np

from whence.unlearn.condense import Pool


def images(classes: int = 3, counts: tuple[int, ...] = (7, 9, 12), size: int = 4, channels: int = 2, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), counts)
    centres = np.random.default_rng(99).normal(size=(classes, size, size, channels))
    x = 1.5 * centres[y] + rng.normal(size=(len(y), size, size, channels))
    return x.astype(np.float32), y


def image_pool(**options) -> Pool:
    return Pool.of(images(**options), layout="nhwc")


def vector_pool(seed: int = 0, each: int = 30, classes: int = 3) -> Pool:
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), each)
    x = 2 * np.eye(classes, 5)[y] + rng.normal(size=(len(y), 5))
    return Pool.of((x.astype(np.float32), y))
