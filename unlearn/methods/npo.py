"""Negative preference optimisation (Zhang et al. 2024) and its reference-free form SimNPO (Fan et al. 2024): ascent
whose gradient fades as the forgotten text becomes unlikely, so that it does not diverge."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.cache import Task
from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import PerReplica, mode

from ..plan import FORWARD, Plan, mean_loss
from ..request import UnlearningRequest
from .method import FORGET, PairedMethod

# (loss of each example [b], batch, extra) -> argument of the softplus [b]
Ratio = Callable[[Tensor, dict[str, Tensor], dict[str, Tensor]], Tensor]


def preference(task: Task, beta: float, weight: float, ratio: Ratio) -> PerReplica:
    """(2/β) E softplus(ratio) on forgotten examples + weight * retained loss."""

    def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
        pushed = (2 / beta) * F.softplus(ratio(task.loss(model, batch), batch, extra))
        forgotten = extra["forget"].to(pushed.dtype)
        pushed = (pushed * forgotten).sum() / forgotten.sum().clamp(min=1.0)
        return pushed + weight * mean_loss(task, model, batch, ~extra["forget"])

    return objective


@dataclass(frozen=True)
class NPO(PairedMethod):
    """(2/β) E softplus(β log π/π₀) on forgotten examples + weight * retained loss; π₀ is the model before."""

    beta: float = 0.1
    weight: float = 1.0
    steps: int = 20
    forget_batch: int = 8
    retain_batch: int = 8
    optimiser: Optimiser = AdamW(1e-4)
    name, title = "npo", "NPO"

    def objective(self, request: UnlearningRequest) -> PerReplica:
        def ratio(loss: Tensor, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return self.beta * (extra["before"] - loss)  # β log π/π₀ of a whole example

        return preference(request.task, self.beta, self.weight, ratio)

    def plan(self, request: UnlearningRequest) -> Plan:
        pool, models = request.pool, request.models
        rows = pool.rows(FORGET)
        with mode(models, training=False), torch.no_grad():
            before = models.apply(lambda m, b, extra: request.task.loss(m, b), pool.batch(rows), shared=True)
        table = before.new_zeros(len(models), len(pool))
        table[:, rows] = before
        phase = self.phase(request, self.objective(request), tables={"before": table})
        return Plan((phase,), models, FORWARD * len(rows))


@dataclass(frozen=True)
class SimNPO(PairedMethod):
    """(2/β) E softplus(β mean-token log π + γ) on forgotten examples + weight * retained loss."""

    beta: float = 2.5
    gamma: float = 0.0
    weight: float = 1.0
    steps: int = 20
    forget_batch: int = 8
    retain_batch: int = 8
    optimiser: Optimiser = AdamW(1e-4)
    name, title = "simnpo", "SimNPO"

    def objective(self, request: UnlearningRequest) -> PerReplica:
        task = request.task

        def ratio(loss: Tensor, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return self.gamma - self.beta * loss / task.positions(batch).sum(1).clamp(min=1)

        return preference(task, self.beta, self.weight, ratio)
