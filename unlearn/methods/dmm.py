"""Datamodel Matching (Georgiev et al. 2024): Oracle Matching with the oracle replaced by the datamodel's prediction
for the model itself: its own logits plus the predicted change when the forget set is left out.

Document-level unlearning of a language model is the same method: targets are per-token logits, predicted by an
influence datamodel, matched by full or low-rank (see `unlearn.lora`) fine-tuning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from whence.cache import DataError, Examples, TrainedModel, UsageError
from whence.cache.retrain.replicas import Replicas

from ..datamodels.base import Datamodel, prediction_passes
from ..datamodels.influence import Influence, Removal
from ..plan import Plan, logits_table
from ..request import UnlearningRequest
from .matching import Matching, spread
from .method import UnlearningMethod, not_a_setting

# a datamodel of one model's own
PerModel: TypeAlias = Callable[[TrainedModel], Datamodel]


@dataclass(frozen=True, eq=False)
class DMM(UnlearningMethod):
    """Match the models' own logits plus the predicted change.

    The retained points are the request's: kept training examples, or whatever `UnlearningRequest.retain` contains
    (condensed examples, for instance). If the datamodel does not know such a point, its target is the model's own
    output.

    Args:
        datamodel: one for all models, or a function from a model to its own.
        matching: how the targets are matched.
        scale: of the predicted change.
        ahead: matching begins at the datamodel's own parameters, so much of its predicted step (times `scale`) from
            the model's, and only has to correct what is not linear in them; for influence, whose prediction is such
            a step. A few steps of Adam alone move every weight alike and disturb what is retained before they reach
            the targets.
    """

    datamodel: Datamodel | PerModel = not_a_setting("an object, which the result keeps")
    matching: Matching = field(default_factory=Matching)
    scale: float = 1.0
    ahead: float = 0.0
    name, title = "dmm", "DMM"

    def plan(self, request: UnlearningRequest) -> Plan:
        rows, models = self.matching.rows(request), request.models
        own = logits_table(request, models, rows)
        datamodels = each_model(self.datamodel, request)
        delta = _deltas_at_rows(datamodels, request, rows)
        expected = tuple(own.shape[2:])
        if tuple(delta.shape[2:]) != expected:
            raise DataError(
                f"The datamodel predicts outputs of shape {list(delta.shape[2:])} per point, the model's are "
                f"{list(expected)}.",
                "Use a datamodel of the same model and task.",
            )
        delta = np.broadcast_to(delta, (len(models), *delta.shape[1:]))
        targets = own + self.scale * spread(delta, rows, request)
        spent = prediction_passes(datamodels[0], len(request.forget), len(rows))
        plan = self.matching.plan(request, rows, targets, spent)
        if not self.ahead:
            return plan
        return replace(plan, models=stepped(request, datamodels, self.scale * self.ahead))


def each_model(datamodel: Datamodel | PerModel, request: UnlearningRequest) -> list[Datamodel]:
    """The datamodel of every model, or the one that they share; an influence datamodel for this forget set only, whose
    step is computed once."""
    if isinstance(datamodel, Datamodel):
        found = [datamodel]
    else:
        found = [datamodel(request.trained(e, quiet=True)) for e in range(len(request.models))]
    return [each.removal(request.forget) if isinstance(each, Influence) else each for each in found]


def deltas(datamodels: Sequence[Datamodel], request: UnlearningRequest, points: Examples) -> np.ndarray:
    """Predicted change [1 or e, p, ...] at these points."""
    return np.stack([datamodel.predict_delta(request.forget, points) for datamodel in datamodels])


def stepped(request: UnlearningRequest, datamodels: Sequence[Datamodel], share: float) -> Replicas:
    """The models after this share of the parameter step that their influence datamodels predict. Raises UsageError
    for a datamodel that predicts outputs only, or a parameter that is not trained."""
    models = request.models
    flat = models.flat.clone()
    views = models.views(flat)
    for e in range(len(models)):
        datamodel = datamodels[min(e, len(datamodels) - 1)]
        if not isinstance(datamodel, Removal):
            raise UsageError(
                f"A {type(datamodel).__name__} datamodel predicts outputs, not parameters, so nothing can go ahead.",
                "Use an influence datamodel, or ahead=0.",
            )
        if unknown := sorted(set(datamodel.step) - set(views)):
            raise UsageError(
                f"The predicted step moves {unknown[0]}, which these models do not train.",
                "Unlearn with every weight trainable, or with ahead=0.",
            )
        for name, value in datamodel.step.items():
            views[name][e] += share * datamodel.influence.scale * value.to(flat)
    return models.with_flat(flat)


def _deltas_at_rows(datamodels: Sequence[Datamodel], request: UnlearningRequest, rows: np.ndarray) -> np.ndarray:
    """`deltas` at pool rows; zero at retained points that replace training examples and that a datamodel by index
    cannot know."""
    parts: list[np.ndarray] = []
    sources = [request.forgotten, request.kept, request.unlabelled]
    width = int(max(s.lengths.max() for s in sources if s is not None))
    start = 0
    for part, source in enumerate(sources):
        here = rows[(rows >= start) & (rows < start + len(source or ()))] - start
        start += len(source or ())
        if source is None or not len(here):
            continue
        if part != 1 or request.retain is None or not hasattr(datamodels[0], "point_ids"):
            found = deltas(datamodels, request, source.select(here))
            if found.ndim == 4 and found.shape[2] < width:  # language: pad to the pool's width
                found = np.pad(found, [(0, 0), (0, 0), (0, width - found.shape[2]), (0, 0)])
        else:
            found = np.zeros((1, len(here), *parts[0].shape[2:]), np.float32)
        parts.append(found)
    count = max(len(p) for p in parts)
    return np.concatenate([np.broadcast_to(p, (count, *p.shape[1:])) for p in parts], 1)
