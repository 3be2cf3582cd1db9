"""Real examples chosen to stand for all: random, herding, k-centre, by influence. What a synthetic set must beat."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from whence.cache.errors import DataError, UsageError, did_you_mean

from .pool import Pool

if TYPE_CHECKING:
    import xarray


def random_rows(features: Float[np.ndarray, "n f"], count: int, rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    return rng.permutation(len(features))[:count]


def herding_rows(features: Float[np.ndarray, "n f"], count: int, rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    """Greedily, the example that brings the mean of the chosen nearest to the mean of all, without repetition
    (Welling 2009, "Herding dynamical weights to learn"; as used by Rebuffi et al. 2017)."""
    mean, total, chosen = features.mean(0), np.zeros(features.shape[1]), []
    left = np.ones(len(features), bool)
    for number in range(count):
        gap = np.square(mean - (total + features) / (number + 1)).sum(1)
        gap[~left] = np.inf
        best = int(gap.argmin())
        chosen.append(best)
        left[best] = False
        total = total + features[best]
    return np.array(chosen)


def centre_rows(features: Float[np.ndarray, "n f"], count: int, rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    """k-centre: from the example nearest to the mean on, always the one farthest from all chosen (Sener and Savarese
    2018, greedy)."""
    chosen = [int(np.square(features - features.mean(0)).sum(1).argmin())]
    nearest = np.square(features - features[chosen[0]]).sum(1)
    while len(chosen) < count:
        nearest[chosen[-1]] = -1.0  # equal examples are at distance 0, and none is taken twice
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(features - features[chosen[-1]]).sum(1))
    return np.array(chosen)


def highest_rows(scores: Float[np.ndarray, "n 1"], count: int, rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    return np.argsort(-scores[:, 0], kind="stable")[:count]


RULES: dict[str, Callable[..., Int[np.ndarray, " k"]]] = {
    "random": random_rows, "herding": herding_rows, "k-centre": centre_rows,
}  # fmt: skip


def select(
    pool: Pool,
    rule: str,
    per_class: int,
    seed: int = 0,
    *,
    features: Float[np.ndarray, "n f"] | None = None,
    scores: "xarray.DataArray | None" = None,
) -> Pool:
    """`per_class` examples of every class.

    Args:
        pool: what to choose from.
        rule: random, herding, k-centre, or influence (the highest mean score over queries).
        per_class: how many.
        seed: of the random rule.
        features: what distances are measured in (a trained network's, say); the scaled examples by default.
        scores: [query, train] with ids, of at least this pool's examples; of queries that nothing is reported on.

    Raises DataError if a class has fewer, if an example has no score, or if features do not fit the pool, UsageError
    for an unknown rule.

    >>> select(pool, "herding", per_class=2).y.tolist()
    [0, 0, 1, 1, 2, 2]
    """
    if rule not in (*RULES, "influence"):
        raise UsageError(f"{rule!r} is no way to select.", did_you_mean(rule, (*RULES, "influence"), "Use one of"))
    if (rule == "influence") != (scores is not None):
        raise UsageError("Influence, and it alone, needs scores.", 'Use select(pool, "influence", k, scores=scores).')
    pool.check(per_class)
    flat = pool.x.reshape(len(pool), -1) if features is None else np.asarray(features)
    if len(flat) != len(pool) or not np.isfinite(flat).all():
        raise DataError(
            f"Features of shape {list(flat.shape)} for {len(pool)} examples.", "Give one finite row an example."
        )
    if scores is not None:
        mean = dict(zip(scores["train"].values.tolist(), scores.values.mean(0).tolist()))
        unknown = [i for i in pool.ids.tolist() if i not in mean]
        if unknown:
            raise DataError(f"Example {unknown[0]} has no score.", "Score every example that may be chosen.")
        flat = np.array([[mean[i]] for i in pool.ids.tolist()])
    choose, rng, rows = RULES.get(rule, highest_rows), np.random.default_rng([seed, 1]), []
    for c in range(pool.classes):
        mine = np.flatnonzero(pool.y == c)
        rows.append(mine[choose(flat[mine], per_class, rng)])
    return pool.select(np.concatenate(rows))
