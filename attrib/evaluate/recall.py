"""Recall of planted facts: the right answer of a query is known, and a score should rank it first."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from whence.cache import DataError

if TYPE_CHECKING:
    import xarray


class Recall(NamedTuple):
    """at: k -> mean over queries of the share of true examples among the first k (of min(k, how many are true)).
    mrr: mean reciprocal rank of the first true one. per_query: k -> [q]. reciprocal: [q]; their mean is mrr."""

    at: dict[int, float]
    mrr: float
    per_query: dict[int, Float[np.ndarray, " q"]]
    reciprocal: Float[np.ndarray, " q"]

    def __str__(self) -> str:
        return ", ".join(f"recall@{k} {v:.3f}" for k, v in self.at.items()) + f", MRR {self.mrr:.3f}"


def recall(scores: "xarray.DataArray", truth: Mapping[int, Sequence[int]], ks: Sequence[int] = (1, 5, 10)) -> Recall:
    """Recall of scores [query, train] against `truth`: query id -> ids of the training examples with its answer.

    Raises DataError for a query without an answer, or an answer that was not scored."""
    train, queries = scores["train"].values, scores["query"].values
    true = np.zeros(scores.shape, bool)
    for row, query in enumerate(queries):
        answers = np.asarray(list(truth.get(int(query), ())), np.int64)
        if not len(answers) or not np.isin(answers, train).all():
            raise DataError(
                f"Query {int(query)} has {'no answer' if not len(answers) else 'an answer that was not scored'}.",
                "Give for every query at least one training example with its answer.",
            )
        true[row] = np.isin(train, answers)
    order = np.argsort(-scores.values, axis=1, kind="stable")
    hits = np.take_along_axis(true, order, axis=1)
    per_query = {k: hits[:, :k].sum(1) / np.minimum(k, true.sum(1)) for k in ks}
    reciprocal = 1.0 / (hits.argmax(1) + 1)
    return Recall({k: float(v.mean()) for k, v in per_query.items()}, float(reciprocal.mean()), per_query, reciprocal)
