"""The retrain bank: many small models trained under inclusion masks as one program."""

import json as json_module
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro


@dataclass(frozen=True)
class Run:
    """Retrain a small network many times on random subsets, or without a forget set, and keep the outputs.

    Interrupt it and run it again: it goes on at the next shard of models. The same command is a read the next time.

    Example:

        whence bank run --data digits --network mlp-32 --models 256 --share 0.75 --name digits-subsets
    """

    data: str = "digits"
    """digits, or an .npz with x_train, y_train, x_test and y_test."""
    network: str = "mlp-32"
    """mlp-32, mlp-64-32 (hidden widths) or conv-8-16 (channels)."""
    models: int = 64
    """How many to train."""
    share: float = 0.75
    """Of the training examples that each random subset keeps."""
    without: str | None = None
    """Train oracles instead: on everything but this forget set (see `whence unlearn run --help`)."""
    seed: int = 0
    """Of the first model; the others follow."""
    epochs: int = 40
    batch: int = 50
    rate: float = 0.02
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """sgd has momentum 0.9."""
    keep: str = "logits,margins"
    """Of logits, margins, losses, measurements, weights."""
    name: str | None = None
    """A name for the bank in the store."""
    cluster: str = "inline"
    """inline, local:2, dask:ADDRESS or slurm:FILE."""
    store: str | None = None
    """The store; $WHENCE_CACHE or your cache folder by default."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from whence.cache import Store
        from whence.cache.jobs.progress import say
        from whence.cache.retrain.retrained import oracle_masks, subset_masks
        from whence.classifiers import make_bank

        from ._classifier import forget_ids

        bank = make_bank(self.data, self.network, self.epochs, self.batch, self.rate, self.optimiser, self.keep)
        if self.without is None:
            masks = subset_masks(len(bank.train), self.models, self.share, self.seed)
        else:
            masks = oracle_masks(bank.train.ids, forget_ids(self.without, bank.train), self.models)
        store = Store(self.store)
        say(
            f"Plan: {self.models} networks {self.network}, each trained {self.epochs} epochs on {int(masks[0].sum())} "
            f"of {len(bank.train)} examples; {self.keep} at {len(bank.points)} points, into {store.root}"
        )
        bank.run(masks, self.seed + np.arange(self.models), store, cluster=self.cluster)
        entry = store.open("bank", bank.inputs(masks, self.seed + np.arange(self.models)))
        if self.name:
            store.name(self.name, entry)
        Info(entry.key, store=self.store, json=self.json).run()
        say(f"bank {self.name or entry.key[:12]} in {store.root}")


@dataclass(frozen=True)
class Info:
    """What a bank holds: models, masks and their hashes, outputs, and how it was trained.

    Example:

        whence bank info digits-subsets
    """

    key: tyro.conf.Positional[str]
    """A key, its beginning, or a name."""
    store: str | None = None
    """The store; $WHENCE_CACHE or your cache folder by default."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from whence.cache import Store
        from whence.cache.retrain.retrained import retrained_from

        entry = Store(self.store).get(self.key)
        bank = retrained_from(entry)
        kept, hashes = bank.masks.sum(1), bank.hashes
        told = {
            "key": entry.key,
            "models": len(bank),
            "training examples": int(bank.masks.shape[1]),
            "kept by each": [int(kept.min()), int(kept.max())],
            "different training sets": len(set(hashes)),
            "first mask": hashes[0],
            "points": len(bank.point_ids),
            "outputs": {name: list(entry.arrays[name].shape) for name in bank.outputs},
            "recipe": bank.about["recipe"],
            "sequential because": bank.about["why_sequential"],
        }
        if self.json:
            print(json_module.dumps(told))
            return
        for name, value in told.items():
            print(f"{name + ':':26} {value}")


COMMANDS = {"run": Run, "info": Info}
