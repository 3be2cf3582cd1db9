"""The first atoms of a dictionary, taken before there is anything to judge by.

"stream": the first distinct activations in stream order. Two models that read the same text get seeds from the
same places, whatever their values.

"lexicographic": as the code published with ITDA does it: the most frequent distinct activations, ties in the
order of their values. Nearly every count is 1, so the seeds are the rows with the smallest first coordinate,
which differ from model to model; overlap measured between such dictionaries is lower for no reason that lies in
the models.

"none": the first activation is the first atom, as nothing explains it.
"""

import numpy as np

from whence.cache.errors import DataError, check_known

from ..activations import ActivationBatch

SEEDINGS = ("stream", "lexicographic", "none")


def seed_rows(name: str, batch: ActivationBatch, count: int) -> np.ndarray:
    """Row numbers of the seeds among the first rows of a stream.

    Raises UsageError for an unknown name, DataError when the rows hold fewer distinct activations.
    """
    check_known("seeding", name, SEEDINGS)
    if name == "none" or not count:
        return np.zeros(0, int)
    _, first, counts = np.unique(batch.x, axis=0, return_index=True, return_counts=True)
    if len(first) < count:
        raise DataError(
            f"The first {len(batch.x)} activations hold {len(first)} distinct ones, {count} seeds are wanted.",
            "Ask for fewer seeds, or leave out the tokens that repeat (padding, beginning of sequence).",
        )
    if name == "stream":
        return np.sort(first)[:count]
    return first[np.argsort(-counts, kind="stable")][:count]
