"""Negative preference optimisation (Zhang et al. 2024, arXiv 2404.05868) and its reference-free form SimNPO (Fan et al.
2024, arXiv 2410.07163): ascent whose gradient fades as the forgotten text becomes unlikely, so that it does not
diverge."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.cache.model.task import TokenTask
from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import PerReplica, mode

from ..plan import FORWARD, ROWS_AT_ONCE, Plan
from ..request import UnlearningRequest
from .method import FORGET
from .two_terms import TwoTerms, losses


@dataclass(frozen=True)
class NPO(TwoTerms):
    """(2/β) E softplus(β log π/π₀) on forgotten examples + weight * retained term; π₀ is the model before, and π the
    probability of a whole example."""

    beta: float = 0.1
    weight: float = 1.0
    steps: int = 20
    forget_batch: int = 8
    retain_batch: int = 8
    optimiser: Optimiser = AdamW(1e-4)
    name, title, by_loss = "npo", "NPO", True

    def forgotten(self, request: UnlearningRequest) -> PerReplica:
        def loss(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            ratio = extra["loss before"] - losses(request.task, model, batch, extra)  # log π/π₀
            return 2 / self.beta * F.softplus(self.beta * ratio).mean()

        return loss

    def plan(self, request: UnlearningRequest) -> Plan:
        pool, models = request.pool, request.models
        rows = pool.rows(FORGET)
        parts = [pool.batch(rows[start : start + ROWS_AT_ONCE]) for start in range(0, len(rows), ROWS_AT_ONCE)]
        with mode(models, training=False), torch.no_grad():
            own = [models.apply(lambda m, b, _: request.task.loss(m, b), part, shared=True) for part in parts]
        table = own[0].new_zeros(len(models), len(pool))
        table[:, rows] = torch.cat(own, 1)
        tables, others = {"loss before": table}, self.references(request)
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
    steps: int = 20
    forget_batch: int = 8
    retain_batch: int = 8
    optimiser: Optimiser = AdamW(1e-4)
    name, title, by_loss = "simnpo", "SimNPO", True

    def forgotten(self, request: UnlearningRequest) -> PerReplica:
        task = request.task

        def loss(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            counted = task.labelled(batch)[1] if isinstance(task, TokenTask) else task.positions(batch)
            mean = losses(task, model, batch, extra) / counted.sum(1).clamp(min=1)
            return 2 / self.beta * F.softplus(self.gamma - self.beta * mean).mean()

        return loss
