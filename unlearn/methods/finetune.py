"""Fine-tuning on retained data: nothing asks the model to forget; forgetting is left to drift."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser

from ..deletion import Deletion
from ..loop import Phase, Plan, batches, mean_loss


@dataclass(frozen=True)
class FineTune:
    """Descend the retained loss for some epochs."""

    epochs: int | float = 2.0
    batch_size: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name: str = "fine-tune"

    def plan(self, deletion: Deletion) -> Plan:
        task = deletion.task

        def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return mean_loss(task, model, batch, ~extra["forget"])

        draw = batches(deletion.pool.rows(1), self.batch_size, self.epochs)
        return Plan((Phase(objective, draw, self.optimiser),), deletion.models)
