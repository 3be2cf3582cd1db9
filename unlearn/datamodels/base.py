"""What a datamodel is: a prediction of how outputs change when some training examples are left out; how well it
predicts (LDS); and how its size is calibrated on deletions that are not the one evaluated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64

from whence.cache import DataError, Examples, UsageError
from whence.cache.retrain.retrained import Retrained

FEWEST_MASKS = 8


@runtime_checkable
class Datamodel(Protocol):
    """Predicts outputs without data. A new one is one file here and one line in the index."""

    @property
    def cost(self) -> "Cost": ...

    def predict_delta(self, forget: Int64[np.ndarray, " f"], points: Examples) -> Float[np.ndarray, "p ..."]:
        """Predicted change of every logit at every point, [p c] (or [p s c]), when the training examples with
        these ids are left out. Raises DataError for ids or points that it does not know."""
        ...


class Cost(NamedTuple):
    """What making a datamodel took: full trainings, and example passes beside them."""

    trainings: float = 0.0
    passes: float = 0.0


class Lds(NamedTuple):
    """Linear datamodeling score: mean over outputs of the Spearman correlation, over held-out masks, between
    predicted and actual outputs, with a 90 % bootstrap interval over outputs. masks: how many were held out."""

    value: float
    low: float
    high: float
    masks: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] on {self.masks} held-out masks"


def spearman(predicted: Float[np.ndarray, "e k"], actual: Float[np.ndarray, "e k"]) -> Float[np.ndarray, " k"]:
    """Rank correlation of every column; 0 where a column is constant."""

    def ranks(values: np.ndarray) -> np.ndarray:
        order = np.argsort(np.argsort(values, axis=0, kind="stable"), axis=0, kind="stable").astype(np.float64)
        return order - order.mean(0)

    a, b = ranks(predicted), ranks(actual)
    constant = (np.ptp(predicted, axis=0) == 0) | (np.ptp(actual, axis=0) == 0)
    return np.where(constant, 0.0, (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0)))


def lds_of(predicted: Float[np.ndarray, "e ..."], actual: Float[np.ndarray, "e ..."], seed: int = 0) -> Lds:
    """The score from predicted and actual outputs of the same held-out models.

    Raises DataError with fewer than eight models.
    """
    if len(predicted) < FEWEST_MASKS:
        raise DataError(
            f"{len(predicted)} held-out masks are too few for a rank correlation.",
            f"Hold out at least {FEWEST_MASKS}.",
        )
    each = spearman(predicted.reshape(len(predicted), -1), actual.reshape(len(actual), -1))
    generator = np.random.default_rng(seed)
    means = [each[generator.integers(0, len(each), len(each))].mean() for _ in range(200)]
    low, high = np.percentile(means, [5, 95])
    return Lds(float(each.mean()), float(low), float(high), len(predicted))


def lds(datamodel: Datamodel, bank: Retrained, points: Examples, seed: int = 0) -> Lds:
    """A datamodel's score on a bank whose masks it has not seen: every mask's predicted logits are the change
    for what that mask leaves out."""
    columns = bank.at_points(points.ids)
    predicted = [datamodel.predict_delta(bank.train_ids[~mask], points) for mask in bank.masks]
    return lds_of(np.stack(predicted), bank["logits"][:, columns], seed)


@dataclass(frozen=True, eq=False)
class Pilot:
    """A deletion whose outcome is known: what was left out, and the mean logits at `points` with and without."""

    forget: Int64[np.ndarray, " f"]
    points: Examples
    delta: Float[np.ndarray, "p ..."]

    @staticmethod
    def of(forget: np.ndarray, points: Examples, before: Float[np.ndarray, "e p ..."], oracles: Retrained) -> "Pilot":
        """From the logits of models that saw everything [e p c] and a bank of oracles for this forget set."""
        checked = oracles.oracles(forget)
        after = checked["logits"][:, oracles.at_points(points.ids)]
        return Pilot(np.asarray(forget, np.int64), points, after.mean(0) - before.mean(0))


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A datamodel whose setting was chosen on pilot deletions; it refuses to predict for any of those.

    errors: setting -> relative squared error of the predicted change over all pilots.
    """

    chosen: Datamodel
    setting: Any
    errors: dict[Any, float]
    used: Int64[np.ndarray, " f"] = field(repr=False)

    @property
    def cost(self) -> Cost:
        return self.chosen.cost

    def predict_delta(self, forget: np.ndarray, points: Examples) -> np.ndarray:
        shared = np.intersect1d(np.asarray(forget), self.used)
        if len(shared):
            raise DataError(
                f"{len(shared)} examples of this forget set were used to calibrate the datamodel.",
                "Calibrate on other deletions than the one that is evaluated.",
            )
        return self.chosen.predict_delta(forget, points)


def calibrate(make: Callable[[Any], Datamodel], settings: Sequence[Any], pilots: Sequence[Pilot]) -> Calibrated:
    """Choose the setting (a damping, a scale) whose predictions meet pilot deletions best: the smallest mean over
    pilots of |predicted - actual|² / |actual|². Raises UsageError without settings or pilots."""
    if not settings or not pilots:
        raise UsageError(
            f"{len(settings)} settings on {len(pilots)} pilot deletions leave nothing to calibrate.",
            "Give at least one of each.",
        )
    made = {setting: make(setting) for setting in settings}
    errors = {
        setting: float(
            np.mean(
                [
                    np.square(model.predict_delta(p.forget, p.points) - p.delta).sum()
                    / max(np.square(p.delta).sum(), 1e-30)
                    for p in pilots
                ]
            )
        )
        for setting, model in made.items()
    }
    best = min(errors, key=lambda setting: errors[setting])
    return Calibrated(made[best], best, errors, np.concatenate([p.forget for p in pilots]))
