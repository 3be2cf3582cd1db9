"""Gradient descent-ascent: steps that go up on forgotten and down on retained examples."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import PerReplica

from ..plan import mean_loss
from ..request import UnlearningRequest
from .method import PairedMethod


@dataclass(frozen=True)
class DescentAscent(PairedMethod):
    """Minimise retained minus forgotten loss on batches that have both, over a number of steps."""

    steps: int = 20
    forget_batch: int = 32
    retain_batch: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name, title = "descent-ascent", "descent-ascent"

    def objective(self, request: UnlearningRequest) -> PerReplica:
        task = request.task

        def difference(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            kept = mean_loss(task, model, batch, ~extra["forget"])
            return kept - mean_loss(task, model, batch, extra["forget"])

        return difference
