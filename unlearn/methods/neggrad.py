"""NegGrad+ (Kurmanji et al. 2023): descent-ascent with the ascent weighted down."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import PerReplica

from ..plan import mean_loss
from ..request import UnlearningRequest
from .method import PairedMethod


@dataclass(frozen=True)
class NegGradPlus(PairedMethod):
    """Minimise alpha * retained - (1 - alpha) * forgotten loss."""

    alpha: float = 0.95
    steps: int = 40
    forget_batch: int = 32
    retain_batch: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name, title = "neggrad", "NegGrad+"

    def objective(self, request: UnlearningRequest) -> PerReplica:
        task = request.task

        def difference(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            kept = mean_loss(task, model, batch, ~extra["forget"])
            return self.alpha * kept - (1 - self.alpha) * mean_loss(task, model, batch, extra["forget"])

        return difference
