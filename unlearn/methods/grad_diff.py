"""GradDiff (Liu et al. 2022) for language models: descend the retained, ascend the forgotten loss per token, with a
weight on forgetting."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser

from ..deletion import Deletion
from ..loop import Phase, Plan, mean_loss, side_by_side


@dataclass(frozen=True)
class GradDiff:
    """Minimise retained - weight * forgotten loss, each a mean per token."""

    weight: float = 1.0
    steps: int = 20
    forget_batch: int = 8
    retain_batch: int = 8
    optimiser: Optimiser = AdamW(1e-4)
    name: str = "GradDiff"

    def plan(self, deletion: Deletion) -> Plan:
        task, pool = deletion.task, deletion.pool

        def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            kept = mean_loss(task, model, batch, ~extra["forget"])
            return kept - self.weight * mean_loss(task, model, batch, extra["forget"])

        draw = side_by_side(pool.rows(0), pool.rows(1), (self.forget_batch, self.retain_batch), self.steps)
        return Plan((Phase(objective, draw, self.optimiser),), deletion.models)
