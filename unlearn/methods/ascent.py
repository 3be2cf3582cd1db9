"""Gradient ascent on the forgotten loss: no target, so no place to stop (the missing-targets problem)."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import PerReplica

from ..plan import mean_loss
from ..request import UnlearningRequest
from .method import FORGET, EpochMethod


@dataclass(frozen=True)
class GradientAscent(EpochMethod):
    """Ascend the forgotten loss for some epochs over the forget set."""

    epochs: int | float = 5.0
    batch_size: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name, title, part = "ascent", "gradient ascent", FORGET

    def objective(self, request: UnlearningRequest) -> PerReplica:
        task = request.task

        def negative(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return -mean_loss(task, model, batch, extra["forget"])

        return negative
