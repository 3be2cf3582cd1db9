"""How far unlearned models are from retrained ones: distances between distributions of margins, point by point.

KLoM (Georgiev et al. 2024): per point, the KL divergence between histograms of the margin z_y - log Σ_{j≠y} e^{z_j}
over N unlearned and over N oracle models; its 95th percentile over points is the usual summary. The published
programs disagree on its direction, its number of bins, and lose the largest sample to a right-open last bin; here
the last bin is closed, direction and bins are arguments, and the default direction is the paper's own auditor's.
`FORMS` has the published programs as they stand, beside ours.

At small N most of a KLoM is sampling noise: compare with the same number for oracles against other oracles (the null
row of an evaluation), and `KLoM.advise` says how many models an effect needs.

A diverged model stretches the bins until all others share one, and margins beyond the clipping are equal: both make a
KLoM small. So margins that are not finite are refused, and a summary says when one of these happened (`doubt`).
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from whence.cache.display.interval import Interval
from whence.cache.errors import DataError, UsageError

from .diverged import diverged, listed, warn_of_doubt

CLIP = 100.0  # margins beyond ± this count as this
FLOOR = 1e-5  # of a probability, so no KL exceeds log(1 / FLOOR) by much
PAPER_BINS = 20
POINTS_AT_ONCE = 4096
FEWEST = 8
DIRECTIONS = ("unlearned||oracle", "oracle||unlearned")
CROWDED = 0.875  # of both samples in one bin: it shows no difference between them
HIDDEN = 0.5  # share of such points above which a summary is doubted


class Summary(NamedTuple):
    """A per-point distance over a set of points: mean, 95th percentile with its 90 % interval over models, 99th.

    hidden: share of the points where nearly all of both samples are in one bin although the models' margins differ.
    diverged: models of either side whose margins are far from those of their ensemble.
    """

    mean: float
    interval: Interval
    p99: float
    hidden: float = 0.0
    diverged: int = 0

    @property
    def p95(self) -> float:
        return self.interval.value

    @property
    def doubt(self) -> str:
        """Why it may be too small; "" if nothing speaks against it."""
        causes = [f"models that diverged: {self.diverged}, which stretch the bins"] if self.diverged else []
        if self.hidden > HIDDEN:
            causes.append(f"at {self.hidden:.0%} of the points one bin has nearly all margins (clipped to ±{CLIP:g})")
        return "; ".join(causes)


class Advice(NamedTuple):
    """models: how many show the effect; floor, effect: what noise and effect score at that many (median of
    the effect against the 95th percentile of noise)."""

    models: int
    floor: float
    effect: float


@dataclass(frozen=True)
class KLoM:
    """Settings of the metric.

    direction: "unlearned||oracle" (the DMM paper's auditor) or "oracle||unlearned" (a later benchmark's script).
    bins: number of equal bins over both samples' joint range; None: as many as N models fill (`bins_for`).
    clip_oracles: clip the second sample to ±100 as well as the first.
    closed: the last bin has the largest sample; the published programs lose it.
    floor: 1e-5 is the least probability that the second histogram has "everywhere", or only "where used", in the
        bins that the first fills.
    renormalise: the floored histogram sums to one again.

    >>> margins = np.random.default_rng(0).normal(size=(2, 100, 5))  # of two groups of 100 models, at five points
    >>> KLoM(bins=20)(margins[0], margins[1]).shape
    (5,)
    """

    direction: str = DIRECTIONS[0]
    bins: int | None = None
    clip_oracles: bool = True
    closed: bool = True
    floor: Literal["everywhere", "where used"] = "everywhere"
    renormalise: bool = True

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS or (self.bins is not None and self.bins < 2):
            raise UsageError(
                f"No KLoM of direction {self.direction!r} with {self.bins} bins.",
                f"Use a direction of {DIRECTIONS} and at least two bins.",
            )

    def bins_for(self, models: int) -> int:
        """The bins used for so many models."""
        return self.bins or bins_for(models)

    def __call__(
        self, unlearned: Float[np.ndarray, "e p"], oracles: Float[np.ndarray, "f _"]
    ) -> Float[np.ndarray, " p"]:
        """KLoM of every point. Raises DataError for other points, NaN, or too few models."""
        return self._unchecked(*checked(unlearned, oracles, FEWEST))[0]

    def _block(self, unlearned: np.ndarray, oracles: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
        """KLoM of some points, and at which of them it is hidden."""
        forward = self.direction == DIRECTIONS[0]
        p, q = (unlearned, oracles) if forward else (oracles, unlearned)
        differ = np.minimum(p.min(0), q.min(0)) < np.maximum(p.max(0), q.max(0))
        p = np.clip(p, -CLIP, CLIP)
        q = np.clip(q, -CLIP, CLIP) if self.clip_oracles else q
        low, high = np.minimum(p.min(0), q.min(0)), np.maximum(p.max(0), q.max(0))
        width = np.where(high > low, high - low, 1.0)
        points = np.arange(p.shape[1]) * bins

        def histogram(samples: np.ndarray) -> np.ndarray:
            cells = ((samples - low) * (bins / width)).astype(np.int32)
            np.minimum(cells, bins - 1, out=cells)  # the last bin is closed
            inside = None if self.closed else ((samples < high) | (high <= low)).ravel().astype(np.float64)
            counts = np.bincount((cells + points).ravel(), inside, p.shape[1] * bins).reshape(-1, bins)
            return counts / np.maximum(counts.sum(1, keepdims=True), 1)

        mass, reference = histogram(p), histogram(q)
        hidden = differ & (np.minimum(mass, reference).max(1) >= CROWDED)
        floored = np.maximum(reference, FLOOR)
        reference = floored if self.floor == "everywhere" else np.where(mass > 0, floored, reference)
        if self.renormalise:
            reference /= reference.sum(1, keepdims=True)
        filled = mass > 0
        return (mass * np.log(np.where(filled, mass, 1.0) / np.where(filled, reference, 1.0))).sum(1), hidden

    def summary(
        self,
        unlearned: Float[np.ndarray, "e p"],
        oracles: Float[np.ndarray, "f p"],
        *,
        resamples: int = 0,
        seed: int = 0,
    ) -> Summary:
        """Mean, p95 and p99 over points; with `resamples`, a 90 % interval of p95 under resampling of models.

        Drawing models with replacement leaves bins empty that are not, which inflates every KL; so the interval
        is of halves drawn without replacement, scaled to the whole (m-out-of-n with m = n/2).

        Warns (DivergedWarning), with the models that diverged, if the summary is to be doubted (`Summary.doubt`).
        """
        unlearned, oracles = checked(unlearned, oracles, FEWEST)
        values, hidden = self._unchecked(unlearned, oracles)
        p95, p99 = np.percentile(values, [95, 99])
        far = {"unlearned": diverged(unlearned), "oracles": diverged(oracles)}
        interval = Interval(float(p95), level=0.9)
        plain = Summary(float(values.mean()), interval, float(p99), float(hidden.mean()), sum(map(len, far.values())))
        if plain.doubt:
            warn_of_doubt(plain.doubt, far)
        if not resamples:
            return plain
        generator = np.random.default_rng(seed)
        spread = []
        for _ in range(resamples):
            first = generator.permutation(len(unlearned))[: max(2, len(unlearned) // 2)]
            second = generator.permutation(len(oracles))[: max(2, len(oracles) // 2)]
            as_whole = replace(self, bins=self.bins_for(min(len(unlearned), len(oracles))))
            spread.append(float(np.percentile(as_whole._unchecked(unlearned[first], oracles[second])[0], 95)))
        sd = float(np.std(spread)) / np.sqrt(2)
        interval = Interval(plain.p95, max(0.0, plain.p95 - 1.645 * sd), plain.p95 + 1.645 * sd, 0.9)
        return plain._replace(interval=interval)

    def advise(self, effect: float) -> Advice:
        """The smallest number of models at which the typical point with a shift of `effect` standard deviations
        scores twice the noise floor. Raises UsageError for an effect below 0.2: thousands of models.

        >>> KLoM().advise(1.0).models
        150
        """
        if effect < 0.2:
            raise UsageError(
                f"A shift of {effect} standard deviations is not seen by a histogram of any affordable bank.",
                "Use the energy distance or the two-sample test, or a mean over points.",
            )
        for models in (8, 16, 24, 32, 48, 64, 100, 150, 200, 300, 500, 1000, 2000):
            floor, typical = (
                noise_floor(models, metric=self),
                noise_floor(models, metric=self, quantile=50.0, shift=effect),
            )
            if typical >= 2 * floor:
                break
        return Advice(models, floor, typical)

    def _unchecked(self, unlearned: np.ndarray, oracles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bins = self.bins_for(min(len(unlearned), len(oracles)))
        cuts = range(POINTS_AT_ONCE, unlearned.shape[1], POINTS_AT_ONCE)
        sides = (np.split(margins, cuts, 1) for margins in (unlearned, oracles))
        parts = [self._block(first, second, bins) for first, second in zip(*sides)]
        values, hidden = map(np.concatenate, zip(*parts))
        return values, hidden


class Form(NamedTuple):
    """A form of KLoM: the metric, and the program or paper that has it."""

    metric: KLoM
    source: str


_LATER: dict[str, Any] = {"bins": PAPER_BINS, "closed": False, "floor": "where used"}
FORMS: Mapping[str, Form] = MappingProxyType({
    "whence": Form(KLoM(), "this program: closed bins, a fifth of the number of models"),
    "dmm": Form(
        KLoM(bins=PAPER_BINS - 1, clip_oracles=False, closed=False),
        "the auditors of Georgiev et al. 2024 (arXiv 2410.23232): 20 edges; oracles are not clipped",
    ),
    "data-unlearning-bench": Form(
        KLoM(direction=DIRECTIONS[1], **_LATER), "RoyRin/data-unlearning-bench, run.py: KL(oracle || unlearned)"
    ),
    "easydub": Form(
        KLoM(renormalise=False, **_LATER), "EasyDUB (arXiv 2602.16400), eval.py: KL(unlearned || oracle)"
    ),
})  # fmt: skip


def bins_for(models: int) -> int:
    """The paper's 20 bins at 100 models and as many models a bin below: noise is then of the same order."""
    return int(np.clip(models // 5, 3, PAPER_BINS))


def checked(unlearned: np.ndarray, oracles: np.ndarray, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """Both as float32 [models, points]. Raises DataError for other shapes, different points, no point, fewer models
    than `fewest` on a side, and values that are not finite."""
    unlearned, oracles = np.asarray(unlearned), np.asarray(oracles)
    if unlearned.ndim != 2 or oracles.ndim != 2 or not unlearned.shape[1]:
        raise DataError(
            f"Margins of shapes {list(unlearned.shape)} and {list(oracles.shape)} are not [models, points].",
            "Give one row a model and one column a point, at least one; for tokens, one column each.",
        )
    if unlearned.shape[1] != oracles.shape[1]:
        raise DataError(
            f"Outputs at {unlearned.shape[1]} points cannot be compared with a bank's at {oracles.shape[1]}.",
            "Measure both on the same points, in the same order.",
        )
    if (count := min(len(unlearned), len(oracles))) < fewest:
        raise DataError(
            f"{count} models are too few to compare distributions of their margins.",
            f"Use at least {fewest} on each side; KLoM().advise(1.0) says how many show a shift of one standard "
            "deviation.",
        )
    for name, values in (("unlearned", unlearned), ("oracle", oracles)):
        broken = np.flatnonzero(~np.isfinite(values).all(1))
        if len(broken):
            raise DataError(
                f"Margins of {len(broken)} of {len(values)} {name} models are NaN or infinite: {listed(broken)}.",
                "Leave out the models that diverged, or the positions where nothing is predicted.",
            )
    return np.asarray(unlearned, np.float32), np.asarray(oracles, np.float32)


# --- the noise floor ----------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def noise_floor(
    models: int,
    bins: int | None = None,
    *,
    quantile: float = 95.0,
    shift: float = 0.0,
    seed: int = 0,
    metric: KLoM = KLoM(),
) -> float:
    """The percentile over points of the KLoM of normal margins `shift` standard deviations apart: the noise at
    0, what an effect scores at more. Simulated on 2,000 points."""
    generator = np.random.default_rng(seed)
    p, q = generator.normal(size=(2, models, 2000)).astype(np.float32)
    found = replace(metric, bins=bins or metric.bins_for(models))
    return float(np.percentile(found._unchecked(p + shift, q)[0], quantile))


def warn_if_hidden(floor: float, found: float, models: int) -> None:
    """Warn when a reported p95 is not above what noise alone gives, with the number of models that would do."""
    if found <= 1.25 * floor:
        enough = KLoM().advise(1.0).models
        warnings.warn(
            f"p95 {found:.2f} is within noise ({floor:.2f} for oracles against oracles at {models} models): "
            f"smaller differences are hidden. {max(enough, 2 * models)} models would show a shift of one "
            "standard deviation at twice the noise.",
            stacklevel=2,
        )


def accuracy(logits: Float[np.ndarray, "e p c"], y: np.ndarray) -> float:
    """Mean accuracy over models and points. Raises DataError as `checked_labels`."""
    logits, y = checked_labels(logits, y)
    return float((logits.argmax(-1) == y).mean())


def checked_labels(logits: Float[np.ndarray, "e p c"], y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float32 and int64. Raises DataError for logits that are not finite or not [models, points, classes], and
    labels that are not one class a point."""
    logits, y = np.asarray(logits, np.float32), np.asarray(y)
    if logits.ndim != 3 or y.shape != logits.shape[1:2] or y.dtype.kind not in "iu":
        raise DataError(
            f"Labels of shape {list(y.shape)} and type {y.dtype} do not match logits of shape {list(logits.shape)}.",
            "Give logits [models, points, classes] and one whole number a point.",
        )
    if not np.isfinite(logits).all():
        raise DataError(
            f"{int((~np.isfinite(logits)).sum())} logits are NaN or infinite.", "Leave out the models that diverged."
        )
    outside = np.flatnonzero((y < 0) | (y >= logits.shape[2]))
    if len(outside):
        raise DataError(
            f"{len(outside)} labels are not among {logits.shape[2]} classes, for instance {int(y[outside[0]])} of "
            f"point {int(outside[0])}.",
            f"Number the classes from 0 to {logits.shape[2] - 1}.",
        )
    return logits, y.astype(np.int64)
