"""What a datamodel is: a prediction of how outputs change when some training examples are left out; how well it
predicts (LDS); and how its size is calibrated on requests that are not the one evaluated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64

from whence.cache import DataError, Examples, UsageError, statistics
from whence.cache.retrain.retrained import Retrained, member_rows
from whence.cache.statistics import LDS


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
    """What computing a datamodel took: full trainings, and example passes beside them."""

    trainings: float = 0.0
    passes: float = 0.0


def prediction_passes(datamodel: Any, forget: int, points: int) -> float:
    """Example passes of predicting so many points; none for a datamodel that looks them up, or a function to one."""
    count = getattr(datamodel, "prediction_passes", None)
    return float(count(forget, points)) if count else 0.0


def lds_of(predicted: Float[np.ndarray, "e ..."], actual: Float[np.ndarray, "e ..."], seed: int = 0) -> LDS:
    """The score from predicted and actual outputs of the same held-out models, with a 90 % interval over outputs.

    Raises:
        DataError: there are fewer than eight models.
    """
    flat = (values.reshape(len(values), -1) for values in (predicted, actual))
    return statistics.lds(*flat, over_subsets=False, resamples=200, level=0.9, seed=seed)


def lds(datamodel: Datamodel, bank: Retrained, points: Examples, seed: int = 0) -> LDS:
    """A datamodel's score on a bank whose masks it has not seen: every mask's predicted logits are the change
    for what that mask leaves out."""
    columns = bank.at_points(points.ids)
    predicted = [datamodel.predict_delta(bank.train_ids[~mask], points) for mask in bank.masks]
    return lds_of(np.stack(predicted), bank["logits"][:, columns], seed)


@dataclass(frozen=True, eq=False)
class Pilot:
    """A forget set whose outcome is known: what was left out, and the mean logits at `points` with and without."""

    forget: Int64[np.ndarray, " f"]
    points: Examples
    delta: Float[np.ndarray, "p ..."]

    @staticmethod
    def of(forget: np.ndarray, points: Examples, before: Float[np.ndarray, "e p ..."], oracles: Retrained) -> "Pilot":
        """From the logits of models that saw everything [e p c] and a bank of oracles for this forget set."""
        checked = oracles.oracles(forget)
        after = checked["logits"][:, oracles.at_points(points.ids)]
        ids = oracles.train_ids[member_rows(oracles.train_ids, forget)]
        return Pilot(ids, points, after.mean(0) - before.mean(0))


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A datamodel whose setting was chosen on pilot forget sets; it refuses to predict for any of those.

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
        forget = np.asarray(forget)
        if forget.dtype == bool:
            raise DataError("A calibrated datamodel knows ids only.", "Give ids in place of a mask.")
        shared = np.intersect1d(forget, self.used)
        if len(shared):
            raise DataError(
                f"{len(shared)} examples of this forget set were used to calibrate the datamodel.",
                "Calibrate on other forget sets than the one that is evaluated.",
            )
        return self.chosen.predict_delta(forget, points)


def calibrate(make: Callable[[Any], Datamodel], settings: Sequence[Any], pilots: Sequence[Pilot]) -> Calibrated:
    """Choose the setting (a damping, a scale) whose predictions are nearest to pilot outcomes: the smallest mean over
    pilots of |predicted - actual|² / |actual|². Raises UsageError without settings or pilots."""
    if not settings or not pilots:
        raise UsageError(
            f"{len(settings)} settings on {len(pilots)} pilots leave nothing to calibrate.",
            "Give at least one of each.",
        )
    built = {setting: make(setting) for setting in settings}
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
        for setting, model in built.items()
    }
    best = min(errors, key=lambda setting: errors[setting])
    return Calibrated(built[best], best, errors, np.concatenate([p.forget for p in pilots]))
