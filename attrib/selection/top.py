"""The k examples with the highest mean (or highest) score over queries."""

from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int64

from whence.cache import UsageError

if TYPE_CHECKING:
    import xarray


def top_k(scores: "xarray.DataArray", k: int, by: Literal["mean", "max"] = "mean") -> Int64[np.ndarray, " k"]:
    """Ids of the k training examples with the highest score over queries, best first; ties in the data's order.

    Raises UsageError for a k that is not 1 to n."""
    check_k(k, scores.sizes["train"])
    values = scores.values.mean(0) if by == "mean" else scores.values.max(0)
    return scores["train"].values[np.argsort(-values, kind="stable")[:k]]


def check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise UsageError(f"Cannot choose {k} of {n} examples.", f"Choose 1 to {n}.")
