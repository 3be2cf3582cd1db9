"""SalUn (Fan et al. 2024): random labels on forgotten examples and true ones on retained, moving only the weights
whose forgotten-loss gradient is largest."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.cache import DataError
from whence.cache.retrain.recipe import AdamW, Optimiser

from ..deletion import Deletion
from ..loop import Phase, Plan, logits_table, mean_loss, side_by_side


@dataclass(frozen=True)
class SalUn:
    """share: of the weights that may move. Classification only: a random label needs classes."""

    share: float = 0.5
    steps: int = 40
    forget_batch: int = 32
    retain_batch: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name: str = "SalUn"

    def plan(self, deletion: Deletion) -> Plan:
        task, pool, lanes = deletion.task, deletion.pool, deletion.models
        y = pool.columns.get("y")
        if y is None or y.is_floating_point():
            raise DataError(
                "SalUn relabels forgotten examples at random and needs integer labels `y`.",
                "Use NPO, GradDiff or DMM for a language model.",
            )
        forgotten = torch.as_tensor(pool.rows(0))
        batch = {name: column[forgotten] for name, column in pool.columns.items()}
        extra = {"forget": torch.ones(len(lanes), len(forgotten), dtype=torch.bool)}

        def loss(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return mean_loss(task, model, batch, extra["forget"])

        _, gradient = lanes.gradient(loss, batch, extra, shared=True)
        kept = max(1, round(self.share * gradient.shape[1]))
        threshold = gradient.abs().topk(kept, dim=1).values[:, -1:]
        salient = (gradient.abs() >= threshold).to(gradient.dtype)
        classes = logits_table(deletion, lanes.select([0]), pool.rows(0)[:1]).shape[-1]
        labels = _other_labels(y.long(), classes, deletion.lane_seeds)

        def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            each = F.cross_entropy(task.logits(model, batch), extra["labels"], reduction="none")
            wrong = (each * extra["forget"]).sum() / extra["forget"].sum().clamp(min=1)
            return wrong + mean_loss(task, model, batch, ~extra["forget"])

        draw = side_by_side(pool.rows(0), pool.rows(1), (self.forget_batch, self.retain_batch), self.steps)
        phase = Phase(objective, draw, self.optimiser, tables={"labels": labels}, gradient_mask=salient)
        return Plan((phase,), lanes, float(len(forgotten)))


def _other_labels(y: Tensor, classes: int, seeds: object) -> Tensor:
    """For every lane and row a class other than the true one, drawn by the lane's seed."""
    out = []
    for seed in seeds:  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(int(seed))
        out.append((y + torch.randint(1, max(classes, 2), y.shape, generator=generator)) % classes)
    return torch.stack(out)
