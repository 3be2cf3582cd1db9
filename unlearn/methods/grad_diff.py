"""GradDiff (Liu et al. 2022) for language models: descend the retained, ascend the forgotten loss per token, with a
weight on forgetting."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import PerReplica

from ..plan import mean_loss
from ..request import UnlearningRequest
from .method import PairedMethod


@dataclass(frozen=True)
class GradDiff(PairedMethod):
    """Minimise retained - weight * forgotten loss, each a mean per token."""

    weight: float = 1.0
    steps: int = 20
    forget_batch: int = 8
    retain_batch: int = 8
    optimiser: Optimiser = AdamW(1e-4)
    name, title = "grad-diff", "GradDiff"

    def objective(self, request: UnlearningRequest) -> PerReplica:
        task = request.task

        def difference(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            kept = mean_loss(task, model, batch, ~extra["forget"])
            return kept - self.weight * mean_loss(task, model, batch, extra["forget"])

        return difference
