"""How much of the exact top k an index or a prefilter finds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from whence.cache import DataError

if TYPE_CHECKING:
    import xarray


def recall_of(
    found: Int64[np.ndarray, "q c"], exact: "xarray.DataArray", k: int = 10, exclude: Mapping[int, int] | None = None
) -> Float[np.ndarray, " q"]:
    """The share of each query's exact top k that is among `found`.

    Args:
        found: ids of the candidates.
        exact: scores [query, train].
        exclude: query id -> id of a training example that is left out of both (the query itself, if queries are
            training examples).
    """
    ids, out = exact["train"].values, np.empty(len(found))
    for row, query in enumerate(exact["query"].values):
        own = (exclude or {}).get(int(query))
        ranked = [i for i in ids[np.argsort(-exact.values[row], kind="stable")] if i != own][:k]
        out[row] = np.isin(ranked, found[row]).mean()
    return out


class RecallCurve(NamedTuple):
    """Recall of a prefilter by the share of the training set that is scored after it.

    rule: of the prefilter. k: of the exact top k. shares: 0 to 1. recall: of the exact top k among what is scored,
    the mean over queries at each share.
    """

    rule: str
    k: int
    shares: Float[np.ndarray, " h"]
    recall: Float[np.ndarray, " h"]

    def __str__(self) -> str:
        steps = ", ".join(f"{s:.1%}: {r:.3f}" for s, r in zip(self.shares, self.recall))
        return f"{self.rule}, recall of the exact top {self.k} by share scored: {steps}"


def recall_by_share(
    lexical: Float[np.ndarray, "q n"],
    exact: "xarray.DataArray | Float[np.ndarray, 'q n']",
    *,
    k: int = 10,
    shares: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    rule: str = "",
) -> RecallCurve:
    """How much of the exact top k a prefilter finds if it keeps a share of the training set. Raises DataError for
    arrays of different shapes."""
    values = np.asarray(exact)
    if values.shape != lexical.shape:
        raise DataError(
            f"Lexical scores are {lexical.shape}, exact ones {values.shape}.", "Score the same queries and examples."
        )
    best = np.argsort(-values, axis=1, kind="stable")[:, : min(k, values.shape[1])]
    place = np.empty(lexical.shape, np.int64)
    order = np.argsort(-lexical, axis=1, kind="stable")
    np.put_along_axis(place, order, np.broadcast_to(np.arange(lexical.shape[1]), lexical.shape), axis=1)
    reached = np.take_along_axis(place, best, axis=1)
    kept = np.array([max(1, round(share * lexical.shape[1])) for share in shares])
    return RecallCurve(rule, k, np.array(shares), np.array([(reached < keep).mean() for keep in kept]))
