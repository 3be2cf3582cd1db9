"""Matching logits, the second half of Oracle Matching and of Datamodel Matching (Georgiev et al. 2024).

The fine-tuning set is the forget set, `forget_multiplier` times, with `retain_multiplier` |F| retained points drawn
once; the loss is the squared distance of all logits to their targets. Forgotten points alone would drag the function
elsewhere; retained points, whose targets hardly move, pin it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser, Schedule

from ..losses import squared_distance
from ..plan import FORWARD, Phase, Plan
from ..request import UnlearningRequest


@dataclass(frozen=True)
class Matching:
    """How targets are matched.

    Args:
        steps: optimiser steps.
        batch_size: examples per step.
        forget_multiplier: how many times the forget set is in the fine-tuning set.
        retain_multiplier: retained points used, in sizes of the forget set (all of them if there are fewer).
        unlabelled: further points to match, in sizes of the forget set; needs `UnlearningRequest.unlabelled`.
        optimiser, schedule: of the steps.
    """

    steps: int = 80
    batch_size: int = 128
    forget_multiplier: int = 3
    retain_multiplier: int = 20
    unlabelled: int = 0
    optimiser: Optimiser = AdamW(3e-3)
    schedule: Schedule = Schedule("cosine", final=0.1)

    def points(self, forgotten: int, kept: int) -> int:
        """Forgotten and retained points that are matched."""
        return forgotten + min(kept, self.retain_multiplier * forgotten)

    def passes(self, forgotten: int, kept: int) -> float:
        """Example passes of matching without further points: the steps, and a forward pass of every point's own
        outputs."""
        points = self.points(forgotten, kept)
        bag = points + (self.forget_multiplier - 1) * forgotten
        return self.steps * min(self.batch_size, bag) + FORWARD * points

    def rows(self, request: UnlearningRequest) -> np.ndarray:
        """Pool rows used, once each: forgotten, then a fixed draw of retained, then of unlabelled ones."""
        pool = request.pool
        generator = np.random.default_rng(0)
        forgotten = pool.rows(0)
        parts = [forgotten]
        for part, multiplier in ((1, self.retain_multiplier), (2, self.unlabelled)):
            rows = pool.rows(part)
            count = min(len(rows), multiplier * len(forgotten))
            parts.append(np.sort(generator.permutation(rows)[:count]))
        return np.concatenate(parts)

    def plan(
        self, request: UnlearningRequest, rows: np.ndarray, targets: Float[Tensor, "e n ..."], spent: float
    ) -> Plan:
        """Fine-tune every model to its own targets [e, pool rows, ...]."""
        forgotten = request.pool.sizes[0]
        bag = np.concatenate([np.repeat(rows[rows < forgotten], self.forget_multiplier), rows[rows >= forgotten]])
        size, task = min(self.batch_size, len(bag)), request.task

        def draw(generator: np.random.Generator) -> Iterator[np.ndarray]:
            left = np.empty(0, np.int64)
            for _ in range(self.steps):
                while len(left) < size:
                    left = np.concatenate([left, generator.permutation(bag)])
                yield left[:size]
                left = left[size:]

        def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return squared_distance(task, task.logits(model, batch), extra["targets"], batch)

        phase = Phase(objective, draw, self.optimiser, self.schedule, {"targets": targets})
        return Plan((phase,), request.models, spent + FORWARD * len(rows))


def spread(
    table: Float[np.ndarray, "e k ..."], rows: np.ndarray, request: UnlearningRequest
) -> Float[Tensor, "e n ..."]:
    """Values for some pool rows as a table over all of them, where the models are."""
    shape = (table.shape[0], len(request.pool), *table.shape[2:])
    out = torch.zeros(shape, dtype=torch.float32, device=request.device)
    out[:, rows] = torch.tensor(np.array(table, np.float32), device=request.device)
    return out
