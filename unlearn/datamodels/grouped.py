"""Datamodels for coherent forget sets: regression on the mask and on how much of a point's neighbourhood is there.

A linear datamodel adds up what examples do one by one. When half of what resembles a point goes at once, the first of
them is missed little and the last very much, and the sum falls short. Beside the mask M, every point x here has group
terms: the share of its k nearest training examples that a mask keeps, for several k, to the powers 1 to 3,

    z(x) = z̄(x) + M w(x) + Σ_k Σ_p c_kp(x) share_k(x, M)^p

fitted together by ridge. Point by point the two blocks of the normal equations are solved by elimination, so that
the masks' own block is inverted once for all points and classes. The bank's masks must have seen whole
neighbourhoods missing (`neighbourhood_masks`); subsets drawn example by example hardly vary the shares.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from whence.cache import DataError, Examples
from whence.cache.retrain.retrained import Retrained, member_rows
from whence.cache.statistics import LDS

from .base import Cost, lds_of
from .regression import Regression, blocks, held_out, moments, outputs

SIZES = (2, 5, 10, 20, 30)  # of the neighbourhoods whose shares are looked at
POWERS = (1, 2, 3)


def nearest(
    train: Examples, points: Examples, count: int = SIZES[-1], *, column: str = "x", within: str | None = None
) -> Int64[np.ndarray, "p k"]:
    """Rows of the `count` training examples nearest (Euclidean, in a column) to every point, nearest first. within: a
    column whose equals come before all others (the label, say)."""
    if not 0 < count <= len(train):
        raise DataError(f"{len(train)} training examples have no {count} nearest.", "Ask for fewer.")
    own, other = (np.asarray(e.columns[column], np.float64).reshape(len(e), -1) for e in (points, train))
    distance = np.square(own).sum(1)[:, None] + np.square(other).sum(1) - 2 * own @ other.T
    if within is not None:
        equal = np.asarray(points.columns[within])[:, None] == np.asarray(train.columns[within])
        distance = distance + np.where(equal, 0.0, distance.max() + 1.0)
    return np.argsort(distance, 1, kind="stable")[:, :count]


def neighbourhood_masks(
    near: Int64[np.ndarray, "n k"], count: int, *, most: int = 2, share: float = 0.9, smallest: int = 10, seed: int = 0
) -> Bool[np.ndarray, "e n"]:
    """Masks to fit a grouped datamodel on: each keeps a random `share`, and loses `most` whole neighbourhoods of random
    examples, of random sizes from `smallest` up to the width of `near` (rows of `nearest(train, train)`). Nothing here
    knows what will be forgotten."""
    generator = np.random.default_rng(seed)
    masks = generator.random((count, len(near))) < share
    for mask in masks:
        for centre in generator.integers(0, len(near), most):
            mask[near[centre, : generator.integers(smallest, near.shape[1] + 1)]] = False
    return masks


@dataclass(frozen=True, eq=False)
class Grouped:
    """linear: the part that adds up. terms: [p g c], of the shares' powers, in units of `scale` [p g].

    near: rows [p k] of the training examples nearest to every point. lds: on masks the fit has not seen.
    """

    linear: Regression
    near: Int64[np.ndarray, "p k"]
    terms: Float[np.ndarray, "p g c"]
    scale: Float[np.ndarray, "p g"]
    lds: LDS

    @property
    def cost(self) -> Cost:
        return self.linear.cost

    @property
    def point_ids(self) -> Int64[np.ndarray, " p"]:
        return self.linear.point_ids

    def predict_delta(self, forget: np.ndarray, points: Examples) -> Float[np.ndarray, "p c"]:
        """The change from everything to everything but the forget set; the points must be among those of the bank."""
        alone, at = self.linear.predict_delta(forget, points), self.linear.at_points(points)
        kept = ~member_rows(self.linear.train_ids, forget)
        gone = _shares(kept[None], self.near[at])[0] - _shares(np.ones((1, len(kept)), bool), self.near[at])[0]
        return alone + np.einsum("pg,pgc->pc", gone / self.scale[at], self.terms[at])


def grouped(bank: Retrained, near: Int64[np.ndarray, "p k"], penalty: float = 10.0, seed: int = 0) -> Grouped:
    """Fit to a bank, with one ridge penalty for all terms. Takes 60 bytes a pair of training example and point.

    near: rows of the training examples nearest to every point of the bank (`nearest`).
    Raises DataError for a bank that is too small, or neighbours of other points.
    """
    if len(near) != len(bank.point_ids) or near.shape[1] < SIZES[-1]:
        raise DataError(
            f"Neighbours of shape {list(near.shape)} do not go with a bank of {len(bank.point_ids)} points.",
            f"Give nearest(train, points, {SIZES[-1]}) for the bank's own points.",
        )
    judged = np.sort(held_out(bank, seed)[0])
    part = _solve(bank, np.setdiff1d(np.arange(len(bank)), judged), near, penalty)
    score = lds_of(part.predict(bank.masks[judged], near), outputs(bank, judged))
    whole = _solve(bank, np.arange(len(bank)), near, penalty)
    shape = bank.rows("logits", slice(0, 1)).shape[1:]
    linear = Regression(
        whole.weights.reshape(-1, *shape), bank.train_ids, bank.point_ids, penalty, score, {}, len(bank)
    )
    return Grouped(linear, near, whole.terms, whole.scale, score)


def _shares(masks: Bool[np.ndarray, "e n"], near: Int64[np.ndarray, "p k"]) -> Float[np.ndarray, "e p g"]:
    """Powers of the share of every point's nearest examples that are there."""
    there = np.cumsum(masks[:, near], -1, dtype=np.float32)
    shares = np.stack([there[..., k - 1] / k for k in SIZES], -1)
    return np.concatenate([shares**power for power in POWERS], -1)


