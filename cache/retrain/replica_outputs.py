"""What is kept of models that were trained side by side: logits, margins, losses, measurements at given points."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import DataError
from ..model.examples import Examples
from ..model.task import Task, margin
from .replicas import Lanes, mode

POINTS_AT_ONCE = 256


def outputs_of_lanes(
    lanes: Lanes, task: Task, points: Examples, keep: tuple[str, ...], width: int | None = None
) -> dict[str, Float[np.ndarray, "e ..."]]:
    """Outputs of every lane at every point, in evaluation mode: see `Retrained.outputs`. Tokens are padded to
    `width` positions, the longest point's unless given."""
    parts: list[dict[str, Tensor]] = []
    width = width or int(points.lengths.max())
    with mode(lanes, training=False), torch.no_grad():
        for start in range(0, len(points), POINTS_AT_ONCE):
            rows = np.arange(start, min(start + POINTS_AT_ONCE, len(points)))
            batch = points.batch(rows, pad_to=width, device=lanes.flat.device)
            parts.append(lanes.apply(_measured(task, keep), batch, shared=True))
    out = {name: torch.cat([part[name] for part in parts], 1).cpu().numpy() for name in parts[0]}
    if "weights" in keep:
        out["weights"] = lanes.flat.detach().cpu().numpy()
    return out


def _measured(task: Task, keep: tuple[str, ...]) -> Callable[[nn.Module, dict, dict], dict[str, Tensor]]:
    def measured(model: nn.Module, batch: dict[str, Tensor], extra: dict) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        if "logits" in keep or "margins" in keep:
            logits = task.logits(model, batch)
            if "logits" in keep:
                out["logits"] = logits
            if "margins" in keep:
                out["margins"] = margins_of(task, logits, batch)
        if "losses" in keep:
            out["losses"] = task.loss(model, batch)
        if "measurements" in keep:
            out["measurements"] = task.measurement(model, batch)
        return out or {"losses": task.loss(model, batch)}

    return measured


def margins_of(task: Task, logits: Tensor, batch: dict[str, Tensor]) -> Float[Tensor, "b ..."]:
    """z_y - logsumexp of the others: [b] for a label each, [b t] (NaN where uncounted) for next tokens."""
    if hasattr(task, "targets"):
        targets, counted = task.targets(batch)
        return margin(logits[:, :-1], targets).masked_fill(~counted, float("nan"))
    labels = batch.get("y")
    if labels is None or labels.is_floating_point() or logits.ndim != 2:
        raise DataError(
            "Margins need one integer label `y` an example and one row of logits.",
            "Keep logits, losses or measurements instead.",
        )
    return margin(logits, labels.long())
