"""Forget sets worth testing: random ones say little; coherent ones are where methods fail."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

from whence.cache import DataError, Examples
from whence.cache.errors import near_names

from .datamodels.regression import Regression


def random_set(train: Examples, size: int, seed: int = 0) -> Int64[np.ndarray, " f"]:
    """Ids of `size` random training examples."""
    _check(size, len(train))
    return np.sort(np.random.default_rng(seed).permutation(train.ids)[:size])


def neighbours(
    train: Examples,
    of: int,
    size: int,
    *,
    column: str = "x",
    within: str | None = None,
    features: Float[np.ndarray, "n d"] | None = None,
) -> Int64[np.ndarray, " f"]:
    """Ids of the `size` examples nearest (Euclidean) to the example with id `of`, itself among them.

    features: what distance is measured in; the column's own values unless given. within: a column that must equal
    the example's own (its label, say).
    """
    _check(size, len(train))
    values = np.asarray(train.columns[column] if features is None else features).reshape(len(train), -1)
    row = int(train.rows_of([of])[0])
    distance = np.square(values - values[row]).sum(1)
    if within is not None:
        labels = np.asarray(train.columns[within])
        if (labels == labels[row]).sum() < size:
            raise DataError(
                f"Only {int((labels == labels[row]).sum())} examples share {within} with example {of}.",
                "Ask for fewer neighbours, or for neighbours among all.",
            )
        distance = np.where(labels == labels[row], distance, np.inf)
    return np.sort(train.ids[np.argsort(distance, kind="stable")[:size]])


def principal(
    datamodel: Regression, size: int, component: int = 0, ends: str = "top", *, among: np.ndarray | None = None
) -> Int64[np.ndarray, " f"]:
    """Ids of the training examples that load most on a principal direction of the datamodel's weights (rows:
    training examples): those whose removal moves outputs most, and together. ends: "top", or "both" for half from
    either end. among: ids to choose from; all unless given."""
    rows = np.asarray(datamodel.weights[:]).reshape(len(datamodel.train_ids), -1)
    _check(size, len(rows))
    centred = rows - rows.mean(0)
    gram = centred @ centred.T
    vectors = np.linalg.eigh(gram.astype(np.float64))[1][:, ::-1]
    loading = vectors[:, component] * np.sign(vectors[:, component].sum() or 1.0)
    order = np.argsort(-loading, kind="stable")
    if among is not None:
        order = order[np.isin(datamodel.train_ids[order], among)]
        _check(size, len(order) + 1)
    chosen = order[:size] if ends == "top" else np.r_[order[: size - size // 2], order[len(order) - size // 2 :]]
    return np.sort(datamodel.train_ids[chosen])


def class_slice(train: Examples, label: int, size: int, *, column: str = "y", seed: int = 0) -> Int64[np.ndarray, " f"]:
    """Ids of `size` random examples of one class."""
    members = train.ids[np.asarray(train.columns[column]) == label]
    _check(size, len(members))
    return np.sort(np.random.default_rng(seed).permutation(members)[:size])


def document(train: Examples, title: str | int | Sequence[str | int], column: str = "title") -> Int64[np.ndarray, " f"]:
    """Ids of every piece of one document (or several), by what is known about the examples."""
    titles = {title} if isinstance(title, (str, int)) else set(title)
    if column not in train.about:
        raise DataError(
            f"Nothing called {column!r} is known about these examples.",
            f"Known: {', '.join(train.about) or 'nothing'}.",
        )
    rows = [row for row, value in enumerate(train.about[column]) if value in titles]
    if not rows:
        raise DataError(
            f"No training example has the {column} {', '.join(sorted(map(str, titles)))}.",
            near_names(str(next(iter(titles))), sorted(set(map(str, train.about[column])))),
        )
    return np.sort(train.ids[rows])


def _check(size: int, available: int) -> None:
    if not 0 < size < available:
        raise DataError(
            f"A forget set of {size} of {available} examples is empty or everything.",
            "Ask for at least one and leave at least one.",
        )
