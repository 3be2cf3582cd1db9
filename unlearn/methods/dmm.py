"""Datamodel Matching (Georgiev et al. 2024): Oracle Matching with the oracle replaced by the datamodel's prediction
for the model itself: its own logits plus the predicted change when the forget set is left out.

Document-level unlearning of a language model is the same method: targets are per-token logits, predicted by an
influence datamodel, matched by full or low-rank (see `unlearn.lora`) fine-tuning.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from cache import DataError, Examples

from ..datamodels.base import Datamodel
from ..deletion import Deletion
from ..loop import Plan, logits_table
from .matching import Matching, spread

# a datamodel of one model's own
PerModel: TypeAlias = Callable[[nn.Module], Datamodel]


@dataclass(frozen=True, eq=False)
class DMM:
    """datamodel: one for all models, or a function from a model to its own. scale: of the predicted change.

    The retained points are the deletion's: kept training examples, or whatever `Deletion.retain` holds (condensed
    examples, say). Where the datamodel does not know such a point, its target is the model's own output.
    """

    datamodel: Datamodel | PerModel
    matching: Matching = field(default_factory=Matching)
    scale: float = 1.0
    name: str = "DMM"

    def plan(self, deletion: Deletion) -> Plan:
        rows = self.matching.rows(deletion)
        own = logits_table(deletion, deletion.models, rows)
        delta, spent = _deltas_at_rows(self.datamodel, deletion, rows)
        expected = tuple(own.shape[2:])
        if tuple(delta.shape[2:]) != expected:
            raise DataError(
                f"The datamodel predicts outputs of shape {list(delta.shape[2:])} a point, the model's are "
                f"{list(expected)}.",
                "Use a datamodel of the same model and task.",
            )
        delta = np.broadcast_to(delta, (len(deletion.models), *delta.shape[1:]))
        targets = own + torch.as_tensor(self.scale) * spread(delta, rows, len(deletion.pool))
        return self.matching.plan(deletion, rows, targets, spent)


def deltas(datamodel: Datamodel | PerModel, deletion: Deletion, points: Examples) -> tuple[np.ndarray, float]:
    """Predicted change [1 or e, p, ...] at these points, and the example passes a model that it took."""
    if isinstance(datamodel, Datamodel):
        return datamodel.predict_delta(deletion.forget, points)[None], _passes(datamodel, deletion, points)
    own = [datamodel(deletion.models.module(e)) for e in range(len(deletion.models))]
    found = np.stack([model.predict_delta(deletion.forget, points) for model in own])
    return found, _passes(own[0], deletion, points)


def _passes(datamodel: Datamodel, deletion: Deletion, points: Examples) -> float:
    count = getattr(datamodel, "prediction_passes", None)
    return float(count(len(deletion.forget), len(points))) if count else 0.0


def _deltas_at_rows(datamodel: Datamodel | PerModel, deletion: Deletion, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """The same for pool rows; a stand-in for retained data that a datamodel by index cannot know is left as is."""
    parts: list[np.ndarray] = []
    spent = 0.0
    sources = [deletion.forgotten, deletion.kept, deletion.unlabelled]
    width = int(max(s.lengths.max() for s in sources if s is not None))
    start = 0
    for part, source in enumerate(sources):
        here = rows[(rows >= start) & (rows < start + len(source or ()))] - start
        start += len(source or ())
        if source is None or not len(here):
            continue
        known = part != 1 or deletion.retain is None or not hasattr(datamodel, "point_ids")
        if known:
            found, cost = deltas(datamodel, deletion, source.select(here))
            if found.ndim == 4 and found.shape[2] < width:  # language: pad to the pool's width
                found = np.pad(found, [(0, 0), (0, 0), (0, width - found.shape[2]), (0, 0)])
            spent += cost
        else:
            found = np.zeros((1, len(here), *parts[0].shape[2:]), np.float32)
        parts.append(found)
    lanes = max(len(p) for p in parts)
    return np.concatenate([np.broadcast_to(p, (lanes, *p.shape[1:])) for p in parts], 1), spent
