"""UNDIAL (Dong et al. 2024, arXiv 2402.10052): self-distillation to the model's own predictions with the forgotten
token's logit lowered. The target is a fixed distribution, so that descent converges, unlike ascent."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from whence.cache import UsageError
from whence.cache.model.task import TokenTask
from whence.cache.retrain.replicas import PerReplica

from ..request import UnlearningRequest
from .two_terms import TwoTerms


@dataclass(frozen=True)
class UNDIAL(TwoTerms):
    """Cross-entropy to softmax(z₀ - β 1_y) on forgotten examples + weight * retained term; z₀ are the logits of the
    model before, y the forgotten token.

    Args:
        beta: how far the logit of a forgotten token is lowered, in nats.
        weight: of the retained term; 0 in the paper.
    """

    beta: float = 10.0
    weight: float = 0.0
    name, title = "undial", "UNDIAL"

    def forgotten(self, request: UnlearningRequest) -> PerReplica:
        task = tokens_of(request)

        def distilled(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            labels, counted = task.labelled(batch)
            before = extra["before"]
            lowered = before - self.beta * F.one_hot(labels, before.shape[-1]).to(before.dtype)
            each = -(F.softmax(lowered, -1) * F.log_softmax(task.predicting(model, batch), -1)).sum(-1)
            return (each * counted).sum() / counted.sum().clamp(min=1)

        return distilled

    def before_forgotten(self, request: UnlearningRequest) -> PerReplica:
        task = tokens_of(request)
        return lambda model, batch, extra: task.predicting(model, batch)


def tokens_of(request: UnlearningRequest) -> TokenTask:
    """The request's task. Raises UsageError if it predicts no tokens."""
    if not isinstance(request.task, TokenTask):
        raise UsageError(
            f"UNDIAL lowers the logits of tokens, and {type(request.task).__name__} predicts none.",
            "Use SCRUB, descent-ascent or DMM for a classifier.",
        )
    return request.task
