"""Real examples chosen to stand for all: random, herding, k-centre, submodular, by influence or by difficulty. What a
synthetic set must beat."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from whence.cache.errors import DataError, UsageError, check_known

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


def facility_rows(features: Float[np.ndarray, "n f"], count: int, rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    """Facility location, greedily: the example that adds most to Σ over all of the largest similarity to a chosen one,
    a similarity being the cosine + 1 (the submodular function of Renduchintala et al. 2023, INGENIOUS, whose sampling
    in proportion to gains is left out)."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T + 1.0
    best, chosen = np.zeros(len(features)), list[int]()
    for _ in range(count):
        gain = np.maximum(similarity - best[:, None], 0.0).sum(0)
        gain[chosen] = -1.0
        chosen.append(int(gain.argmax()))
        best = np.maximum(best, similarity[:, chosen[-1]])
    return np.array(chosen)


def highest_rows(scores: Float[np.ndarray, "n 1"], count: int, rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    return np.argsort(-scores[:, 0], kind="stable")[:count]


RULES: dict[str, Callable[..., Int[np.ndarray, " k"]]] = {
    "random": random_rows, "herding": herding_rows, "k-centre": centre_rows,
    "submodular": facility_rows,
}  # fmt: skip
SCORED = ("influence", "grand", "el2n")  # what needs scores: the highest are chosen


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
        rule: random, herding, k-centre, submodular; or, with scores, influence (the highest mean over queries), grand
            or el2n (the hardest).
        per_class: how many.
        seed: of the random rule.
        features: what distances are measured in (a trained network's, say); the scaled examples by default.
        scores: [query, train] or [train] with ids, of at least this pool's examples: of an attribution method, for
            queries that nothing is reported on, or of `difficulty.difficulty`.

    Raises DataError if a class has fewer, if an example has no score, or if features do not fit the pool, UsageError
    for an unknown rule.

    >>> select(pool, "herding", per_class=2).y.tolist()
    [0, 0, 1, 1, 2, 2]
    """
    check_known("rule of selection", rule, (*RULES, *SCORED))
    if (rule in SCORED) != (scores is not None):
        raise UsageError(
            f"{', '.join(SCORED)}, and they alone, need scores.", f"Use select(pool, {SCORED[0]!r}, k, scores=scores)."
        )
    pool.check(per_class)
    flat = pool.x.reshape(len(pool), -1) if features is None else np.asarray(features)
    if len(flat) != len(pool) or not np.isfinite(flat).all():
        raise DataError(
            f"Features of shape {list(flat.shape)} for {len(pool)} examples.", "Give one finite row an example."
        )
    if scores is not None:
        mean = dict(zip(scores["train"].values.tolist(), np.atleast_2d(scores.values).mean(0).tolist()))
        unknown = [i for i in pool.ids.tolist() if i not in mean]
        if unknown:
            raise DataError(f"Example {unknown[0]} has no score.", "Score every example that may be chosen.")
        flat = np.array([[mean[i]] for i in pool.ids.tolist()])
    choose, rng, rows = RULES.get(rule, highest_rows), np.random.default_rng([seed, 1]), []
    for c in range(pool.classes):
        mine = np.flatnonzero(pool.y == c)
        rows.append(mine[choose(flat[mine], per_class, rng)])
    return pool.select(np.concatenate(rows))
