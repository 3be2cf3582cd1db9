"""Models that diverged, which hide differences from a metric of distributions: found, and named in a warning."""

import warnings
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

FAR = 20.0  # median distances from the median: a diverged model


class DivergedWarning(UserWarning):
    """Diverged models, or margins beyond the clipping, hide differences from KLoM."""


def diverged(margins: Float[np.ndarray, "e p"]) -> Int[np.ndarray, " k"]:
    """The models whose margins are far from those of their ensemble: at most points, farther from its median than 20
    times the median distance.

    >>> margins = np.random.default_rng(0).normal(size=(10, 50))
    >>> margins[3] -= 1000.0
    >>> diverged(margins).tolist()
    [3]
    """
    away = np.abs(margins - np.median(margins, 0))
    usual = np.median(away, 0)
    return np.flatnonzero(((away > FAR * usual) & (usual > 0)).mean(1) > 0.5)


def listed(models: np.ndarray) -> str:
    shown = ", ".join(map(str, models[:5].tolist()))
    more = f" and {len(models) - 5} more" if len(models) > 5 else ""
    return f"model{'s' * (len(models) > 1)} {shown}{more}"


def warn_of_doubt(doubt: str, far: Mapping[str, Int[np.ndarray, " k"]]) -> None:
    """Warn (DivergedWarning) that a summary may be too small.

    Args:
        doubt: why.
        far: side -> its models that diverged.
    """
    named = "".join(f" ({side}: {listed(models)})" for side, models in far.items() if len(models))
    warnings.warn(
        f"A small KLoM shows nothing here: {doubt}. Leave out the diverged models{named}, or use the energy distance.",
        DivergedWarning,
        stacklevel=3,
    )
