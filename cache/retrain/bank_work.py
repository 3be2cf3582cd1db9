"""What a bank computes: as many of its models as fit are trained at once, then measured; the first is trained twice."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError
from ..jobs.progress import say
from ..store.layout import ArraySpec, Shard
from .loop import train, weighted_loss
from .recipe import Recipe
from .replicas import Replicas, why_not_stacked
from .retrained import mask_hash

if TYPE_CHECKING:
    from .bank import Bank

MOST_REPLICAS = 256
CHECKED_STEPS = 8  # in which rounding has not grown yet


@dataclass(eq=False)
class BankWork:
    """Trains and measures models: a shard of a job, or any part of the bank; picklable."""

    bank: "Bank"
    masks: np.ndarray
    seeds: np.ndarray
    quiet: bool

    def __post_init__(self) -> None:
        self.checked, self.at_once = False, 1
        own = not isinstance(self.bank.recipe, Recipe)
        self.why_sequential = "the training function is the caller's own" if own else why_sequential(self.bank)
        if self.why_sequential is None:
            self.at_once = replicas_that_fit(self.bank)
        elif not own and not self.quiet:
            say(f"training one model at a time: {self.why_sequential}")

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        """A shard's outputs, masks, seeds, and the hashes of the masks."""
        masks = self.masks[shard.rows]
        hashes = [mask_hash(self.bank.train.ids, mask) for mask in masks]
        digests = np.array([list(bytes.fromhex(digest)) for digest in hashes], np.uint8)
        outputs = self.outputs(slice(shard.start, shard.stop))
        return {**outputs, "mask": masks, "seed": self.seeds[shard.rows], "mask_sha256": digests}

    def outputs(self, models: slice) -> dict[str, np.ndarray]:
        """Outputs of these models, trained as many at once as fit."""
        bounds = [*range(models.start, models.stop, self.at_once), models.stop]
        parts = [self._outputs(slice(*pair)) for pair in pairwise(bounds)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _outputs(self, models: slice) -> dict[str, np.ndarray]:
        bank, masks, seeds = self.bank, self.masks[models], self.seeds[models]
        replicas = bank.train_replicas(masks, seeds, quiet=self.quiet)
        out = replicas.outputs(bank.task, bank.points, bank.kept)
        if not self.checked:
            self._check_deterministic(replicas.flat[:1], masks[0], int(seeds[0]))
            self.checked = True
        return out

    def _check_deterministic(self, trained: Tensor, mask: np.ndarray, seed: int) -> None:
        """Train the first mask twice: the first steps of a recipe, all of a caller's own training."""
        bank = self.bank
        if isinstance(bank.recipe, Recipe):
            replicas = Replicas.of([bank.build(seed), bank.build(seed)]).to(bank.device)
            seeds, masks = np.array([seed, seed]), np.stack([mask, mask])
            groups = [slice(0, 2)] if self.at_once > 1 else [slice(0, 1), slice(1, 2)]
            found = [
                train(
                    replicas.select(g), bank.task, bank.train, masks[g], seeds[g], bank.recipe, most=CHECKED_STEPS
                ).flat
                for g in groups
            ]
            trained, again = torch.cat(found)
        else:
            again = bank.train_replicas(mask[None], np.array([seed])).flat
        differs = float((trained - again).abs().max() / trained.abs().max().clamp(min=1e-12))
        if not differs <= 1e-3:
            raise ModelError(
                f"Training is not deterministic under its seed: mask {mask_hash(bank.train.ids, mask)[:12]} "
                f"trained twice gives weights that differ by {differs:.1%} of the largest.",
                "Use random numbers of the seed only; differences between models would measure noise.",
            )

    def specs(self) -> dict[str, ArraySpec]:
        """The arrays of the entry; outputs' shapes are those of an untrained model on one point."""
        bank, count = self.bank, len(self.masks)
        untrained = Replicas.of([bank.build(0)], bank.trainable).to(bank.device)
        with torch.random.fork_rng(devices=[]):
            sample = untrained.outputs(bank.task, bank.points.select([0]), bank.kept, bank.width)
        dims = {"logits": ("e", "p", "c"), "weights": ("e", "w"), "buffers": ("e", "v")}
        specs = {}
        for name, values in sample.items():
            own = values.shape[1:] if name in ("weights", "buffers") else (len(bank.points), *values.shape[2:])
            named = dims.get(name, ("e", "p", "t")[: 1 + len(own)]) if len(own) < 3 else ("e", "p", "s", "c")
            specs[name] = ArraySpec((count, *own), values.dtype, named)
        return {
            **specs,
            "mask": ArraySpec(self.masks.shape, "bool", ("e", "n")),
            "seed": ArraySpec((count,), "int64", ("e",)),
            "mask_sha256": ArraySpec((count, 32), "uint8", ("e", "byte")),
        }


def why_sequential(bank: "Bank") -> str | None:
    """The reason why this model's copies cannot be stacked, found by looking and then by trying."""
    assert isinstance(bank.recipe, Recipe)
    model = bank.build(0)
    reason = why_not_stacked(model)
    if reason is None:
        replicas = Replicas.of([model, model]).to(bank.device)
        rows = np.zeros((2, 1), np.int64)
        one = bank.train.batch(np.arange(1), device=bank.device, dtype=replicas.flat.dtype)
        batch = {k: v[rows] for k, v in one.items()}
        try:
            replicas.gradient(weighted_loss(bank.task), batch, {"weights": torch.ones(2, 1, device=bank.device)})
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = f"torch.func cannot stack this model ({lines[0]})"
    if reason and bank.recipe.batches == "shared" and "running statistics" in reason:
        raise ModelError(
            f"Shared batches would put left-out examples into batch statistics: {reason}.",
            'Use Recipe(batches="own"), which trains such models one at a time on their own rows.',
        )
    return reason


def replicas_that_fit(bank: "Bank") -> int:
    """Models that fit the memory limit: parameters, gradient and moments before and after a step, and what
    one backward keeps."""
    assert isinstance(bank.recipe, Recipe)
    replicas = Replicas.of([bank.build(0)])
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    rows = np.zeros(min(bank.recipe.batch_size, len(bank.train)), np.int64)
    batch = {k: v[None] for k, v in bank.train.batch(rows, dtype=replicas.flat.dtype).items()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        replicas.gradient(weighted_loss(bank.task), batch, {"weights": torch.ones(1, len(rows))})
    each = 8 * replicas.flat.numel() * replicas.flat.element_size() + 2 * kept
    return int(np.clip(bank.memory // max(each, 1), 1, MOST_REPLICAS))
