"""L1-sparse unlearning (Jia et al. 2023): fine-tune on retained data under a penalty on all weights' size that fades
to nothing; sparser models keep less of single examples."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser

from ..deletion import Deletion
from ..loop import Phase, Plan, batches, mean_loss


@dataclass(frozen=True)
class L1Sparse:
    """gamma: weight of |θ|₁ at the start, falling linearly to 0."""

    gamma: float = 5e-4
    epochs: int | float = 4.0
    batch_size: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name: str = "L1-sparse"

    def plan(self, deletion: Deletion) -> Plan:
        task, gamma = deletion.task, self.gamma

        def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            size = sum((p.abs().sum() for _, p in nn.Module.named_parameters(model)), start=extra["progress"] * 0)
            return mean_loss(task, model, batch, ~extra["forget"]) + gamma * (1 - extra["progress"]) * size

        draw = batches(deletion.pool.rows(1), self.batch_size, self.epochs)
        return Plan((Phase(objective, draw, self.optimiser),), deletion.models)
