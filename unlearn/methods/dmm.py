"""Datamodel Matching (Georgiev et al. 2024): Oracle Matching with the oracle replaced by the datamodel's prediction
for the model itself: its own logits plus the predicted change when the forget set is left out.

Document-level unlearning of a language model is the same method: targets are per-token logits, predicted by an
influence datamodel, matched by full or low-rank (see `unlearn.lora`) fine-tuning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from whence.cache import DataError, Examples, UsageError
from whence.cache.retrain.replicas import Replicas

from ..datamodels.base import Datamodel
from ..datamodels.influence import Influence
from ..deletion import Deletion
from ..loop import Plan, logits_table
from .matching import Matching, spread

# a datamodel of one model's own
PerModel: TypeAlias = Callable[[nn.Module], Datamodel]


@dataclass(frozen=True, eq=False)
class DMM:
    """datamodel: one for all models, or a function from a model to its own. scale: of the predicted change.

    ahead: matching begins at the datamodel's own parameters, so much of its predicted step (times `scale`) from the
    model's, and only has to correct what is not linear in them; for influence, whose prediction is such a step.
    A few steps of Adam alone move every weight alike and disturb what is retained before they reach the targets.

    The retained points are the deletion's: kept training examples, or whatever `Deletion.retain` holds (condensed
    examples, say). Where the datamodel does not know such a point, its target is the model's own output.
    """

    datamodel: Datamodel | PerModel
    matching: Matching = field(default_factory=Matching)
    scale: float = 1.0
    ahead: float = 0.0
    name: str = "DMM"

    def plan(self, deletion: Deletion) -> Plan:
        rows = self.matching.rows(deletion)
        own = logits_table(deletion, deletion.models, rows)
        datamodels = each_model(self.datamodel, deletion)
        delta = _deltas_at_rows(datamodels, deletion, rows)
        expected = tuple(own.shape[2:])
        if tuple(delta.shape[2:]) != expected:
            raise DataError(
                f"The datamodel predicts outputs of shape {list(delta.shape[2:])} a point, the model's are "
                f"{list(expected)}.",
                "Use a datamodel of the same model and task.",
            )
        delta = np.broadcast_to(delta, (len(deletion.models), *delta.shape[1:]))
        targets = own + torch.as_tensor(self.scale) * spread(delta, rows, len(deletion.pool))
        plan = self.matching.plan(deletion, rows, targets, prediction_passes(datamodels, deletion, len(rows)))
        if not self.ahead:
            return plan
        return replace(plan, models=stepped(deletion, datamodels, self.scale * self.ahead))


def each_model(datamodel: Datamodel | PerModel, deletion: Deletion) -> list[Datamodel]:
    """The datamodel of every model, or the one that they share."""
    if isinstance(datamodel, Datamodel):
        return [datamodel]
    return [datamodel(deletion.models.module(e)) for e in range(len(deletion.models))]


def deltas(datamodels: Sequence[Datamodel], deletion: Deletion, points: Examples) -> np.ndarray:
    """Predicted change [1 or e, p, ...] at these points."""
    return np.stack([datamodel.predict_delta(deletion.forget, points) for datamodel in datamodels])


def prediction_passes(datamodels: Sequence[Datamodel], deletion: Deletion, points: int) -> float:
    """Example passes a model of predicting so many points; none where a datamodel only looks them up."""
    count = getattr(datamodels[0], "prediction_passes", None)
    return float(count(len(deletion.forget), points)) if count else 0.0


def stepped(deletion: Deletion, datamodels: Sequence[Datamodel], share: float) -> Replicas:
    """The models after this share of the parameter step that their influence datamodels predict. Raises UsageError
    for a datamodel that predicts outputs only, or a parameter that is not trained."""
    lanes = deletion.models
    flat = lanes.flat.clone()
    views = lanes.views(flat)
    for e in range(len(lanes)):
        datamodel = datamodels[min(e, len(datamodels) - 1)]
        if not isinstance(datamodel, Influence):
            raise UsageError(
                f"A {type(datamodel).__name__} datamodel predicts outputs, not parameters, so nothing can go ahead.",
                "Use an influence datamodel, or ahead=0.",
            )
        step = datamodel.step(deletion.forget)
        if unknown := sorted(set(step) - set(views)):
            raise UsageError(
                f"The predicted step moves {unknown[0]}, which these models do not train.",
                "Unlearn with every weight trainable, or with ahead=0.",
            )
        for name, value in step.items():
            views[name][e] += share * datamodel.scale * value.to(flat.dtype)
    return lanes.with_flat(flat)


def _deltas_at_rows(datamodels: Sequence[Datamodel], deletion: Deletion, rows: np.ndarray) -> np.ndarray:
    """`deltas` at pool rows; a stand-in for retained data that a datamodel by index cannot know is left as is."""
    parts: list[np.ndarray] = []
    sources = [deletion.forgotten, deletion.kept, deletion.unlabelled]
    width = int(max(s.lengths.max() for s in sources if s is not None))
    start = 0
    for part, source in enumerate(sources):
        here = rows[(rows >= start) & (rows < start + len(source or ()))] - start
        start += len(source or ())
        if source is None or not len(here):
            continue
        if part != 1 or deletion.retain is None or not hasattr(datamodels[0], "point_ids"):
            found = deltas(datamodels, deletion, source.select(here))
            if found.ndim == 4 and found.shape[2] < width:  # language: pad to the pool's width
                found = np.pad(found, [(0, 0), (0, 0), (0, width - found.shape[2]), (0, 0)])
        else:
            found = np.zeros((1, len(here), *parts[0].shape[2:]), np.float32)
        parts.append(found)
    lanes = max(len(p) for p in parts)
    return np.concatenate([np.broadcast_to(p, (lanes, *p.shape[1:])) for p in parts], 1)
