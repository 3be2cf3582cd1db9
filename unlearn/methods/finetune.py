"""Fine-tuning on retained data: nothing makes the model forget; forgetting is left to drift."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import PerReplica

from ..plan import mean_loss
from ..request import UnlearningRequest
from .method import RETAIN, EpochMethod


@dataclass(frozen=True)
class FineTune(EpochMethod):
    """Descend the retained loss for some epochs."""

    epochs: int | float = 2.0
    batch_size: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name, title, part = "fine-tune", "fine-tune", RETAIN

    def objective(self, request: UnlearningRequest) -> PerReplica:
        task = request.task

        def retained(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return mean_loss(task, model, batch, ~extra["forget"])

        return retained
