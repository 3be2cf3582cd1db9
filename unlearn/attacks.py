"""Attacks that try to tell forgotten data from data never seen: U-LiRA and simple membership inference."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from whence.cache.errors import DataError

from .metrics import checked, checked_labels


class ULiRA(NamedTuple):
    """accuracy: mean confidence-thresholded success of the attack, 0.5 is ideal; per_point: its mean score."""

    accuracy: float
    per_point: Float[np.ndarray, " p"]


def u_lira(unlearned: Float[np.ndarray, "e p"], oracles: Float[np.ndarray, "f p"]) -> ULiRA:
    """U-LiRA (Hayes et al. 2024) on the margins of forgotten points: every unlearned model is held out in turn,
    Gaussians are fitted to the other unlearned models' margins and to the oracles', and the model is judged
    unlearned where its likelihood ratio says so. Oracles are judged alike; the mean of both rates is 0.5 when
    the two cannot be distinguished.

    Rows may mix forget sets, as the full attack does, as long as each column is one forgotten point.
    Raises DataError as `metrics.checked`, with fewer than four models on a side.
    """
    unlearned, oracles = checked(unlearned, oracles, 4)
    hits_unlearned = _held_out_scores(unlearned, oracles) > 0.5
    hits_oracle = _held_out_scores(oracles, unlearned) > 0.5
    per_point = 0.5 * (hits_unlearned.mean(0) + hits_oracle.mean(0))
    return ULiRA(float(per_point.mean()), per_point)


def _gaussian(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return samples.mean(0), np.maximum(samples.std(0, ddof=1), 1e-6)


def _log_density(x: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd)


def _ratio(x: np.ndarray, own: tuple, other: tuple) -> np.ndarray:
    """p_own / (p_own + p_other)."""
    return 1 / (1 + np.exp(np.clip(_log_density(x, *other) - _log_density(x, *own), -60, 60)))


def _held_out_scores(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Score [e p] of every own sample under Gaussians of its fellows without it and of the others; mean and
    variance without one sample follow from the sums."""
    n = len(own)
    mean = (own.sum(0) - own) / (n - 1)
    second = ((own**2).sum(0) - own**2) / (n - 1)
    sd = np.sqrt(np.maximum(second - mean**2, 0) * (n - 1) / (n - 2))
    return _ratio(own, (mean, np.maximum(sd, 1e-6)), _gaussian(other))


class Membership(NamedTuple):
    """auc: area under the ROC curve of the best single threshold score; each: the area of every score."""

    auc: float
    each: dict[str, float]


def membership(
    forgotten: Float[np.ndarray, "e p c"],
    unseen: Float[np.ndarray, "f v c"],
    y_forgotten: np.ndarray,
    y_unseen: np.ndarray,
) -> Membership:
    """Simple membership inference from logits: do loss, confidence, entropy or margin distinguish a forgotten point
    from an unseen one? Areas are averaged over models; 0.5 is chance, below it means forgetting too well, which
    gives membership away as much. The oracle's own areas are the value to meet.

    Raises DataError for logits of different numbers of models, values that are not finite, and labels that are not one
    class each.
    """
    if len(forgotten) != len(unseen):
        raise DataError(
            f"Logits of {len(forgotten)} models cannot be compared with those of {len(unseen)}.",
            "Give the outputs of the same models, in the same order.",
        )
    scores_in, scores_out = _scores(forgotten, y_forgotten), _scores(unseen, y_unseen)
    each = {name: float(np.mean([_auc(a, b) for a, b in zip(scores_in[name], scores_out[name])])) for name in scores_in}
    return Membership(max(each.values(), key=lambda a: abs(a - 0.5)), each)


def _scores(logits: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    logits, y = checked_labels(logits, y)
    z = logits - logits.max(-1, keepdims=True)
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    own = np.take_along_axis(logp, np.broadcast_to(y[:, None], (*logp.shape[:-1], 1)), -1)[..., 0]
    return {
        "loss": own,
        "confidence": logp.max(-1),
        "entropy": (np.exp(logp) * logp).sum(-1),
        "margin": own - np.log(np.maximum(-np.expm1(np.minimum(own, -1e-12)), 1e-12)),
    }


def _auc(positive: Float[np.ndarray, " a"], negative: Float[np.ndarray, " b"]) -> float:
    """P(positive > negative) + P(equal) / 2, by ranks."""
    both = np.concatenate([positive, negative])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    a, b = len(positive), len(negative)
    return float((ranks[:a].sum() - a * (a + 1) / 2) / (a * b))


def attack_by_logistic(
    losses_forgotten: Float[np.ndarray, " p"], losses_unseen: Float[np.ndarray, " v"], folds: int = 5
) -> float:
    """Cross-validated accuracy of a logistic regression on one model's losses, balanced; 0.5 is chance."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    n = min(len(losses_forgotten), len(losses_unseen))
    if n < folds:
        raise DataError(f"{n} points cannot be split {folds} ways.", "Use more points or fewer folds.")
    x = np.r_[losses_forgotten[:n], losses_unseen[:n]][:, None]
    y: Bool[np.ndarray, " m"] = np.r_[np.ones(n, bool), np.zeros(n, bool)]
    return float(cross_val_score(LogisticRegression(), x, y, cv=folds).mean())
