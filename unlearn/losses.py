"""Losses that several methods are made of: means over what a task counts, the predicted tokens or the examples."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from whence.cache import Task


def counted_mean(task: Task, each: Float[Tensor, "b ..."], batch: dict[str, Tensor]) -> Tensor:
    """Mean over counted positions of values that are there at every position; 0 if none is counted."""
    counted = task.positions(batch).to(each.dtype).reshape(each.shape)
    return (each * counted).sum() / counted.sum().clamp(min=1.0)


def mean_loss(
    task: Task, loss: Float[Tensor, " b"], batch: dict[str, Tensor], weights: Shaped[Tensor, " b"] | None = None
) -> Tensor:
    """Mean of the examples' losses in nats, per predicted token (per example for classification); 0 if none counts.

    weights: of the examples, 1 by default.
    """
    weights = torch.ones_like(loss) if weights is None else weights.to(loss.dtype)
    counted = task.positions(batch).sum(1)
    return (weights * loss).sum() / (weights * counted).sum().clamp(min=1.0)


def squared_distance(
    task: Task, first: Float[Tensor, "b ... d"], second: Float[Tensor, "... d"], batch: dict[str, Tensor]
) -> Tensor:
    """Mean over dimensions and over counted positions."""
    return counted_mean(task, (first - second).square().mean(-1), batch)


def divergence(
    task: Task, logits: Float[Tensor, "b ... c"], before: Float[Tensor, "b ... c"], batch: dict[str, Tensor]
) -> Tensor:
    """KL(before ‖ now) of predictions in nats, mean per predicted token (per example for classification)."""
    then, now = F.log_softmax(before, -1), F.log_softmax(logits, -1)
    return counted_mean(task, (then.exp() * (then - now)).sum(-1), batch)
