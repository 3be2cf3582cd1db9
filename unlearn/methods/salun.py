"""SalUn (Fan et al. 2024): random labels on forgotten examples and true ones on retained, moving only the weights
whose forgotten-loss gradient is largest."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.cache import DataError
from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import PerReplica, mode

from ..losses import mean_loss
from ..plan import Plan, logits_table
from ..request import UnlearningRequest
from .method import FORGET, PairedMethod


@dataclass(frozen=True)
class SalUn(PairedMethod):
    """Classification only: a random label needs classes.

    Args:
        share: of the weights that may move.
    """

    share: float = 0.5
    steps: int = 40
    forget_batch: int = 32
    retain_batch: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name, title = "salun", "SalUn"

    def objective(self, request: UnlearningRequest) -> PerReplica:
        task = request.task

        def relabelled(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            each = F.cross_entropy(task.logits(model, batch), extra["labels"], reduction="none")
            wrong = (each * extra["forget"]).sum() / extra["forget"].sum().clamp(min=1)
            return wrong + mean_loss(task, task.loss(model, batch), batch, ~extra["forget"])

        return relabelled

    def plan(self, request: UnlearningRequest) -> Plan:
        task, pool, models = request.task, request.pool, request.models
        y = pool.columns.get("y")
        if y is None or y.is_floating_point():
            raise DataError(
                "SalUn relabels forgotten examples at random and needs integer labels `y`.",
                "Use NPO, GradDiff or DMM for a language model.",
            )
        rows = pool.rows(FORGET)

        def loss(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return mean_loss(task, task.loss(model, batch), batch)

        with mode(models, training=False):
            _, gradient = models.gradient(loss, pool.batch(rows), shared=True)
        kept = max(1, round(self.share * gradient.shape[1]))
        threshold = gradient.abs().topk(kept, dim=1).values[:, -1:]
        salient = (gradient.abs() >= threshold).to(gradient.dtype)
        classes = logits_table(request, models.select([0]), rows[:1]).shape[-1]
        tables = {"labels": _other_labels(y.long(), classes, request.replica_seeds)}
        phase = self.phase(request, self.objective(request), tables=tables, gradient_mask=salient)
        return Plan((phase,), models, float(len(rows)))


def _other_labels(y: Tensor, classes: int, seeds: np.ndarray) -> Tensor:
    """For every model and row a class other than the true one, drawn by the model's seed."""
    out = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(int(seed))
        out.append((y + torch.randint(1, max(classes, 2), y.shape, generator=generator).to(y.device)) % classes)
    return torch.stack(out)
