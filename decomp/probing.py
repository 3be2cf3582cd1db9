"""Sparse probing: how much of a labelled distinction a few atoms carry.

Gurnee et al. 2023 (arXiv 2305.01610), in the form that dictionary benchmarks use: rank atoms by the difference of
their mean activation between the classes on training rows, fit a logistic regression on the best few, report
accuracy on held-out rows, beside the same regression on the raw activations.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from whence.cache.display.interval import Interval
from whence.cache.errors import DataError

from .activations import Activations
from .codec import Codec
from .evaluate import table
from .kernels import densify


def probe(
    codec: Codec,
    x: np.ndarray,
    label: np.ndarray,
    train: np.ndarray,
    atoms: Sequence[int] = (1, 5),
    k: int | None = None,
) -> xr.Dataset:
    """Accuracy on the rows where `train` is False, with so many atoms, and with all of the activation.

    x: [n d]; label: [n] of two classes; train: bool [n]. Raises DataError when a side lacks a class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    label, train = np.asarray(label), np.asarray(train, bool)
    classes = np.unique(label)
    if len(classes) != 2 or any(len(np.unique(label[side])) != 2 for side in (train, ~train)):
        raise DataError("A probe needs two classes among training and held-out rows.", "Split them again.")
    code = codec.encode(np.asarray(x, np.float32), k=k)
    dense = np.asarray(densify(code, len(codec)))
    first = label == classes[0]
    gap = np.abs(dense[train & first].mean(axis=0) - dense[train & ~first].mean(axis=0))
    order = np.argsort(-gap, kind="stable")

    def accuracy(features: np.ndarray) -> Interval:
        scaler = StandardScaler().fit(features[train])
        fitted = LogisticRegression(max_iter=1000).fit(scaler.transform(features[train]), label[train])
        return Interval.bootstrap(fitted.predict(scaler.transform(features[~train])) == label[~train])

    rows = {f"atoms_{n}": accuracy(dense[:, order[:n]]) for n in atoms}
    rows["activation"] = accuracy(np.asarray(x, np.float32))
    most = classes[0] if 2 * first[train].sum() >= train.sum() else classes[1]
    rows["majority"] = Interval.bootstrap(label[~train] == most)
    return table(rows, chosen=order[: max(atoms)].tolist())


def probe_documents(
    codec: Codec,
    activations: Activations,
    label: Mapping[int, Any],
    atoms: Sequence[int] = (1, 5),
    k: int | None = None,
    held_out: float = 0.5,
) -> xr.Dataset:
    """Probe a distinction between documents: `probe` on the rows of the labelled ones, split by document.

    Args:
        codec: a dictionary or autoencoder.
        activations: of documents, some of them labelled.
        label: the class of each labelled document, by its id.
        atoms, k: as for `probe`.
        held_out: share of the documents that accuracy is measured on.

    Raises DataError if fewer than two documents are labelled, or a side lacks a class.
    """
    known = activations.select(np.isin(activations.document, list(label)))
    if len(np.unique(known.document)) < 2:
        raise DataError("Fewer than two documents have a class.", "Label documents that were observed, by their ids.")
    train, judged = known.split(held_out)
    rows, marks = train.whole(), judged.whole()
    document = np.concatenate([rows.document, marks.document])
    classes = np.array([label[int(d)] for d in document])
    side = np.arange(len(document)) < len(rows.x)
    found = probe(codec, np.concatenate([rows.x, marks.x]), classes, side, atoms, k)
    return found.assign_attrs(documents=len(np.unique(document)), held_out_documents=len(np.unique(marks.document)))
