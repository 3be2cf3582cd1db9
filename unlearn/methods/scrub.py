"""SCRUB (Kurmanji et al. 2023): a student moves away from the teacher's outputs on forgotten examples and stays near
them on retained ones; max epochs first, min epochs after. The optimiser is the student's: a public program builds it
over the frozen teacher, so that no weight changes."""

from dataclasses import dataclass

from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser

from ..losses import divergence, mean_loss
from ..plan import FORWARD, Phase, Plan, batches, logits_table
from ..request import UnlearningRequest
from .method import FORGET, RETAIN, UnlearningMethod


@dataclass(frozen=True)
class Scrub(UnlearningMethod):
    """Alternate away from and towards the teacher.

    Args:
        epochs: over the retained examples.
        max_epochs: so many of them follow an epoch over the forget set.
        alpha, gamma: the loss on retained data is alpha * KL to the teacher + gamma * task loss.
        temperature: of the KL.
    """

    epochs: int = 4
    max_epochs: int = 2
    alpha: float = 0.5
    gamma: float = 1.0
    temperature: float = 4.0
    forget_batch: int = 32
    retain_batch: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name, title = "scrub", "SCRUB"

    def plan(self, request: UnlearningRequest) -> Plan:
        task, pool, t = request.task, request.pool, self.temperature
        teacher = logits_table(request, request.models)

        def apart(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return divergence(task, task.logits(model, batch) / t, extra["teacher"] / t, batch) * t * t

        def away(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return -apart(model, batch, extra)

        def near(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            fit = mean_loss(task, task.loss(model, batch), batch)
            return self.alpha * apart(model, batch, extra) + self.gamma * fit

        phases = []
        for epoch in range(self.epochs):
            if epoch < self.max_epochs:
                draw = batches(pool.rows(FORGET), self.forget_batch)
                phases.append(Phase(away, draw, self.optimiser, tables={"teacher": teacher}))
            draw = batches(pool.rows(RETAIN), self.retain_batch)
            phases.append(Phase(near, draw, self.optimiser, tables={"teacher": teacher}))
        return Plan(tuple(phases), request.models, FORWARD * len(pool))
