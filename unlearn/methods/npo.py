"""Negative preference optimisation (Zhang et al. 2024, arXiv 2404.05868) and its reference-free form SimNPO (Fan et al.
2024, arXiv 2410.07163): ascent whose gradient fades as the forgotten text becomes unlikely, so that it does not
diverge."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from whence.cache.model.task import TokenTask
from whence.cache.retrain.replicas import PerReplica

from ..plan import FORWARD, Plan, own_table
from ..request import UnlearningRequest
from .method import FORGET
from .two_terms import TwoTerms, losses


@dataclass(frozen=True)
class NPO(TwoTerms):
    """(2/β) E softplus(β log π/π₀) on forgotten examples + weight * retained term; π₀ is the model before, and π the
    probability of a whole example."""

    beta: float = 0.1
    weight: float = 1.0
    name, title, by_loss = "npo", "NPO", True

    def forgotten(self, request: UnlearningRequest) -> PerReplica:
        def loss(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            ratio = extra["loss before"] - losses(request.task, model, batch, extra)  # log π/π₀
            return 2 / self.beta * F.softplus(self.beta * ratio).mean()

        return loss

    def plan(self, request: UnlearningRequest) -> Plan:
        models, rows = request.models, request.pool.rows(FORGET)
        before = own_table(request, models, lambda model, batch, extra: request.task.loss(model, batch), rows)
        tables, others = {"loss before": before}, self.references(request)
        phase = self.phase(request, self.objective(request), tables=tables, **others)
        return Plan((phase,), models, FORWARD * len(rows))


@dataclass(frozen=True)
class SimNPO(TwoTerms):
    """(2/β) E softplus(β mean-token log π + γ) on forgotten examples + weight * retained term.

    Args:
        gamma: the margin; open-unlearning's delta is -gamma/β.
    """

    beta: float = 2.5
    gamma: float = 0.0
    weight: float = 1.0
    name, title, by_loss = "simnpo", "SimNPO", True

    def forgotten(self, request: UnlearningRequest) -> PerReplica:
        task = request.task

        def loss(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            counted = task.labelled(batch)[1] if isinstance(task, TokenTask) else task.positions(batch)
            mean = losses(task, model, batch, extra) / counted.sum(1).clamp(min=1)
            return 2 / self.beta * F.softplus(self.gamma - self.beta * mean).mean()

        return loss
