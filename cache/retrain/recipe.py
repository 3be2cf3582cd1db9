"""How a model is trained, as plain values: optimiser, schedule, and which examples every step sees.

Which rows a step sees depends on the model's mask and seed alone, so a model comes out the same whichever other models
are trained beside it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..errors import UsageError
from .optimisers import SGD as SGD
from .optimisers import AdamW as AdamW
from .optimisers import Optimiser as Optimiser

BLOCK = 64  # steps whose rows are computed at once


@dataclass(frozen=True)
class Schedule:
    """The learning rate's factor over training: linear warm-up over a share of the steps, then constant, or a
    linear or cosine descent to `final`."""

    kind: str = "constant"
    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "linear", "cosine") or not 0 <= self.warmup < 1:
            raise UsageError(
                f"No schedule {self.kind!r} with a warm-up over {self.warmup} of the steps.",
                "Use constant, linear or cosine, and a warm-up from 0 to below 1.",
            )

    def factor(self, step: Float[Tensor, "e 1"], total: Float[Tensor, "e 1"]) -> Float[Tensor, "e 1"]:
        """Factor at step 0, 1, .. of `total`."""
        warm = self.warmup * total
        rising = (step + 1) / warm.clamp(min=1.0)
        through = ((step - warm) / (total - warm).clamp(min=1.0)).clamp(0.0, 1.0)
        if self.kind == "constant":
            falling = torch.ones_like(through)
        elif self.kind == "linear":
            falling = 1 - (1 - self.final) * through
        else:
            falling = self.final + (1 - self.final) * 0.5 * (1 + torch.cos(math.pi * through))
        return torch.where(step < warm, rising.clamp(max=1.0), falling)


@dataclass(frozen=True)
class Recipe:
    """Everything that turns initial weights and a mask into a trained model.

    Args:
        epochs: passes over the examples.
        batch_size: examples per step.
        optimiser: with its learning rate.
        schedule: factor of the learning rate over the steps.
        batches: "own": each model sees its own rows in its own order, exactly as if trained alone on them, and no work
            is spent on rows that a mask leaves out; "shared": one order for all models and the mask as a weight in the
            loss, which is faster for convolutions when masks leave out little.
        clip: largest norm of a model's gradient, or None.
    """

    epochs: int = 10
    batch_size: int = 32
    optimiser: Optimiser = SGD()
    schedule: Schedule = Schedule()
    batches: str = "own"
    clip: float | None = None

    def __post_init__(self) -> None:
        whole = self.epochs % 1 == 0 and self.batch_size % 1 == 0
        if not whole or self.epochs < 1 or self.batch_size < 1 or self.batches not in ("own", "shared"):
            raise UsageError(
                f"Cannot train {self.epochs} epochs in {self.batches!r} batches of {self.batch_size}.",
                "Use whole numbers: at least one epoch, batches of at least one example; and own or shared batches.",
            )

    def passes(self, examples: int) -> int:
        """Forward and backward passes of single examples that training on so many takes."""
        return self.epochs * examples


class Step(NamedTuple):
    """Rows that a step sees and their weights in the loss: [e b], or rows [b] when all models share them."""

    rows: Int64[np.ndarray, "..."]
    weights: Float[np.ndarray, "e b"]


def steps_of(
    masks: Bool[np.ndarray, "e n"], seeds: Int64[np.ndarray, " e"], recipe: Recipe
) -> tuple[Iterator[Step], Int64[np.ndarray, " e"]]:
    """Every step of training under these masks, and how many steps each model takes.

    An epoch is a permutation of all n rows drawn from (seed, epoch), of which a model keeps those in its mask:
    models of one seed meet what they share in the same order, which leaves less noise in their differences.
    """
    if recipe.batches == "shared":
        return _shared_steps(masks, recipe)
    return _own_steps(masks, seeds, recipe)


def _permutation(n: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    return np.random.default_rng([abs(seed), int(seed < 0), epoch]).permutation(n)


def _own_steps(masks: np.ndarray, seeds: np.ndarray, recipe: Recipe) -> tuple[Iterator[Step], Int64[np.ndarray, " e"]]:
    size = min(recipe.batch_size, masks.shape[1])
    per_epoch = -(-masks.sum(1) // size)
    totals = (per_epoch * recipe.epochs).astype(np.int64)

    def epochs(e: int) -> Iterator[np.ndarray]:
        """Row numbers [steps, size] of each epoch of one model, -1 where the last batch has no more."""
        for epoch in range(recipe.epochs):
            order = _permutation(masks.shape[1], int(seeds[e]), epoch)
            padded = np.full(per_epoch[e] * size, -1, np.int64)
            padded[: int(masks[e].sum())] = order[masks[e, order]]
            yield padded.reshape(-1, size)

    def steps() -> Iterator[Step]:
        walks = [epochs(e) for e in range(len(masks))]
        left = [np.empty((0, size), np.int64)] * len(masks)
        for start in range(0, int(totals.max()), BLOCK):
            block = np.full((min(BLOCK, int(totals.max()) - start), len(masks), size), -1, np.int64)
            for e, walk in enumerate(walks):
                while len(left[e]) < len(block) and (more := next(walk, None)) is not None:
                    left[e] = np.concatenate([left[e], more])
                taken, left[e] = left[e][: len(block)], left[e][len(block) :]
                block[: len(taken), e] = taken
            weights = (block >= 0).astype(np.float32)
            widest = (block >= 0).any(1).sum(1)  # padding is at the end of a batch
            for rows, weight, width in zip(np.maximum(block, 0), weights, widest):
                yield Step(rows[:, :width], weight[:, :width])

    return steps(), totals


def _shared_steps(masks: np.ndarray, recipe: Recipe) -> tuple[Iterator[Step], Int64[np.ndarray, " e"]]:
    n, size = masks.shape[1], recipe.batch_size
    total = recipe.epochs * -(-n // size)

    def steps() -> Iterator[Step]:
        for epoch in range(recipe.epochs):
            order = _permutation(n, 0, epoch)
            for start in range(0, n, size):
                rows = order[start : start + size]
                yield Step(rows, masks[:, rows].astype(np.float32))

    return steps(), np.full(len(masks), total, np.int64)
