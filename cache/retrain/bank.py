"""The retrain bank: many copies of a model trained under inclusion masks as one vectorised program.

One set of retrainings serves three uses: linear datamodeling scores (subset masks and measurements), datamodel
regression (subset masks and all logits), and unlearning oracles (masks without the forget set). Outputs go to
the store in shards of models, so an interrupted bank resumes at the next shard; the hash of every mask stands
in the artefact.
"""

import hashlib
import inspect
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from ..errors import DataError, ModelError, NumericalError, UsageError
from ..jobs.cluster import INLINE, Cluster
from ..jobs.progress import progress, say
from ..model.examples import Examples
from ..model.fingerprint import model_fingerprint
from ..model.task import Task
from .allocator import freed_memory_kept
from .bank_store import run_in_store
from .recipe import Recipe, steps_of
from .replica_outputs import outputs_of_lanes
from .replicas import Lanes, mode, why_not_stacked
from .retrained import Retrained, mask_hash
from .trajectory import Replay

# trains one model in the caller's own way: (initial model, its examples, seed) -> trained model
OwnTraining: TypeAlias = Callable[[nn.Module, Examples, int], nn.Module]
KEEP = ("logits", "margins", "losses", "measurements", "weights")
DEFAULT_RECIPE = Recipe()
MOST_LANES = 256


