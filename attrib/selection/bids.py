"""BIDS: balanced and influential selection (Dai et al. 2025, arXiv 2501.12147). Scores of every query are put on one
scale; then, one at a time, the example is chosen that adds most to the task that the chosen ones serve worst."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int64

from whence.cache import DataError

from .top import check_k, pairwise_values

if TYPE_CHECKING:
    import xarray


def normalised(scores: Float[np.ndarray, "q n"]) -> Float[np.ndarray, "q n"]:
    """Each query's scores with mean 0 and deviation 1 over the training examples; a constant row becomes 0."""
    centred = scores - scores.mean(1, keepdims=True)
    deviation = centred.std(1, keepdims=True)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)


def bids(scores: "xarray.DataArray", k: int, tasks: Sequence[object] | None = None) -> Int64[np.ndarray, " k"]:
    """Ids of k examples in the order of their choice: next comes the i with the largest
    max over tasks t of (A[t, i] - mean over the chosen of A[t, .]), A the normalised scores, averaged over the queries
    of a task if `tasks` names each query's. The first is the one with the largest A.

    Raises UsageError for a k that is not 1 to n, DataError if tasks and queries differ in number."""
    check_k(k, scores.sizes["train"])
    a = normalised(pairwise_values(scores))
    if tasks is not None:
        if len(tasks) != len(a):
            raise DataError(f"{len(tasks)} tasks for {len(a)} queries.", "Give one task per query.")
        names = np.asarray(tasks)
        a = np.stack([a[names == name].mean(0) for name in dict.fromkeys(tasks)])
    chosen: list[int] = []
    total = np.zeros(len(a))
    free = np.ones(a.shape[1], bool)
    for number in range(k):
        gain = (a - total[:, None] / max(number, 1)).max(0)
        best = int(np.argmax(np.where(free, gain, -np.inf)))
        chosen.append(best)
        free[best] = False
        total += a[:, best]
    return scores["train"].values[chosen]
