"""Companions of KLoM that need no histogram: the energy distance of margins, and a two-sample test."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .metrics import checked


def energy_distance(first: Float[np.ndarray, "e p"], second: Float[np.ndarray, "f p"]) -> Float[np.ndarray, " p"]:
    """Per point 2 E|X-Y| - E|X-X'| - E|Y-Y'| (Székely and Rizzo 2013), in margin units; the within-sample means
    leave out the pairs of a model with itself, so its expectation is 0 for equal distributions.

    Raises DataError as `checked`, with fewer than two models on a side.

    >>> one, other = np.random.default_rng(0).normal(size=(2, 50, 3))
    >>> bool((energy_distance(one, other + 3) > energy_distance(one, other)).all())
    True
    """
    first, second = (values.astype(np.float64) for values in checked(first, second, 2))
    e, f = len(first), len(second)
    within = _sum_of_gaps(first) / (e * (e - 1)) * 2 + _sum_of_gaps(second) / (f * (f - 1)) * 2
    both = _sum_of_gaps(np.concatenate([first, second]))
    between = (both - _sum_of_gaps(first) - _sum_of_gaps(second)) / (e * f)
    return 2 * between - within


def _sum_of_gaps(samples: np.ndarray) -> np.ndarray:
    """Σ_{i<j} |x_i - x_j| of every column, from order statistics: Σ (2i - n + 1) x_(i)."""
    ordered = np.sort(samples, axis=0)
    n = len(ordered)
    return (2 * np.arange(n) - n + 1) @ ordered


class TwoSample(NamedTuple):
    """accuracy: held-out share of models that are distinguished, 0.5 if they cannot be; p_value: under permutation."""

    accuracy: float
    p_value: float


def two_sample_test(
    first: Float[np.ndarray, "e p"], second: Float[np.ndarray, "f p"], *, permutations: int = 100, seed: int = 0
) -> TwoSample:
    """Can a linear classifier tell unlearned models from oracles by all their margins at once?

    Leave-one-out accuracy of a ridge classifier in its dual form, against label permutations (Lopez-Paz and
    Oquab 2017, with a least-squares classifier). A model is one sample; points are features.

    Raises DataError as `checked`, with fewer than two models on a side.

    >>> one, other = np.random.default_rng(0).normal(size=(2, 20, 3))
    >>> two_sample_test(one, other + 5).accuracy
    1.0
    """
    first, second = checked(first, second, 2)
    x = np.concatenate([first, second]).astype(np.float64)
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
    kernel = x @ x.T / x.shape[1]
    labels = np.r_[np.ones(len(first)), -np.ones(len(second))]
    # ridge at the mean of the kernel's eigenvalues
    hat = np.linalg.solve(kernel + np.eye(len(x)) * np.trace(kernel) / len(x), kernel)
    generator = np.random.default_rng(seed)
    shuffled = np.stack([labels, *[generator.permutation(labels) for _ in range(permutations)]], 1)
    leverage = np.diag(hat)[:, None]
    held_out = (hat @ shuffled - leverage * shuffled) / (1 - leverage)
    accuracy = (np.sign(held_out) == shuffled).mean(0)
    return TwoSample(float(accuracy[0]), float((accuracy >= accuracy[0]).mean()))
