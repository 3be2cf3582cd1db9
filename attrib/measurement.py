"""An activation as the measurement of an influence query: which training examples built a feature.

    atom = ActivationMeasurement(trained.task, at="blocks.2.mlp.hook_in", readout=decomp.Coefficient(dictionary, 7))
    factors.measuring(atom).score(prompts)                    # change of the atom's mean activation over each prompt

Losses, sampled labels and positions are those of the task it wraps, so factors fitted with that task can be used; only
the measurement differs. An activation does not depend on sites behind its hook point: their gradient is zero.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from whence.cache import DataError, Task
from whence.cache.model.outputs import live_outputs_at


@runtime_checkable
class Readout(Protocol):
    """One number per activation: x [p d] -> [p], differentiable in torch. `settings` identify it in keys."""

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Direction:
    """The projection of an activation, minus the centre if there is one, on a direction [d]."""

    vector: Float[np.ndarray, " d"]
    centre: Float[np.ndarray, " d"] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        parts = [self.vector] if self.centre is None else [self.vector, self.centre]
        return {"direction": hashlib.sha256(b"|".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()}

    def __call__(self, x: Float[Tensor, "p d"]) -> Float[Tensor, " p"]:
        vector = torch.tensor(self.vector).to(x)
        return (x if self.centre is None else x - torch.tensor(self.centre).to(x)) @ vector


@dataclass(frozen=True)
class ActivationMeasurement:
    """A task whose measurement is the mean of a readout over an example's real positions, in the activation's units.

    Args:
        task: whose losses, sampled labels and positions it keeps.
        at: the hook point.
        readout: of all queries, or a mapping from each query's id to its own, so that one pass measures many.

    Its `measurement` raises ModelError for an unknown hook point, DataError for a query without a readout.

    >>> half = ActivationMeasurement(task, at="1", readout=Direction(np.ones(8) / 2))  # a direction of the hidden layer
    >>> half.measurement(model, queries.batch([0, 1])).shape
    torch.Size([2])
    """

    task: Task
    at: str
    readout: Readout | Mapping[int, Readout]

    @property
    def units(self) -> str:
        return "activation"

    @property
    def settings(self) -> dict[str, Any]:
        if isinstance(self.readout, Mapping):
            what: Any = {str(i): dict(each.settings) for i, each in sorted(self.readout.items())}
        else:
            what = dict(self.readout.settings)
        return {**self.task.settings, "measure": {"mean over positions of": what, "at": self.at}}

    def measurement(self, model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, " b"]:
        x = live_outputs_at(model, [self.at], lambda: self.task.logits(model, batch))[self.at]
        x = x[:, None] if x.ndim == 2 else x.flatten(1, -2)
        counted = real_positions(batch, x)
        if not isinstance(self.readout, Mapping):
            return _mean(self.readout, x, counted)
        ids = batch["example_id"].tolist()
        missing = [i for i in ids if i not in self.readout]
        if missing:
            raise DataError(f"Query {missing[0]} has no readout.", "Give a readout for every query's id.")
        return torch.cat([_mean(self.readout[i], x[[n]], counted[[n]]) for n, i in enumerate(ids)])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self.task.loss(model, batch)

    def sampled_loss(self, model: nn.Module, batch: dict[str, Tensor], seed: int) -> Tensor:
        return self.task.sampled_loss(model, batch, seed)

    def positions(self, batch: dict[str, Tensor]) -> Tensor:
        return self.task.positions(batch)

    def logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self.task.logits(model, batch)


def _mean(readout: Readout, x: Float[Tensor, "b s d"], counted: Bool[Tensor, "b s"]) -> Float[Tensor, " b"]:
    values = readout(x[counted])  # may be wider than the activations
    each = values.new_zeros(x.shape[:2]).masked_scatter(counted, values)
    return each.sum(1) / counted.sum(1)


def real_positions(batch: dict[str, Tensor], x: Float[Tensor, "b s d"]) -> Bool[Tensor, "b s"]:
    """Positions that are not padding: those of the attention mask if it has one entry per position of x, else all."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == x.shape[:2]:
        return mask.bool()
    return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
