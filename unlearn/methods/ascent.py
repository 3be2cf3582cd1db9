"""Gradient ascent on the forgotten loss: no target, so no place to stop (the missing-targets problem)."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser

from ..deletion import Deletion
from ..loop import Phase, Plan, batches, mean_loss


@dataclass(frozen=True)
class GradientAscent:
    """Ascend the forgotten loss for some epochs over the forget set."""

    epochs: int | float = 5.0
    batch_size: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name: str = "gradient ascent"

    def plan(self, deletion: Deletion) -> Plan:
        task = deletion.task

        def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return -mean_loss(task, model, batch, extra["forget"])

        draw = batches(deletion.pool.rows(0), self.batch_size, self.epochs)
        return Plan((Phase(objective, draw, self.optimiser),), deletion.models)
