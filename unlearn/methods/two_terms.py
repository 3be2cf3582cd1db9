"""What methods for language models share: a term that makes the model forget, and one that keeps what it retains.

The loss is that of open-unlearning (Dorna et al. 2025, arXiv 2506.12618), gamma * forgotten + alpha * retained, with
the ratio of the two weights as one setting: Adam's steps do not depend on their common scale. Every step sees some
forgotten and some retained examples.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from whence.cache import Task, UsageError
from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import PerReplica

from ..losses import divergence, mean_loss
from ..plan import FORWARD
from ..request import UnlearningRequest
from .method import PairedMethod


@dataclass(frozen=True)
class TwoTerms(PairedMethod):
    """A forgotten term, and `retained_weight` times a retained one.

    A subclass gives the forgotten term; `extra["before"]` in it is what `before_forgotten` computed with the model as
    it was before. A term `by_loss` takes each example's loss by `losses`, which a step computes once for both terms.

    Args:
        steps: of the optimiser.
        forget_batch, retain_batch: examples of each kind in a step.
        optimiser: of the steps.
        retain: the retained term, one of `retains`: "nll", the mean loss per token; "kl", the divergence per token of
            the model's predictions from those of the model before.
    """

    retains: ClassVar[tuple[str, ...]] = ("nll", "kl")
    by_loss: ClassVar[bool] = False

    steps: int = field(default=20, kw_only=True)
    forget_batch: int = field(default=8, kw_only=True)
    retain_batch: int = field(default=8, kw_only=True)
    optimiser: Optimiser = field(default=AdamW(1e-4), kw_only=True)
    retain: str = field(default="nll", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retain not in self.retains:
            raise UsageError(
                f"{self.title} has no retained term {self.retain!r}.", f"Choose among {', '.join(self.retains)}."
            )

    @property
    def retained_weight(self) -> float:
        return float(getattr(self, "weight", 1.0))

    @abstractmethod
    def forgotten(self, request: UnlearningRequest) -> PerReplica:
        """(model, forgotten examples, extra) -> what forgetting descends."""

    def before_forgotten(self, request: UnlearningRequest) -> PerReplica | None:
        """What the forgotten term needs of the model before, on a step's forgotten examples."""

    def retained(self, request: UnlearningRequest) -> PerReplica:
        task = request.task

        def loss(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return mean_loss(task, losses(task, model, batch, extra), batch)

        def apart(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return divergence(task, task.logits(model, batch), extra["before"], batch)

        return apart if self.retain == "kl" else loss

    def before_retained(self, request: UnlearningRequest) -> PerReplica | None:
        """What the retained term needs of the model before, on a step's retained examples."""
        task = request.task
        return (lambda model, batch, extra: task.logits(model, batch)) if self.retain == "kl" else None

    def objective(self, request: UnlearningRequest) -> PerReplica:
        first = min(self.forget_batch, request.pool.sizes[0])
        forgotten, retained, weight = self.forgotten(request), self.retained(request), self.retained_weight
        at_once = self.by_loss and self.retain == "nll" and weight

        def total(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            extra = {**extra, "loss": request.task.loss(model, batch)} if at_once else extra
            gone, kept = ((_part(batch, at), _part(extra, at)) for at in (slice(None, first), slice(first, None)))
            before = [{"before": extra[name]} if name in extra else {} for name in ("forgotten", "retained")]
            loss = forgotten(model, gone[0], gone[1] | before[0])
            return loss + weight * retained(model, kept[0], kept[1] | before[1]) if weight else loss

        return total

    def references(self, request: UnlearningRequest) -> dict[str, Any]:
        """What every step computes with the models before, and the passes that it takes."""
        first = min(self.forget_batch, request.pool.sizes[0])
        kept = min(self.retain_batch, request.pool.sizes[1])
        parts = {
            "forgotten": (self.before_forgotten(request), slice(None, first), first),
            "retained": (self.before_retained(request) if self.retained_weight else None, slice(first, None), kept),
        }
        needed = {name: (run, at) for name, (run, at, _) in parts.items() if run is not None}
        if not needed:
            return {}

        def before(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: run(model, _part(batch, at), _part(extra, at)) for name, (run, at) in needed.items()}

        return {"before": before, "before_passes": FORWARD * sum(parts[name][2] for name in needed)}


def _part(tensors: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """These rows of every tensor that has rows."""
    return {name: tensor[rows] if tensor.ndim else tensor for name, tensor in tensors.items()}


def losses(task: Task, model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Float[Tensor, " b"]:
    """The loss of each example, computed now unless the step has it."""
    return extra["loss"] if "loss" in extra else task.loss(model, batch)
