"""Representation misdirection (RMU, Li et al. 2024, arXiv 2403.03218): activations of one layer are steered to a random
direction on forgotten text and stay where they were on retained text."""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from whence.cache import ModelError
from whence.cache.model.names import full_name
from whence.cache.retrain.replicas import PerReplica

from ..losses import squared_distance
from ..request import UnlearningRequest
from .two_terms import TwoTerms


@dataclass(frozen=True)
class RMU(TwoTerms):
    """Squared distance, mean per token and dimension, of a layer's activation to c ‖h₀‖ u on forgotten examples, +
    alpha * retained term; h₀ is the token's activation in the model before, u a random unit vector with entries that
    are not negative.

    The length of the target is that of adaptive RMU (Huu-Tien et al. 2024, arXiv 2408.06223), which fits any layer;
    with `absolute` it is c itself, as in RMU's paper.

    Args:
        layer: name of the module whose output is steered.
        coefficient: c.
        alpha: weight of the retained term.
        seed: of the random direction.
        absolute: c is the length of the target.
        parameters: what is trained: a regular expression that whole names of parameters match. The paper trains the
            MLP weights of the layer and of the two before it.
        retain: also "activations", the squared distance to the layer's activations before.
    """

    layer: str
    coefficient: float = 4.0
    alpha: float = 10.0
    seed: int = 0
    absolute: bool = field(default=False, kw_only=True)
    parameters: str = field(default=".*", kw_only=True)
    retain: str = field(default="activations", kw_only=True)
    retains: ClassVar[tuple[str, ...]] = ("activations", "nll", "kl")
    name, title = "rmu", "RMU"

    @property
    def retained_weight(self) -> float:
        return self.alpha

    def forgotten(self, request: UnlearningRequest) -> PerReplica:
        now = self.activation(request)

        def steered(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            found = now(model, batch, extra)
            drawn = np.random.default_rng(self.seed).random(found.shape[-1])
            unit = torch.as_tensor(drawn / np.linalg.norm(drawn), dtype=found.dtype, device=found.device)
            length = self.coefficient * (1.0 if self.absolute else extra["before"].norm(dim=-1, keepdim=True))
            return squared_distance(request.task, found, length * unit, batch)

        return steered

    def before_forgotten(self, request: UnlearningRequest) -> PerReplica | None:
        return None if self.absolute else self.activation(request)

    def retained(self, request: UnlearningRequest) -> PerReplica:
        if self.retain != "activations":
            return super().retained(request)
        now = self.activation(request)

        def kept(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            return squared_distance(request.task, now(model, batch, extra), extra["before"], batch)

        return kept

    def before_retained(self, request: UnlearningRequest) -> PerReplica | None:
        return self.activation(request) if self.retain == "activations" else super().before_retained(request)

    def activation(self, request: UnlearningRequest) -> PerReplica:
        """The layer's output. Raises ModelError if there is no such layer."""
        layer = full_name(request.models.template, self.layer)

        def output(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
            seen: list[Tensor] = []
            hook = model.get_submodule(layer).register_forward_hook(
                lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
            )
            try:
                request.task.logits(model, batch)
            finally:
                hook.remove()
            return seen[0]

        return output

    def references(self, request: UnlearningRequest) -> dict[str, Any]:
        shapes = request.models.shapes
        trained = {name: bool(re.fullmatch(self.parameters, name)) for name in shapes}
        if not any(trained.values()):
            raise ModelError(
                f"No trained parameter of the model matches {self.parameters!r}.",
                f"For instance: {next(iter(shapes))}.",
            )
        if all(trained.values()):
            return super().references(request)
        moving = torch.cat([torch.full((shape.numel(),), float(trained[name])) for name, shape in shapes.items()])
        return {**super().references(request), "gradient_mask": moving.to(request.models.flat)[None]}