@dataclass(frozen=True, eq=False)
class Bank:
    """How to train copies of a model, on which data, and which outputs to keep.

    model: a module, whose weights every copy starts from, or `build(seed) -> module`.
    recipe: how a copy is trained, or the caller's own function (model, examples, seed) -> trained model, which
        is called for one model at a time.
    points: the examples whose outputs are kept (training points, held-out points or both), with unique ids.
    keep: some of "logits", "margins" (z_y - logsumexp of the others; one a token for language), "losses",
        "measurements", "weights".
    memory: bytes that the models trained at once may take.
    """

    model: nn.Module | Callable[[int], nn.Module]
    task: Task
    train: Examples
    points: Examples
    recipe: Recipe | OwnTraining = DEFAULT_RECIPE
    keep: tuple[str, ...] = ("logits", "margins")
    memory: int = 2 << 30
    device: str = "cpu"

    def __post_init__(self) -> None:
        unknown = [name for name in self.keep if name not in KEEP]
        if unknown or not self.keep:
            raise UsageError(f"A bank cannot keep {unknown or 'nothing'}.", f"Choose among {', '.join(KEEP)}.")

    def build(self, seed: int) -> nn.Module:
        """The untrained model of this seed."""
        if isinstance(self.model, nn.Module):
            return self.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model(seed)

    def run(
        self,
        masks: np.ndarray,
        seeds: np.ndarray | None = None,
        store: Any = None,
        *,
        cluster: str | Cluster = "inline",
        log: str | None = None,
        quiet: bool = False,
    ) -> Retrained:
        """Train a model under every mask and return their outputs, from the store when they are there.

        masks: bool [e n], the training examples that each model is trained on.
        seeds: [e], of initial weights and order of examples, 0..e-1 unless given.
        cluster, log: where shards of models are trained, and a file that gets a line a shard (`cache.jobs.partitions`).
        Raises DataError for masks that do not match the data or keep nothing, ModelError when training one
        mask twice gives two models, NumericalError when training leaves the numbers.
        """
        masks, seeds = self._check(masks, seeds)
        plan = Plan(self, quiet)
        about: dict[str, Any] = {"recipe": str(self.recipe), "why_sequential": plan.why_sequential}
        if store is None:
            if cluster not in ("inline", INLINE):
                raise UsageError("A cluster needs a store, where its workers' shards meet.", "Give store=Store().")
            started = time.perf_counter()
            parts = [plan.outputs(masks, seeds, s) for s in plan.chunks(len(masks))]
            outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            about["seconds"] = time.perf_counter() - started
            return Retrained(masks, seeds, self.train.ids, self.points.ids, outputs, about)
        return run_in_store(self, plan, masks, seeds, store, about, cluster, log)

    @property
    def width(self) -> int:
        """Positions of the longest point."""
        return int(self.points.lengths.max())

    def inputs(self, masks: np.ndarray, seeds: np.ndarray) -> dict[str, Any]:
        """What the outputs are computed from, for the key."""
        return {
            "model": model_fingerprint(self.build(int(seeds[0]))).hex,
            "built_by_seed": not isinstance(self.model, nn.Module),
            "task": self.task.settings,
            "train": self.train.fingerprint,
            "points": self.points.fingerprint,
            "recipe": self.recipe if isinstance(self.recipe, Recipe) else _source_hash(self.recipe),
            "masks": hashlib.sha256(np.packbits(masks, axis=1).tobytes()).hexdigest(),
            "models": list(masks.shape),
            "seeds": hashlib.sha256(seeds.astype("<i8").tobytes()).hexdigest(),
            "keep": sorted(self.keep),
        }

    def train_lanes(self, masks: np.ndarray, seeds: np.ndarray | None = None, *, quiet: bool = True) -> Lanes:
        """The trained models themselves, side by side (as many as fit; `run` does it in chunks)."""
        masks, seeds = self._check(masks, seeds)
        if isinstance(self.recipe, Recipe):
            lanes = Lanes.of([self.build(int(seed)) for seed in seeds]).to(self.device)
            return train(lanes, self.task, self.train, masks, seeds, self.recipe, quiet=quiet)
        models = [
            self.recipe(self.build(int(seed)), self.train.select(mask), int(seed))
            for mask, seed in progress(list(zip(masks, seeds)), desc="training", unit="model", quiet=quiet)
        ]
        return Lanes.of(models, trainable=lambda name: True).to(self.device)

    def models(self, count: int, seed: int = 0, store: Any = None, *, quiet: bool = False) -> Lanes:
        """`count` models trained on everything, with seeds from `seed` on, side by side: from the store when they are
        there."""
        seeds = seed + np.arange(count)
        everything = np.ones((count, len(self.train)), bool)
        kept = replace(self, keep=("weights",)).run(everything, seeds, store, quiet=quiet)
        like = Lanes.of([self.build(int(s)) for s in seeds])
        return like.with_flat(torch.as_tensor(kept["weights"]))

    def _check(self, masks: np.ndarray, seeds: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        masks = np.asarray(masks)
        if masks.ndim != 2 or masks.shape[1] != len(self.train) or masks.dtype != bool or not len(masks):
            raise DataError(
                f"Masks of shape {list(masks.shape)} and type {masks.dtype} do not match {len(self.train)} "
                "training examples.",
                "Give booleans [models, training examples], in the examples' order.",
            )
        if not masks.any(1).all():
            raise DataError(
                f"The mask of model {int(np.flatnonzero(~masks.any(1))[0])} keeps no example.",
                "Leave out fewer examples.",
            )
        seeds = np.arange(len(masks)) if seeds is None else np.asarray(seeds)
        if seeds.shape != (len(masks),):
            raise DataError(f"{len(seeds)} seeds for {len(masks)} masks.", "Give one seed a mask.")
        return masks, seeds.astype(np.int64)


def train(
    lanes: Lanes,
    task: Task,
    data: Examples,
    masks: Bool[np.ndarray, "e n"],
    seeds: Int64[np.ndarray, " e"],
    recipe: Recipe,
    *,
    quiet: bool = True,
    most: int | None = None,
) -> Lanes:
    """Train every lane under its mask. The loss of a step is the lane's weighted mean of the task's loss, per
    example (per predicted token for language). `most`: stop after so many steps.

    Raises NumericalError when a lane's parameters end up infinite or NaN.
    """
    columns = data.batch(np.arange(len(data)), device=lanes.flat.device)
    steps, totals = steps_of(masks, seeds, recipe)
    total = torch.as_tensor(totals, dtype=lanes.flat.dtype, device=lanes.flat.device)[:, None]
    lanes = lanes.select(slice(None))
    moments = recipe.optimiser.init(lanes.flat)
    loss = weighted_loss(task)
    shared = recipe.batches == "shared"

    def gradient_at(flat: Tensor, batch: dict[str, Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        return lanes.with_flat(flat).gradient(loss, batch, {"weights": weights}, shared=shared)

    gradient_of = Replay(gradient_at) if len(lanes) > 1 else gradient_at
    steps = islice(steps, most)
    count = int(totals.max()) if most is None else min(most, int(totals.max()))
    walk = itertools.islice(steps, count)
    bar = progress(walk, total=count, desc=f"training {len(lanes)} models", unit="step", quiet=quiet)
    with mode(lanes, training=True), seeded(lanes, seeds), freed_memory_kept():
        for number, step in enumerate(bar):
            rows = torch.as_tensor(step.rows, device=lanes.flat.device)
            weights = torch.as_tensor(step.weights, device=lanes.flat.device)
            batch = {name: column[rows] for name, column in columns.items()}
            if len(lanes) == 1 and not shared:  # alone, a lane sees its own rows only, no padding
                kept = weights[0] > 0
                batch = {name: column[:, kept] for name, column in batch.items()}
                weights = weights[:, kept]
            _, gradient = gradient_of(lanes.flat, batch, weights)
            if recipe.clip is not None:
                norms = gradient.norm(dim=1, keepdim=True)
                gradient *= (recipe.clip / norms.clamp(min=1e-12)).clamp(max=1.0)
            alive = weights.sum(1, keepdim=True) > 0
            factor = recipe.schedule.factor(torch.full_like(total, number), total)
            live = None if bool(alive.all()) else alive.to(factor.dtype)
            moments = recipe.optimiser.update(lanes.flat, gradient, moments, factor, live)
    broken = (~torch.isfinite(lanes.flat).all(1)).nonzero().flatten().tolist()
    if broken:
        raise NumericalError(
            f"Training diverged in {len(broken)} of {len(lanes)} models (seed {int(seeds[broken[0]])}).",
            "Lower the learning rate, or clip gradients (Recipe(clip=1.0)).",
        )
    return lanes


def weighted_loss(task: Task) -> Callable[[nn.Module, dict, dict], Tensor]:
    """Σ w · loss / Σ w · positions over a lane's batch, with weights [b] in `extra`."""

    def loss(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
        counted = task.positions(batch).sum(1)
        weights = extra["weights"]
        return (weights * task.loss(model, batch)).sum() / (weights * counted).sum().clamp(min=1e-9)

    return loss


class seeded:
    """Inside, one lane's dropout draws from its own seed; outside, the caller's stream goes on as it was."""

    def __init__(self, lanes: Lanes, seeds: np.ndarray):
        self.seed = int(seeds[0]) if len(lanes) == 1 else None

    def __enter__(self) -> None:
        self.state = torch.random.get_rng_state()
        if self.seed is not None:
            torch.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.random.set_rng_state(self.state)


class Plan:
    """How many models at once, and, where it is one, why."""

    def __init__(self, bank: Bank, quiet: bool):
        self.bank, self.quiet = bank, quiet
        self.checked = False
        if not isinstance(bank.recipe, Recipe):
            self.at_once = 1
            self.why_sequential: str | None = "the training function is the caller's own"
            return
        self.why_sequential = _why_sequential(bank)
        self.at_once = 1 if self.why_sequential else _lanes_that_fit(bank)
        if self.why_sequential and not quiet:
            say(f"training one model at a time: {self.why_sequential}")

    def chunks(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self.at_once):
            yield slice(start, min(start + self.at_once, count))

    def outputs(self, masks: np.ndarray, seeds: np.ndarray, models: slice) -> dict[str, np.ndarray]:
        """Train and measure these models; the first one that is trained is trained twice and compared."""
        bank = self.bank
        lanes = bank.train_lanes(masks[models], seeds[models], quiet=self.quiet)
        out = outputs_of_lanes(lanes, bank.task, bank.points, bank.keep)
        if not self.checked:
            self._check_deterministic(lanes.flat[:1], masks[models][0], int(seeds[models][0]))
            self.checked = True
        return out

    def _check_deterministic(self, trained: Tensor, mask: np.ndarray, seed: int) -> None:
        """Train one mask twice: the first steps of a recipe (where rounding has not grown yet), all of a
        caller's own training."""
        bank = self.bank
        if isinstance(bank.recipe, Recipe):
            lanes = Lanes.of([bank.build(seed), bank.build(seed)]).to(bank.device)
            seeds, masks = np.array([seed, seed]), np.stack([mask, mask])
            groups = [slice(0, 2)] if self.at_once > 1 else [slice(0, 1), slice(1, 2)]
            trained, again = torch.cat(
                [
                    train(lanes.select(g), bank.task, bank.train, masks[g], seeds[g], bank.recipe, most=8).flat
                    for g in groups
                ]
            )
        else:
            again = bank.train_lanes(mask[None], np.array([seed])).flat
        differs = float((trained - again).abs().max() / trained.abs().max().clamp(min=1e-12))
        if not differs <= 1e-3:
            raise ModelError(
                f"Training is not deterministic under its seed: mask {mask_hash(bank.train.ids, mask)[:12]} "
                f"trained twice gives weights that differ by {differs:.1%} of the largest.",
                "Draw every random number from the seed; differences between models would measure noise.",
            )


def _why_sequential(bank: Bank) -> str | None:
    """The reason why this model's copies cannot be stacked, found by looking and then by trying."""
    assert isinstance(bank.recipe, Recipe)
    model = bank.build(0)
    reason = why_not_stacked(model)
    if reason is None:
        lanes = Lanes.of([model, model]).to(bank.device)
        rows = np.zeros((2, 1), np.int64)
        batch = {k: v[rows] for k, v in bank.train.batch(np.arange(1), device=bank.device).items()}
        try:
            lanes.gradient(weighted_loss(bank.task), batch, {"weights": torch.ones(2, 1, device=bank.device)})
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = f"torch.func cannot stack this model ({lines[0]})"
    if reason and bank.recipe.batches == "shared" and "running statistics" in reason:
        raise ModelError(
            f"Shared batches would put left-out examples into batch statistics: {reason}.",
            'Use Recipe(batches="own"), which trains such models one at a time on their own rows.',
        )
    return reason


def _lanes_that_fit(bank: Bank) -> int:
    """Models that fit the memory limit: parameters, gradient and moments, and what one backward keeps."""
    assert isinstance(bank.recipe, Recipe)
    lanes = Lanes.of([bank.build(0)])
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    rows = np.zeros(min(bank.recipe.batch_size, len(bank.train)), np.int64)
    batch = {k: v[None] for k, v in bank.train.batch(rows).items()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        lanes.gradient(weighted_loss(bank.task), batch, {"weights": torch.ones(1, len(rows))})
    each = 6 * lanes.flat.numel() * lanes.flat.element_size() + 2 * kept
    return int(np.clip(bank.memory // max(each, 1), 1, MOST_LANES))


def _source_hash(function: Callable) -> str:
    """A name for a caller's training function that changes with its code."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = repr(getattr(function, "__qualname__", type(function).__name__))
    return hashlib.sha256(text.encode()).hexdigest()
