"""DD-Ranking: how informative a set is, apart from what soft labels and augmentation add to any set.

    HLR = accuracy of all real data, hard labels - accuracy of the set, hard labels
    IOR = accuracy of the set as it is meant to be used - accuracy of as many random examples used likewise
    LRS = (exp(α) - exp(-1)) / (exp(1) - exp(-1)),  α = w IOR - (1 - w) HLR                 label-robust score
    ARS = the same of β = γ (gain over random with augmentation) + (1 - γ) (gain without)   augmentation-robust score

with accuracies as shares. Source: Li et al. 2025, "DD-Ranking", arXiv 2505.13300.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from whence.cache.errors import UsageError

from .condensed import Condensed
from .evaluate import evaluate
from .networks import Network
from .pool import Pool
from .pretrained import train_on, with_teacher
from .selection import select
from .training import Training


class Robust(NamedTuple):
    """hlr, ior: percent. lrs, ars: 0 to 100. accuracies: percent, by what was trained on."""

    hlr: float
    ior: float
    lrs: float
    ars: float
    accuracies: dict[str, float]


def normalised(value: float) -> float:
    """From -1 ... 1 to 0 ... 100."""
    return 100.0 * (math.exp(value) - math.exp(-1.0)) / (math.e - math.exp(-1.0))


def robust_scores(
    given: Condensed,
    pool: Pool,
    test: Pool,
    network: Network,
    training: Training = Training(),
    *,
    augment: tuple[str, ...] = ("colour", "crop", "cutout", "scale", "rotate"),
    validation: Pool | None = None,
    rates: Sequence[float] = (),
    w: float = 0.5,
    gamma: float = 0.5,
    networks: int = 5,
    seed: int = 0,
    full: Training | None = None,
) -> Robust:
    """The scores of a condensed set.

    A set with learned labels is compared with random examples that a network trained on all data has labelled.

    Args:
        given: the set; it is meant to be used with its own labels, `training` and `augment`.
        pool, test: the real data.
        network: what is trained.
        training: on the set and on random examples; without augmentation.
        augment: operations; none for vectors.
        validation, rates: every training but that on all data uses the rate that is best on `validation`, as in
            DD-Ranking (which takes the test data for it); `training`'s own rate without rates.
        w, gamma: weights.
        networks: trained on each set, and random sets.
        seed: of the random examples.
        full: the training on all real data; `training` with an eighth of the epochs, at least 20, by default.

    Raises UsageError for rates without validation data, and what `evaluate` raises.
    """
    if rates and validation is None:
        raise UsageError("Rates to choose from, and no data to choose them on.", "Give validation=Pool.of(...).")
    augmented = replace(training, augment=augment if given.x.ndim == 4 else ())
    plain = replace(training, augment=())
    full = full or replace(plain, epochs=max(20, training.epochs // 8))
    hard = replace(given, labels=np.eye(pool.classes, dtype=np.float32)[given.y])
    teacher = None if np.array_equal(given.labels, hard.labels) else train_on(pool, network, full, seed)
    random: list[Pool | Condensed] = []
    for number in range(networks):
        chosen = select(pool, "random", len(given) // pool.classes, seed + number)
        random.append(chosen if teacher is None else with_teacher(chosen, network, teacher))

    def accuracy(sets: Sequence[Pool | Condensed], how: Training) -> float:
        if validation is not None:
            how = _at_best_rate(how, rates, sets, validation, network, seed + 1)
        return evaluate(sets, test, network, how, networks if len(sets) == 1 else 1, seed).mean

    found = {
        "all real": evaluate([pool], test, network, full, min(networks, 2), seed).mean,
        "set, hard labels": accuracy([hard], plain),
        "set": accuracy([given], plain),
        "set, augmented": accuracy([given], augmented),
        "random": accuracy(random, plain),
        "random, augmented": accuracy(random, augmented),
    }
    hlr = found["all real"] - found["set, hard labels"]
    gains = found["set, augmented"] - found["random, augmented"], found["set"] - found["random"]
    alpha, beta = w * gains[0] - (1 - w) * hlr, gamma * gains[0] + (1 - gamma) * gains[1]
    return Robust(hlr, gains[0], normalised(alpha / 100), normalised(beta / 100), found)


def _at_best_rate(
    training: Training,
    rates: Sequence[float],
    sets: Sequence[Pool | Condensed],
    validation: Pool,
    network: Network,
    seed: int,
) -> Training:
    """The same at that of `rates` which is best on `validation`; as it is without rates."""
    tried = {lr: evaluate(sets, validation, network, replace(training, lr=lr), 2, seed).mean for lr in rates}
    return replace(training, lr=max(tried, key=lambda lr: tried[lr])) if tried else training
