"""Finding mislabelled examples: flip some labels, rank by a score, see how soon the flipped ones are found
(Koh and Liang 2017, Section 5.4)."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from whence.cache import DataError, Examples
from whence.cache.display import axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Detection(NamedTuple):
    """auc: probability that a flipped example ranks above another one. found [n]: share of the flipped examples among
    the first 1..n examples inspected. at: share found within 10 and 20 % inspected."""

    auc: float
    found: Float[np.ndarray, " n"]
    at: dict[str, float]

    def __str__(self) -> str:
        return f"AUC {self.auc:.3f}; " + ", ".join(f"{v:.0%} within {k}" for k, v in self.at.items())

    def plot(self, label: str = "score", ax: "Axes | None" = None) -> "Axes":
        """The curve of found against inspected, with chance as a line. Returns the axes."""
        axes = axes_or_new(ax, 4.5, 3.5)
        inspected = np.arange(1, len(self.found) + 1) / len(self.found)
        axes.plot(inspected, self.found, label=f"{label} (AUC {self.auc:.3f})")
        axes.plot([0, 1], [0, 1], "--", color="grey", label="random order")
        axes.set(
            xlabel="share of examples inspected", ylabel="share of flipped labels found", xlim=(0, 1), ylim=(0, 1.02)
        )
        axes.legend(loc="lower right")
        return axes


def flip_labels(
    examples: Examples, share: float, classes: int, seed: int = 0
) -> tuple[Examples, Bool[np.ndarray, " n"]]:
    """The examples with a `share` of their labels y replaced by another class, and which ones. Raises DataError if that
    is none or all of them."""
    y = np.asarray(examples.columns["y"])
    rng = np.random.default_rng(seed)
    count = round(share * len(y))
    if not 0 < count < len(y) or classes < 2:
        raise DataError(
            f"Cannot flip {share:.0%} of {len(y)} labels.", "Flip some but not all, of two classes or more."
        )
    flipped = np.zeros(len(y), bool)
    flipped[rng.choice(len(y), count, replace=False)] = True
    wrong = np.where(flipped, (y + rng.integers(1, classes, len(y))) % classes, y).astype(y.dtype)
    return Examples({**examples.columns, "y": wrong}, examples.ids, examples.about), flipped


def detection(suspicion: Float[np.ndarray, " n"], flipped: Bool[np.ndarray, " n"]) -> Detection:
    """How well a score [n] (self-influence, GraNd, EL2N: high is suspicious) ranks the flipped examples first.

    Raises DataError if lengths differ, if none or all are flipped, or if a score is NaN."""
    from sklearn.metrics import roc_auc_score

    suspicion = np.asarray(suspicion, np.float64)
    if suspicion.shape != flipped.shape or not flipped.any() or flipped.all() or np.isnan(suspicion).any():
        raise DataError(
            f"{suspicion.shape[0]} scores ({int(np.isnan(suspicion).sum())} NaN) for {int(flipped.sum())} flipped "
            f"among {flipped.shape[0]} examples.",
            "Give one number per example, and some examples of either kind.",
        )
    found = np.cumsum(flipped[np.argsort(-suspicion, kind="stable")]) / flipped.sum()
    at = {f"{share:.0%}": float(found[max(0, round(share * len(found)) - 1)]) for share in (0.1, 0.2)}
    return Detection(float(roc_auc_score(flipped, suspicion)), found, at)