class _Solution(NamedTuple):
    """Both blocks, with the means and scales that features are measured from. weights: [n, p c]."""

    means: Float[np.ndarray, " n"]
    centre: Float[np.ndarray, "p g"]
    scale: Float[np.ndarray, "p g"]
    weights: Float[np.ndarray, "n k"]
    terms: Float[np.ndarray, "p g c"]

    def predict(self, masks: Bool[np.ndarray, "e n"], near: np.ndarray) -> Float[np.ndarray, "e k"]:
        """Outputs, up to a constant each."""
        group = np.einsum("epg,pgc->epc", (_shares(masks, near) - self.centre) / self.scale, self.terms)
        return (masks - self.means) @ self.weights + group.reshape(len(masks), -1)


def _solve(bank: Retrained, rows: Int64[np.ndarray, " m"], near: np.ndarray, penalty: float) -> _Solution:
    means, gram, moment = moments(bank, rows)
    inverse = np.linalg.inv(gram + penalty * np.eye(len(gram))).astype(np.float32)
    points, features = len(near), len(SIZES) * len(POWERS)
    total, squares = np.zeros((2, points, features))
    for block in blocks(rows):
        shares = _shares(bank.masks[block], near)
        total += shares.sum(0)
        squares += np.square(shares).sum(0)
    centre = total / len(rows)
    scale = np.sqrt(np.maximum(squares / len(rows) - centre**2, 1e-12))
    own = np.zeros((points, features, features), np.float32)
    cross = np.zeros((points, len(means), features), np.float32)
    with_outputs = np.zeros((points, features, moment.shape[1] // points), np.float32)
    for block in blocks(rows):
        shares = ((_shares(bank.masks[block], near) - centre) / scale).astype(np.float32).transpose(1, 0, 2)
        turned = shares.transpose(0, 2, 1)
        own += turned @ shares
        cross += (bank.masks[block] - means).astype(np.float32).T @ shares
        with_outputs += turned @ outputs(bank, block).reshape(len(block), points, -1).transpose(1, 0, 2)
    by_point = moment.reshape(len(means), points, -1).transpose(1, 0, 2)
    reduced = inverse @ cross
    left = own - cross.transpose(0, 2, 1) @ reduced + penalty * np.eye(features, dtype=np.float32)
    terms = np.linalg.solve(left, with_outputs - reduced.transpose(0, 2, 1) @ by_point)
    weights = inverse @ by_point - reduced @ terms
    return _Solution(means, centre, scale, weights.transpose(1, 0, 2).reshape(len(means), -1), terms)
