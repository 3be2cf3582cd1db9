"""NegGrad+ (Kurmanji et al. 2023): descent-ascent with the ascent weighted down."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser

from ..deletion import Deletion
from ..loop import Phase, Plan, mean_loss, side_by_side


@dataclass(frozen=True)
class NegGradPlus:
    """Minimise alpha * retained - (1 - alpha) * forgotten loss."""

    alpha: float = 0.95
    steps: int = 40
    forget_batch: int = 32
    retain_batch: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name: str = "NegGrad+"

    def plan(self, deletion: Deletion) -> Plan:
        task, pool, alpha = deletion.task, deletion.pool, self.alpha

        def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            kept = mean_loss(task, model, batch, ~extra["forget"])
            return alpha * kept - (1 - alpha) * mean_loss(task, model, batch, extra["forget"])

        draw = side_by_side(pool.rows(0), pool.rows(1), (self.forget_batch, self.retain_batch), self.steps)
        return Plan((Phase(objective, draw, self.optimiser),), deletion.models)
