"""The linear datamodeling score: do summed scores predict what retraining on a subset does (Park et al. 2023)?

For query q and subset e the prediction is the sum of the scores of the examples in e; LDS is Spearman's correlation
of predictions with retrained measurements over subsets, averaged over queries. Subsets that leave out a small share p
(leave-p-out) are other masks of the same thing: `subset_masks(n, count, 1 - p)`.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from whence.cache import DataError, statistics
from whence.cache.retrain.retrained import Retrained, mask_hash
from whence.cache.statistics import LDS, Difference

if TYPE_CHECKING:
    import xarray


def lds(
    scores: "xarray.DataArray",
    bank: Retrained,
    output: str = "measurements",
    *,
    resamples: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> LDS:
    """LDS of scores [query, train] against a bank of retrained models.

    Args:
        scores: of exactly the training examples that the bank's masks choose among.
        bank: models that kept `output` at the queries; those of one subset are averaged.
        output: what is predicted. `losses` are taken with a minus, so that higher is better for the query.
        resamples: bootstrap samples of subsets and queries.
        level: of the interval.
        seed: of the bootstrap.

    Raises:
        DataError: scores of other training examples, queries the bank was not run on, or too few subsets.
    """
    return statistics.lds(*paired(scores, bank, output), resamples=resamples, level=level, seed=seed)


def compare(
    a: "xarray.DataArray",
    b: "xarray.DataArray",
    bank: Retrained,
    output: str = "measurements",
    *,
    resamples: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Is a's LDS above b's? A paired bootstrap: both see the same resampled subsets and queries. Arguments are those
    of `lds`.

    Raises:
        DataError: the scores are of other training examples or queries, or there are too few subsets.
    """
    if list(a["query"].values) != list(b["query"].values):
        raise DataError("The two sets of scores are for other queries.", "Score the same queries in the same order.")
    (first, measured), (second, _) = paired(a, bank, output), paired(b, bank, output)
    return statistics.lds_difference(first, second, measured, resamples=resamples, level=level, seed=seed)


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
    """Scores with the training examples in the order of these ids. Raises DataError when they are others."""
    where = {i: place for place, i in enumerate(scores["train"].values.tolist())}
    wanted = np.asarray(train_ids).tolist()
    unknown = [i for i in wanted if i not in where]
    if unknown or len(where) != len(train_ids):
        raise DataError(
            f"The scores are of {len(where)} training examples, the retrained models of {len(train_ids)}; "
            f"{len(unknown)} of the latter have no score.",
            "Score exactly the examples that the masks choose among.",
        )
    return scores.values[:, [where[i] for i in wanted]].astype(np.float64)
