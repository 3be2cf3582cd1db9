"""The linear datamodeling score: do summed scores predict what retraining on a subset does (Park et al. 2023)?

For query q and subset e the prediction is the sum of the scores of the examples in e; LDS is Spearman's correlation
of predictions with retrained measurements over subsets, averaged over queries. Subsets that leave out a small share
(leave-p-out) are other masks of the same thing.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from whence.cache import DataError
from whence.cache.retrain.retrained import Retrained, mask_hash

if TYPE_CHECKING:
    import xarray

FEWEST = 12  # subsets below which a bootstrap interval means nothing


class LDS(NamedTuple):
    """mean over queries, with the bootstrap interval [low, high] over subsets and queries at `level`; per_query [q];
    subsets: distinct ones (models of one subset are averaged). constant: queries that no retraining moved, whose
    correlation is counted as 0."""

    mean: float
    low: float
    high: float
    level: float
    per_query: Float[np.ndarray, " q"]
    subsets: int
    constant: int

    def __str__(self) -> str:
        counts = f"({self.subsets} subsets, {len(self.per_query)} queries)"
        return f"LDS {self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] {counts}"


class Difference(NamedTuple):
    """mean of LDS(a) - LDS(b) under the same resampled subsets and queries, its interval, and the share of resamples
    in which a is below b."""

    mean: float
    low: float
    high: float
    level: float
    below: float

    def __str__(self) -> str:
        interval = f"[{self.low:+.3f}, {self.high:+.3f}]"
        return f"difference {self.mean:+.3f} {interval}, below zero in {self.below:.1%} of resamples"


def lds(
    scores: "xarray.DataArray",
    bank: Retrained,
    output: str = "measurements",
    *,
    draws: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> LDS:
    """LDS of scores [query, train] against a bank that kept `output` at the queries.

    `losses` are taken with a minus, so that higher is better for the query as in scores. Raises DataError for scores
    of other training examples than the bank's, queries the bank was not run on, or too few subsets for an interval.
    """
    predicted, measured = paired(scores, bank, output)
    check_count(len(predicted), level)
    each = spearman(predicted, measured)
    resampled = [spearman(predicted[e], measured[e])[q].mean() for e, q in resamples(predicted.shape, draws, seed)]
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    constant = int((np.ptp(measured, axis=0) == 0).sum())
    return LDS(float(each.mean()), float(low), float(high), level, each, len(predicted), constant)


def compare(
    a: "xarray.DataArray",
    b: "xarray.DataArray",
    bank: Retrained,
    output: str = "measurements",
    *,
    draws: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Is a's LDS above b's? A paired bootstrap: both see the same resampled subsets and queries. Raises as `lds`."""
    (first, measured), (second, again) = paired(a, bank, output), paired(b, bank, output)
    if list(a["query"].values) != list(b["query"].values):
        raise DataError("The two sets of scores are for other queries.", "Score the same queries in the same order.")
    check_count(len(first), level)
    found = np.array([
        (spearman(first[e], measured[e]) - spearman(second[e], again[e]))[q].mean()
        for e, q in resamples(first.shape, draws, seed)
    ])  # fmt: skip
    whole = float((spearman(first, measured) - spearman(second, again)).mean())
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Difference(whole, float(low), float(high), level, float((found < 0).mean()))


def paired(
    scores: "xarray.DataArray", bank: Retrained, output: str
) -> tuple[Float[np.ndarray, "e q"], Float[np.ndarray, "e q"]]:
    """Predictions and mean measurements of each distinct subset, [e q]."""
    values = aligned(scores, bank.train_ids)
    columns = bank.at_points(scores["query"].values)
    measured = bank[output][:, columns].astype(np.float64) * (-1.0 if output == "losses" else 1.0)
    if measured.ndim > 2:  # margins by token
        measured = np.nansum(measured, axis=2)
    if not np.isfinite(values).all() or not np.isfinite(measured).all():
        raise DataError("There are scores or retrained outputs that are not finite.", "Look for NaN in either.")
    groups: dict[str, list[int]] = {}
    for e, mask in enumerate(bank.masks):
        groups.setdefault(mask_hash(bank.train_ids, mask), []).append(e)
    first = [rows[0] for rows in groups.values()]
    predicted = bank.masks[first].astype(np.float64) @ values.T
    return predicted, np.stack([measured[rows].mean(0) for rows in groups.values()])


def aligned(scores: "xarray.DataArray", train_ids: np.ndarray) -> Float[np.ndarray, "q n"]:
    """Scores with the training examples in the order of these ids. Raises DataError where they are others."""
    where = {int(i): place for place, i in enumerate(scores["train"].values)}
    unknown = [int(i) for i in train_ids if int(i) not in where]
    if unknown or len(where) != len(train_ids):
        raise DataError(
            f"The scores are of {len(where)} training examples, the retrained models of {len(train_ids)}; "
            f"{len(unknown)} of the latter have no score.",
            "Score exactly the examples that the masks choose among.",
        )
    return scores.values[:, [where[int(i)] for i in train_ids]].astype(np.float64)


def check_count(subsets: int, level: float) -> None:
    if subsets < FEWEST:
        raise DataError(
            f"{subsets} distinct subsets are too few for an interval at {level:.0%}.",
            f"Retrain on at least {FEWEST} subsets; 50 to 100 give a useful interval.",
        )


def resamples(shape: tuple[int, ...], draws: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    subsets, queries = shape
    return [(rng.integers(0, subsets, subsets), rng.integers(0, queries, queries)) for _ in range(draws)]


def spearman(x: Float[np.ndarray, "e q"], y: Float[np.ndarray, "e q"]) -> Float[np.ndarray, " q"]:
    """Rank correlation of each column; 0 where a column is constant."""
    x, y = rankdata(x, axis=0), rankdata(y, axis=0)
    x, y = x - x.mean(0), y - y.mean(0)
    size = np.sqrt((x * x).sum(0) * (y * y).sum(0))
    return np.divide((x * y).sum(0), size, out=np.zeros(x.shape[1]), where=size > 0)
