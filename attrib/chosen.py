"""Training examples as users name them: a set of examples, or ids of the training data."""

from typing import Any

import numpy as np
from jaxtyping import Int64

from whence.cache import DataError, Examples
from whence.cache.model.ids import named_rows


def rows_of_ids(examples: Examples, ids: Any, what: str) -> Int64[np.ndarray, " k"]:
    """Row numbers of these ids. Raises DataError for a boolean mask, for numbers that are no ids, and for an id that is
    named twice or is not here."""
    array = np.asarray(ids)
    if array.dtype.kind in "bfc" or array.ndim != 1:
        raise DataError(
            f"{what} is an array of {array.dtype} with shape {array.shape}, not a list of ids.",
            "Give ids of these examples (some of their .ids); of a mask, examples.ids[mask].",
        )
    return named_rows(examples.ids, array)


def chosen(examples: Examples, train: Any) -> Examples:
    """`train` itself if it is examples; all of `examples` if it is None; else those with these ids. Raises the errors
    of `rows_of_ids`."""
    if train is None or isinstance(train, Examples):
        return examples if train is None else train
    return examples.select(rows_of_ids(examples, train, "train"))
