"""Negative preference optimisation (Zhang et al. 2024) and its reference-free form SimNPO (Fan et al. 2024): ascent
whose gradient fades as the forgotten text becomes unlikely, so that it does not run away."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser

from ..deletion import Deletion
from ..loop import FORWARD, Phase, Plan, mean_loss, side_by_side


@dataclass(frozen=True)
class NPO:
    """(2/β) E softplus(β log π/π₀) on forgotten examples + weight * retained loss; π₀ is the model before."""

    beta: float = 0.1
    weight: float = 1.0
    steps: int = 20
    forget_batch: int = 8
    retain_batch: int = 8
    optimiser: Optimiser = AdamW(1e-4)
    name: str = "NPO"

    def plan(self, deletion: Deletion) -> Plan:
        task, pool, lanes, beta = deletion.task, deletion.pool, deletion.models, self.beta
        rows = torch.as_tensor(pool.rows(0))
        batch = {name: column[rows] for name, column in pool.columns.items()}
        with torch.no_grad():
            before = lanes.apply(lambda model, b, extra: task.loss(model, b), batch, shared=True)
        table = before.new_zeros(len(lanes), len(pool))
        table[:, rows] = before

        def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            ratio = extra["before"] - task.loss(model, batch)  # log π/π₀ of a whole example
            pushed = (2 / beta) * F.softplus(beta * ratio)
            forgotten = extra["forget"].to(pushed.dtype)
            pushed = (pushed * forgotten).sum() / forgotten.sum().clamp(min=1.0)
            return pushed + self.weight * mean_loss(task, model, batch, ~extra["forget"])

        draw = side_by_side(pool.rows(0), pool.rows(1), (self.forget_batch, self.retain_batch), self.steps)
        phase = Phase(objective, draw, self.optimiser, tables={"before": table})
        return Plan((phase,), lanes, FORWARD * len(rows))


@dataclass(frozen=True)
class SimNPO:
    """(2/β) E softplus(β mean-token log π + γ) on forgotten examples + weight * retained loss."""

    beta: float = 2.5
    gamma: float = 0.0
    weight: float = 1.0
    steps: int = 20
    forget_batch: int = 8
    retain_batch: int = 8
    optimiser: Optimiser = AdamW(1e-4)
    name: str = "SimNPO"

    def plan(self, deletion: Deletion) -> Plan:
        task, pool, beta = deletion.task, deletion.pool, self.beta

        def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            per_token = task.loss(model, batch) / task.positions(batch).sum(1).clamp(min=1)
            pushed = (2 / beta) * F.softplus(-beta * per_token + self.gamma)
            forgotten = extra["forget"].to(pushed.dtype)
            pushed = (pushed * forgotten).sum() / forgotten.sum().clamp(min=1.0)
            return pushed + self.weight * mean_loss(task, model, batch, ~extra["forget"])

        draw = side_by_side(pool.rows(0), pool.rows(1), (self.forget_batch, self.retain_batch), self.steps)
        return Plan((Phase(objective, draw, self.optimiser),), deletion.models)
