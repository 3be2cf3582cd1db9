"""Gradient difference (Liu et al. 2022, arXiv 2203.12817; Maini et al. 2024, arXiv 2401.06121): descent on what is
retained, ascent on what is forgotten, which nothing stops."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.replicas import PerReplica

from ..losses import mean_loss
from ..request import UnlearningRequest
from .two_terms import TwoTerms, losses


@dataclass(frozen=True)
class GradDiff(TwoTerms):
    """Minimise the retained term - weight * forgotten loss, which is a mean per token."""

    weight: float = 1.0
    name, title, by_loss = "grad-diff", "GradDiff", True

    @property
    def retained_weight(self) -> float:
        return 1.0

    def forgotten(self, request: UnlearningRequest) -> PerReplica:
        def ascended(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return -self.weight * mean_loss(request.task, losses(request.task, model, batch, extra), batch)

        return ascended
