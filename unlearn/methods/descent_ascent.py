"""Gradient descent-ascent: a step up on forgotten examples, then a step down on retained ones, in turn."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser

from ..deletion import Deletion
from ..loop import Phase, Plan, mean_loss, side_by_side


@dataclass(frozen=True)
class DescentAscent:
    """Minimise retained minus forgotten loss on batches that hold both, over a number of steps."""

    steps: int = 20
    forget_batch: int = 32
    retain_batch: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name: str = "descent-ascent"

    def plan(self, deletion: Deletion) -> Plan:
        task, pool = deletion.task, deletion.pool

        def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            kept = mean_loss(task, model, batch, ~extra["forget"])
            return kept - mean_loss(task, model, batch, extra["forget"])

        draw = side_by_side(pool.rows(0), pool.rows(1), (self.forget_batch, self.retain_batch), self.steps)
        return Plan((Phase(objective, draw, self.optimiser),), deletion.models)
