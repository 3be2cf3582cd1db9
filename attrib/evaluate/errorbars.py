"""The standard errors of scores: from the sampled labels, and from the data that the curvature is fitted on; and which
of each query's top k are stable. Ranks within the standard error mean nothing."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from whence.cache import DataError, Examples, TrainedModel, UsageError

from ..method import CurvatureMethod, Method

if TYPE_CHECKING:
    import xarray


class ErrorBars(NamedTuple):
    """mean: scores averaged over the fits with different sampled labels. labels, halves: standard errors [query, train]
    of one fit, from the sampled labels and from the data that the factors were fitted on. top [q k]: ids of the mean's
    top k. stable [q k]: the share of all fits that have each of them among their top k. unstable [q k]: whether that is
    below the threshold."""

    mean: "xarray.DataArray"
    labels: "xarray.DataArray"
    halves: "xarray.DataArray"
    top: np.ndarray
    stable: Float[np.ndarray, "q k"]
    unstable: np.ndarray

    def __str__(self) -> str:
        spread = float(self.mean.std("train").mean())
        return (
            f"scores vary by {spread:.2e} over examples; by {float(self.labels.mean()) / spread:.1%} of that with the "
            f"labels sampled, by {float(self.halves.mean()) / spread:.1%} with the data of the factors; "
            f"{int(self.unstable.sum())} of {self.unstable.size} places among the top are unstable"
        )


def error_bars(
    method: Method,
    trained: TrainedModel,
    queries: Examples,
    train: Examples | None = None,
    *,
    sites: Any = None,
    draws: int = 4,
    splits: int = 2,
    k: int = 10,
    threshold: float = 0.8,
    seed: int = 0,
) -> ErrorBars:
    """Fit with several seeds of the sampled labels, and on both halves of several random splits of the training data;
    score with each.

    The halves' standard error is that of the mean of two halves, which has seen as much data as one whole fit.

    Args:
        method: a curvature method with sampled labels.
        train: the examples that are scored; by default the training data.
        sites: as for Method.fit.
        draws: fits with different sampled labels.
        splits: of the training data into halves.
        k, threshold: a score is unstable if less than this share of the fits have it among their top k.
        seed: of the splits.

    Raises UsageError for a method without sampled labels or fewer than two draws, DataError for fewer than four
    examples, and the errors of fit and score.
    """
    data, scored = trained.train, trained.train if train is None else train
    if not isinstance(method, CurvatureMethod) or method.labels != "sampled" or draws < 2 or splits < 1:
        raise UsageError(
            f"{type(method).__name__} with {draws} draws and {splits} splits has no label noise to measure.",
            'Use a method with labels="sampled" (EKFAC, KFAC, Diagonal, Shampoo), two draws and one split or more.',
        )
    if len(data) < 4 or not 1 <= k <= len(scored):
        raise DataError(f"{len(data)} examples, top {k} of {len(scored)}.", "Give more examples, or a smaller k.")
    found, first_seed = trained.find(sites), method.seed

    def scores(examples: Examples, labels: int) -> "xarray.DataArray":
        fitted = replace(method, seed=labels).fit_at(trained.replace(train=examples), found)
        return replace(fitted, size=len(data)).score(queries, scored)

    drawn = [scores(data, first_seed + draw) for draw in range(draws)]
    rng = np.random.default_rng(seed)
    halves, squares = [], np.zeros(drawn[0].shape)
    for _ in range(splits):
        first = rng.permutation(len(data)) < len(data) // 2
        pair = [scores(data.select(rows), first_seed) for rows in (first, ~first)]
        squares += np.square(pair[0].values - pair[1].values) / 4
        halves += pair
    mean = drawn[0].copy(data=np.mean([s.values for s in drawn], axis=0))
    order = np.argsort(-mean.values, axis=1, kind="stable")[:, :k]
    firsts = [np.argsort(-s.values, axis=1, kind="stable")[:, :k] for s in [*drawn, *halves]]
    kept = np.mean([[np.isin(o, f) for o, f in zip(order, first)] for first in firsts], axis=0)
    return ErrorBars(
        mean,
        mean.copy(data=np.std([s.values for s in drawn], axis=0, ddof=1)),
        mean.copy(data=np.sqrt(squares / splits)),
        mean["train"].values[order],
        kept,
        kept < threshold,
    )
