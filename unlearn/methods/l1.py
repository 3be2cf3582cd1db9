"""L1-sparse unlearning (Jia et al. 2023): fine-tune on retained data under a penalty on all weights' size that fades
to nothing; sparser models keep less of single examples."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import PerReplica

from ..plan import mean_loss
from ..request import UnlearningRequest
from .method import RETAIN, EpochMethod


@dataclass(frozen=True)
class L1Sparse(EpochMethod):
    """Descend retained loss + penalty.

    Args:
        gamma: weight of |θ|₁ at the start; it falls linearly to 0.
    """

    gamma: float = 5e-4
    epochs: int | float = 4.0
    batch_size: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name, title, part = "l1", "L1-sparse", RETAIN

    def objective(self, request: UnlearningRequest) -> PerReplica:
        task, gamma = request.task, self.gamma

        def penalised(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            size = sum((p.abs().sum() for _, p in nn.Module.named_parameters(model)), start=extra["progress"] * 0)
            return mean_loss(task, model, batch, ~extra["forget"]) + gamma * (1 - extra["progress"]) * size

        return penalised
