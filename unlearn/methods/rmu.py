"""Representation misdirection (RMU, Li et al. 2024): activations of one layer are steered to a random direction on
forgotten text and stay where they were on retained text."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whence.cache import ModelError
from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import PerReplica, mode

from ..plan import FORWARD, Plan
from ..request import UnlearningRequest
from .method import PairedMethod


@dataclass(frozen=True)
class RMU(PairedMethod):
    """Steer the activations of a layer.

    Args:
        layer: name of the module whose output is steered.
        coefficient: length of the target on forgotten text, in norms of the layer's usual activation.
        alpha: weight of the activations on retained text.
        seed: of the random direction.
    """

    layer: str
    coefficient: float = 4.0
    alpha: float = 10.0
    steps: int = 20
    forget_batch: int = 8
    retain_batch: int = 8
    optimiser: Optimiser = AdamW(1e-4)
    seed: int = 0
    name, title = "rmu", "RMU"

    def objective(self, request: UnlearningRequest) -> PerReplica:
        task = request.task

        def steered(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            now, before = self.activation(request, model, batch), extra["before"]
            forgotten = extra["forget"].reshape(-1, *[1] * (now.ndim - 1)).to(now.dtype)
            counted = task.positions(batch).to(now.dtype).reshape(*now.shape[:-1], 1)

            def mean(error: Tensor, weight: Tensor) -> Tensor:
                return (error * weight).mean(-1).sum() / weight.sum().clamp(min=1.0)

            steer = mean((now - extra["target"]).square(), forgotten * counted)
            return steer + self.alpha * mean((now - before).square(), (1 - forgotten) * counted)

        return steered

    def activation(self, request: UnlearningRequest, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        seen: list[Tensor] = []
        hook = model.get_submodule(self.layer).register_forward_hook(
            lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        try:
            request.task.logits(model, batch)
        finally:
            hook.remove()
        return seen[0]

    def plan(self, request: UnlearningRequest) -> Plan:
        models, pool = request.models, request.pool
        if self.layer not in dict(models.template.named_modules()):
            raise ModelError(
                f"The model has no module {self.layer!r}.",
                f"Its modules begin with {', '.join(list(dict(models.template.named_children()))[:6])}.",
            )
        with mode(models, training=False), torch.no_grad():
            before = models.apply(lambda m, b, extra: self.activation(request, m, b), pool.columns, shared=True)
        direction = torch.randn(before.shape[-1], generator=torch.Generator().manual_seed(self.seed)).to(before)
        target = self.coefficient * before.norm(dim=-1).mean() * direction / direction.norm()
        tables = {"before": before, "target": target.expand(len(models), len(pool), 1, -1)}
        if before.ndim == 3:  # no axis of positions
            tables["target"] = tables["target"][:, :, 0]
        phase = self.phase(request, self.objective(request), tables=tables)
        return Plan((phase,), models, FORWARD * len(pool))
