"""Relative influence: scores divided by how far the training example alone moves the model, so that a few examples
with large gradients do not lead every list (Barshan, Brunet and Dziugaite 2020, RelatIF).

"loss" (l-RelatIF): divided by sqrt(grad L^T (G + damping)^-1 grad L), the root of N times the example's self-influence.
It compares examples that change the model's predictions equally.
"parameters" (theta-RelatIF): divided by |(G + damping)^-1 grad L|, the length of the step that the example causes.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np

from whence.cache import DataError, Examples

from ..curvature import Curvature
from .scores import squared_norms

if TYPE_CHECKING:
    import xarray

Per = Literal["loss", "parameters"]


def relative(
    scores: "xarray.DataArray",
    factors: Curvature,
    train: Examples,
    per: Per = "loss",
) -> "xarray.DataArray":
    """See Factors.relative: scores in nats per unit of the norm; an example with a zero gradient gets 0."""
    if list(scores["train"].values) != list(train.ids):
        raise DataError(
            f"These scores are of {scores.sizes['train']} training examples, not of these {len(train)} in this order.",
            "Give the examples that were scored.",
        )
    squares = squared_norms(factors, train, 1 if per == "loss" else 2)
    norms = np.sqrt(np.maximum(squares, 0))
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    shape = [len(train) if dim == "train" else 1 for dim in scores.dims]
    out = scores * scale.reshape(shape)
    attrs = {**scores.attrs, "units": "nats per unit norm", "relative": per}
    return out.rename("relative_influence").assign_attrs(attrs)
