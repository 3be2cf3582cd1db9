"""How sure a score is: what changes when the model's labels are drawn again, or the factors see half of the data; and
which of a query's first k stay there. No score is worth ranking by past its own noise."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import nn

from whence.cache import DataError, Examples, Sites, Store, Task, UsageError

from .method import FitOptions
from .scores import score

if TYPE_CHECKING:
    import xarray


class ErrorBars(NamedTuple):
    """mean: scores averaged over the label draws. labels, halves: standard errors [query, train] of one fit, from
    drawing labels and from the data that the factors saw. top [q k]: ids of the mean's first k. stable [q k]: in what
    share of all fits each stands among the first k. unstable [q k]: where that is below the threshold."""

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
            f"labels drawn, by {float(self.halves.mean()) / spread:.1%} with the data of the factors; "
            f"{int(self.unstable.sum())} of {self.unstable.size} places among the first are unstable"
        )


def error_bars(
    method: Any,
    model: nn.Module,
    task: Task,
    examples: Examples,
    queries: Examples,
    train: Examples,
    *,
    sites: Sites | None = None,
    draws: int = 4,
    splits: int = 2,
    k: int = 10,
    threshold: float = 0.8,
    seed: int = 0,
    store: Store | None = None,
    options: FitOptions = FitOptions(),
) -> ErrorBars:
    """Fit `method` with `draws` seeds of its labels, and on both halves of `splits` random splits of `examples`;
    score with each. The halves' standard error is that of the mean of two halves, which sees all the data as one
    whole fit does.

    Raises UsageError for a method that draws no labels or fewer than two draws, DataError for fewer than four examples.
    """
    if getattr(method, "labels", None) != "sampled" or draws < 2 or splits < 1:
        raise UsageError(
            f"{type(method).__name__} with {draws} draws and {splits} splits has no label noise to measure.",
            'Use a method with labels="sampled" (EKFAC, KFAC, Diagonal, Shampoo), two draws and one split or more.',
        )
    if len(examples) < 4 or not 1 <= k <= len(train):
        raise DataError(f"{len(examples)} examples, top {k} of {len(train)}.", "Give more examples, or a smaller k.")

    def scores(data: Examples, labels: int) -> "xarray.DataArray":
        fitted = replace(method, seed=labels).fit(model, task, data, sites=sites, store=store, options=options)
        return score(fitted, model, task, queries, train, store=store, train_size=len(examples), options=options)

    drawn = [scores(examples, method.seed + draw) for draw in range(draws)]
    rng = np.random.default_rng(seed)
    halves, squares = [], np.zeros(drawn[0].shape)
    for _ in range(splits):
        first = rng.permutation(len(examples)) < len(examples) // 2
        pair = [scores(examples.select(rows), method.seed) for rows in (first, ~first)]
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
