"""The retrain bank: many copies of a model trained under inclusion masks as one vectorised program.

One set of retrainings serves three uses: linear datamodeling scores (subset masks and measurements), datamodel
regression (subset masks and all logits), and unlearning oracles (masks without the forget set). In the store, rows are
models and a shard is a group of models trained together, so an interrupted bank resumes at the next shard; the masks
and their hashes are stored beside the outputs.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import DataError, ModelError, StoreError, UsageError
from ..jobs.cluster import INLINE, Cluster
from ..jobs.partitions import run_job
from ..jobs.progress import progress
from ..model.batches import check_examples
from ..model.data_checks import check_data
from ..model.examples import Examples
from ..model.fingerprint import model_fingerprint
from ..model.stateless import copied
from ..model.task import Task
from ..model.task_key import task_settings
from ..model.tolerances import tolerance_of
from ..store.keys import key_of
from ..store.store import Store
from .bank_work import BankWork
from .functions import carries, function_key
from .loop import train
from .recipe import Recipe
from .replicas import Replicas
from .retrained import Retrained, retrained_from

# trains one model in the caller's own way: (initial model, its examples, seed) -> trained model
OwnTraining: TypeAlias = Callable[[nn.Module, Examples, int], nn.Module]
KEEP = ("logits", "margins", "losses", "measurements", "weights")
DEFAULT_RECIPE = Recipe()
MODELS_IN_A_SHARD = 64
CHECKED_POINTS = 16
# outputs by which a copy is recognised, the smallest first
RECOGNISED_BY = ("losses", "measurements", "margins", "logits")


@dataclass(frozen=True, eq=False)
class Bank:
    """How to train copies of a model, on which data, and which outputs to keep.

    Args:
        model: a module, whose weights every copy starts from, or `build(seed) -> module`.
        task: loss, logits and measurement.
        train: the examples that masks choose from.
        points: the examples whose outputs are kept (training points, held-out points or both), with unique ids.
        recipe: how a copy is trained, or a function (model, examples, seed) -> trained model of the caller's own, which
            is called for one model at a time.
        keep: some of "logits", "margins" (z_y - logsumexp of the others; one per token for language), "losses",
            "measurements", "weights" (with the buffers of a model that has any: running statistics).
        memory: bytes that the models trained at once may take.
        device: where they are trained.
        version: of a training function of the caller's own, for the key, if what it carries (defaults, closure,
            attributes) cannot be hashed or is not to be.
    """

    model: nn.Module | Callable[[int], nn.Module]
    task: Task
    train: Examples
    points: Examples
    recipe: Recipe | OwnTraining = DEFAULT_RECIPE
    keep: tuple[str, ...] = ("logits", "margins")
    memory: int = 2 << 30
    device: str = "cpu"
    version: str | None = None

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

    @property
    def trainable(self) -> Callable[[str], bool] | None:
        """Which parameters training may change: a recipe those that require a gradient, a function any."""
        return None if isinstance(self.recipe, Recipe) else lambda name: True

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """What is stored of every model: `keep` and, beside weights, the buffers if there are any."""
        stateful = "weights" in self.keep and next(self.build(0).buffers(), None) is not None
        return (*self.keep, "buffers") if stateful else self.keep

    def run(
        self,
        masks: np.ndarray,
        seeds: np.ndarray | None = None,
        store: Store | None = None,
        *,
        cluster: str | Cluster = "inline",
        log: str | None = None,
        quiet: bool = False,
    ) -> Retrained:
        """Train a model under every mask and return their outputs, from the store when they are there.

        Args:
            masks: bool [e n], the training examples that each model is trained on.
            seeds: [e], of initial weights and order of examples, 0..e-1 unless given.
            store: where finished shards are kept.
            cluster: where shards of models are trained (`cache.jobs.partitions`).
            log: a file that gets one line per shard.

        Raises DataError for masks that do not match the data or keep nothing, ModelError when training one mask twice
        gives two models, NumericalError when a model's parameters become non-finite, UsageError for a cluster without
        a store.
        """
        masks, seeds = self._check(masks, seeds)
        if store is not None and store.has("bank", inputs := self._inputs_in(store, masks, seeds)):
            return retrained_from(store.open("bank", inputs))
        self._check_data(self.points)
        work = BankWork(self, masks, seeds, quiet)
        about: dict[str, Any] = {"recipe": str(self.recipe), "why_sequential": work.why_sequential}
        if store is None:
            if cluster not in ("inline", INLINE):
                raise UsageError("A cluster needs a store, where its workers' shards meet.", "Give store=Store().")
            started = time.perf_counter()
            outputs = work.outputs(slice(0, len(masks)))
            about["seconds"] = time.perf_counter() - started
            return Retrained(masks, seeds, self.train.ids, self.points.ids, outputs, about)
        about |= {"train_ids": self.train.ids, "point_ids": self.points.ids, "coords": {"e": list(range(len(masks)))}}
        about["starts"] = self._starts(seeds)
        entry = run_job(
            store, "bank", inputs, work.specs(), work, shard_rows=min(len(masks), MODELS_IN_A_SHARD), about=about,
            cluster=cluster, log=log, desc="bank", quiet=quiet,
        )  # fmt: skip
        return retrained_from(entry)

    @property
    def width(self) -> int:
        """Positions of the longest point."""
        return int(self.points.lengths.max())

    def inputs(self, masks: np.ndarray, seeds: np.ndarray) -> dict[str, Any]:
        """What the outputs are computed from, for the key."""
        return {
            "model": model_fingerprint(self.build(int(seeds[0]))).hex,
            "built_by_seed": not isinstance(self.model, nn.Module),
            "task": task_settings(self.task),
            "train": self.train.fingerprint,
            "points": self.points.fingerprint,
            "recipe": self.recipe if isinstance(self.recipe, Recipe) else function_key(self.recipe, self.version),
            "masks": hashlib.sha256(np.packbits(masks, axis=1).tobytes()).hexdigest(),
            "models": list(masks.shape),
            "seeds": hashlib.sha256(seeds.astype("<i8").tobytes()).hexdigest(),
            "keep": sorted(self.kept),
            **({"other_models": starts} if carries(self.model) and (starts := self._starts(seeds)) else {}),
        }

    def _inputs_in(self, store: Store, masks: np.ndarray, seeds: np.ndarray) -> dict[str, Any]:
        """What stands for the outputs in this store: `inputs`, and the untrained models of all seeds if there is
        another bank whose untrained models differ from these at a later seed only. (A bank that was stored without
        them is read as it is.)"""
        inputs = self.inputs(masks, seeds)
        try:
            about = store.header("bank", key_of("bank", inputs)).about
        except StoreError:
            return inputs
        starts = self._starts(seeds)
        return inputs if about.get("starts") in (None, starts) else {**inputs, "other_models": starts}

    def _starts(self, seeds: np.ndarray) -> str | None:
        """A hash of the untrained models of all seeds but the first; None if there is only one model."""
        others = np.setdiff1d(seeds, seeds[:1])
        if isinstance(self.model, nn.Module) or not len(others):
            return None
        built = [model_fingerprint(self.build(int(seed))).hex for seed in others]
        return hashlib.sha256("".join(built).encode()).hexdigest()

    def train_replicas(self, masks: np.ndarray, seeds: np.ndarray | None = None, *, quiet: bool = True) -> Replicas:
        """The trained models themselves, side by side (all at once; `run` trains as many as fit the memory)."""
        masks, seeds = self._check(masks, seeds)
        self._check_data()
        if isinstance(self.recipe, Recipe):
            replicas = Replicas.of([self.build(int(seed)) for seed in seeds]).to(self.device)
            return train(replicas, self.task, self.train, masks, seeds, self.recipe, quiet=quiet)
        own = isinstance(self.model, nn.Module)  # a function of the caller's may train what it is given
        models = [
            self.recipe(
                copied(self.build(int(seed))) if own else self.build(int(seed)), self.train.select(mask), int(seed)
            )
            for mask, seed in progress(list(zip(masks, seeds)), desc="training", unit="model", quiet=quiet)
        ]
        return Replicas.of(models, self.trainable).to(self.device)

    def models(self, count: int, seed: int = 0, store: Store | None = None, *, quiet: bool = False) -> Replicas:
        """`count` models trained on everything, with seeds from `seed` on, side by side: from the store when they are
        there."""
        seeds = seed + np.arange(count)
        everything = np.ones((count, len(self.train)), bool)
        bank = replace(self, keep=("weights",))
        bank = replace(bank, keep=("weights", "losses")) if "buffers" in bank.kept else bank
        return bank.replicas(bank.run(everything, seeds, store, quiet=quiet))

    def replicas(self, retrained: Retrained) -> Replicas:
        """The trained models of a result of this bank, side by side, from their stored weights and buffers.

        Each copy is run on some of the points and compared with what was stored for it, if any output was.

        Raises DataError for a result without weights, ModelError for one without the model's buffers or of another
        model, and when a copy's outputs are not the stored ones.
        """
        like = Replicas.of([self.build(int(s)) for s in retrained.seeds], self.trainable)
        weights = torch.as_tensor(retrained["weights"])
        if weights.shape != like.flat.shape:
            raise ModelError(
                f"Weights of shape {list(weights.shape)} for models of shape {list(like.flat.shape)}.",
                "Take copies from a result of this very bank.",
            )
        copies = like.with_flat(weights)
        if next(like.template.buffers(), None) is not None:
            if "buffers" not in retrained.outputs:
                raise ModelError(
                    "The weights were stored without the model's buffers (running statistics, for instance).",
                    "Run the bank again: it stores them beside the weights.",
                )
            copies = copies.with_buffer_bytes(retrained["buffers"])
        copies = copies.to(self.device)
        self._check_copies(copies, retrained)
        return copies

    def _check_copies(self, copies: Replicas, retrained: Retrained) -> None:
        name = next((name for name in RECOGNISED_BY if name in retrained.outputs), None)
        if name is None:
            return
        some = self.points.select(np.arange(min(len(self.points), CHECKED_POINTS)))
        found = copies.outputs(self.task, some, [name], self.width)[name].astype(np.float64)
        stored = retrained[name][:, : len(some)].astype(np.float64)
        largest = max(1.0, float(np.nanmax(np.abs(stored), initial=0.0)))
        close = tolerance_of(copies.flat.dtype).output * largest
        same = np.isclose(found, stored, rtol=0, atol=close, equal_nan=True).reshape(len(copies), -1).all(1)
        if not same.all():
            worst = float(np.nanmax(np.abs(found - stored)))
            raise ModelError(
                f"{int((~same).sum())} of {len(copies)} copies do not give the {name} that were stored for them: they "
                f"differ by up to {worst:.3g}.",
                "Something that the model computes with is neither a parameter nor a buffer, or its code has changed: "
                "register it as a buffer, or run the bank again in another store.",
            )

    def _check_data(self, points: Examples | None = None) -> None:
        """Check what is trained on, unless a function of the caller's own does that, and points whose labels count."""
        model = self.build(0)
        if any(isinstance(part, _BatchNorm) and part.running_mean is None for part in model.modules()):
            return  # normalised by whole batches: it is not defined on the one example that is run
        if isinstance(self.recipe, Recipe):
            check_data(self.train, self.task, model)
        if points is not None:
            check_examples(points, "set of points")
            if {"margins", "losses", "measurements"} & set(self.keep):
                check_data(points, self.task, model)

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
            raise DataError(f"{len(seeds)} seeds for {len(masks)} masks.", "Give one seed per mask.")
        whole = seeds.astype(np.int64) if seeds.dtype.kind in "iu" else None
        if whole is None or (whole != seeds).any():
            raise DataError(f"Seeds of type {seeds.dtype} are no numbers of 63 bits.", "Give whole numbers.")
        return masks, whole
