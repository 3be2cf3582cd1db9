"""Methods that descend or ascend plain losses: of the forgotten examples, of the retained ones, or of both.

None has a target on the forget set, so nothing says where ascent should stop (the missing-targets problem).
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import PerReplica

from ..losses import mean_loss
from ..request import UnlearningRequest
from .method import FORGET, RETAIN, EpochMethod, PairedMethod


def weighted(request: UnlearningRequest, retained: float, forgotten: float) -> PerReplica:
    """retained * the retained loss - forgotten * the forgotten loss, each a mean per example or per predicted token."""
    task = request.task

    def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
        loss, parts = task.loss(model, batch), ((retained, ~extra["forget"]), (-forgotten, extra["forget"]))
        found = [weight * mean_loss(task, loss, batch, rows) for weight, rows in parts if weight]
        return torch.stack(found).sum()

    return objective


@dataclass(frozen=True)
class FineTune(EpochMethod):
    """Descend the retained loss for some epochs: nothing makes the model forget; forgetting is left to drift."""

    epochs: int | float = 2.0
    batch_size: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name, title, part = "fine-tune", "fine-tune", RETAIN

    def objective(self, request: UnlearningRequest) -> PerReplica:
        return weighted(request, 1.0, 0.0)


@dataclass(frozen=True)
class L1Sparse(EpochMethod):
    """Descend retained loss + penalty (Jia et al. 2023); sparser models keep less of single examples.

    Args:
        gamma: weight of |θ|₁ at the start; it falls linearly to 0.
    """

    gamma: float = 5e-4
    epochs: int | float = 4.0
    batch_size: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name, title, part = "l1", "L1-sparse", RETAIN

    def objective(self, request: UnlearningRequest) -> PerReplica:
        retained, gamma = weighted(request, 1.0, 0.0), self.gamma

        def penalised(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            size = sum((p.abs().sum() for _, p in nn.Module.named_parameters(model)), start=extra["progress"] * 0)
            return retained(model, batch, extra) + gamma * (1 - extra["progress"]) * size

        return penalised


@dataclass(frozen=True)
class GradientAscent(EpochMethod):
    """Ascend the forgotten loss for some epochs over the forget set."""

    epochs: int | float = 5.0
    batch_size: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name, title, part = "ascent", "gradient ascent", FORGET

    def objective(self, request: UnlearningRequest) -> PerReplica:
        return weighted(request, 0.0, 1.0)


class BothLosses(PairedMethod):
    """A method whose every step descends the retained and ascends the forgotten loss."""

    @property
    @abstractmethod
    def weights(self) -> tuple[float, float]:
        """Of the retained and of the forgotten loss."""

    def objective(self, request: UnlearningRequest) -> PerReplica:
        return weighted(request, *self.weights)


@dataclass(frozen=True)
class DescentAscent(BothLosses):
    """Minimise retained minus forgotten loss on batches that have both, over a number of steps."""

    steps: int = 20
    forget_batch: int = 32
    retain_batch: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name, title = "descent-ascent", "descent-ascent"

    @property
    def weights(self) -> tuple[float, float]:
        return 1.0, 1.0


@dataclass(frozen=True)
class NegGradPlus(BothLosses):
    """Minimise alpha * retained - (1 - alpha) * forgotten loss (NegGrad+, Kurmanji et al. 2023)."""

    alpha: float = 0.95
    steps: int = 40
    forget_batch: int = 32
    retain_batch: int = 64
    optimiser: Optimiser = AdamW(1e-3)
    name, title = "neggrad", "NegGrad+"

    @property
    def weights(self) -> tuple[float, float]:
        return self.alpha, 1 - self.alpha
