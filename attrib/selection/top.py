"""The k examples with the highest mean (or highest) score over queries."""

from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int64

from whence.cache import NumericalError, UsageError

if TYPE_CHECKING:
    import xarray


def top_k(scores: "xarray.DataArray", k: int, by: Literal["mean", "max"] = "mean") -> Int64[np.ndarray, " k"]:
    """Ids of the k training examples with the highest score over queries, best first; ties in the data's order.

    Raises UsageError for a k that is not 1 to n."""
    check_k(k, scores.sizes["train"])
    values = pairwise_values(scores)
    values = values.mean(0) if by == "mean" else values.max(0)
    return scores["train"].values[np.argsort(-values, kind="stable")[:k]]


def pairwise_values(scores: "xarray.DataArray") -> Float[np.ndarray, "q n"]:
    """Scores [query, train], in float64, summed over what they are split by. Raises NumericalError if one is not
    finite."""
    summed = scores.sum([dim for dim in scores.dims if dim not in ("query", "train")], skipna=False)
    values = np.asarray(summed.transpose("query", "train").values, np.float64)
    if not np.isfinite(values).all():
        raise NumericalError("There are scores that are not finite.", "Score those examples again, or leave them out.")
    return values


def check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise UsageError(f"Cannot choose {k} of {n} examples.", f"Choose 1 to {n}.")
