"""Representation misdirection (RMU, Li et al. 2024): activations of one layer are steered to a random direction on
forgotten text and held where they were on retained text."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whence.cache import ModelError
from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import mode

from ..deletion import Deletion
from ..loop import FORWARD, Phase, Plan, side_by_side


@dataclass(frozen=True)
class RMU:
    """layer: name of the module whose output is steered. coefficient: length of the target on forgotten text, in
    norms of the layer's usual activation. alpha: weight of staying on retained text."""

    layer: str
    coefficient: float = 4.0
    alpha: float = 10.0
    steps: int = 20
    forget_batch: int = 8
    retain_batch: int = 8
    optimiser: Optimiser = AdamW(1e-4)
    seed: int = 0
    name: str = "RMU"

    def plan(self, deletion: Deletion) -> Plan:
        task, pool, lanes = deletion.task, deletion.pool, deletion.models
        layer = self.layer
        if layer not in dict(lanes.template.named_modules()):
            raise ModelError(
                f"The model has no module {layer!r}.",
                f"Its modules begin with {', '.join(list(dict(lanes.template.named_children()))[:6])}.",
            )

        def activation(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            seen: list[Tensor] = []
            hook = model.get_submodule(layer).register_forward_hook(
                lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
            )
            try:
                task.logits(model, batch)
            finally:
                hook.remove()
            return seen[0]

        with mode(lanes, training=False), torch.no_grad():
            before = lanes.apply(activation, pool.columns, shared=True)
        usual = before.norm(dim=-1).mean()
        direction = torch.randn(before.shape[-1], generator=torch.Generator().manual_seed(self.seed))
        target = self.coefficient * usual * direction / direction.norm()

        def objective(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            now = activation(model, batch, extra)
            forgotten = extra["forget"].reshape(-1, *[1] * (now.ndim - 1)).to(now.dtype)
            counted = task.positions(batch).to(now.dtype).reshape(*now.shape[:-1], 1)

            def mean(error: Tensor, weight: Tensor) -> Tensor:
                return (error * weight).mean(-1).sum() / weight.sum().clamp(min=1.0)

            steer = mean((now - target).square(), forgotten * counted)
            stay = mean((now - extra["before"]).square(), (1 - forgotten) * counted)
            return steer + self.alpha * stay

        draw = side_by_side(pool.rows(0), pool.rows(1), (self.forget_batch, self.retain_batch), self.steps)
        phase = Phase(objective, draw, self.optimiser, tables={"before": before})
        return Plan((phase,), lanes, FORWARD * len(pool))
