"""The retrain bank: many small models trained under inclusion masks as one program."""

from dataclasses import dataclass

import numpy as np
import tyro

from whence.options import Count, Workers

from ._classifier import ClassifierOptions, forget_ids
from ._shared import Printed, Stored, Tabled


@dataclass(frozen=True)
class Run(ClassifierOptions, Printed):
    """Retrain a small network many times on random subsets, or without a forget set, and keep the outputs.

    An interrupted run resumes at the next shard of models. The same command reads the result the next time.

    Example:

        whence bank run --data digits --network mlp-32 --models 256 --share 0.75 --name digits-subsets
    """

    models: Count = 64
    """How many to train."""
    without: str | None = None
    """Train oracles instead: on everything but this forget set (see `whence unlearn run --help`)."""
    seed: int = 0
    """Seed of the first model; the others follow."""
    keep: str = "logits,margins"
    """Outputs to keep: logits, margins, losses, measurements, weights."""
    name: str | None = None
    """A name for the bank in the store."""
    cluster: Workers = "inline"
    """inline, local:2, dask:ADDRESS or slurm:FILE."""

    def run(self) -> None:
        from whence.cache.jobs.progress import say
        from whence.cache.retrain.retrained import oracle_masks, subset_masks

        bank = self.make_bank(self.keep)
        if self.without is None:
            masks = subset_masks(len(bank.train), self.models, self.share, self.seed)
        else:
            masks = oracle_masks(bank.train.ids, forget_ids(self.without, bank.train), self.models)
        store = self.open_store()
        what = f"networks {self.network}, each trained {self.epochs} epochs" if self.on is None else f"of {self.on}"
        say(
            f"Plan: {self.models} {what} on {int(masks[0].sum())} of {len(bank.train)} examples; {self.keep} at "
            f"{len(bank.points)} points, into {store.root}"
        )
        bank.run(masks, self.seed + np.arange(self.models), store, cluster=self.cluster)
        entry = store.open("bank", bank.inputs(masks, self.seed + np.arange(self.models)))
        if self.name:
            store.name(self.name, entry)
        Info(entry.key, store=self.store, json=self.json).run()
        say(f"bank {self.name or entry.key[:12]} in {store.root}")


@dataclass(frozen=True)
class Info(Stored, Tabled):
    """Show the models, masks, outputs and training of a bank.

    Example:

        whence bank info digits-subsets
    """

    kept = ""
    key: tyro.conf.Positional[str]
    """A key, its beginning, or a name."""

    def run(self) -> None:
        from whence.cache.retrain.retrained import retrained_from

        entry = self.open_store().get(self.key)
        bank = retrained_from(entry)
        kept, hashes = bank.masks.sum(1), bank.hashes
        facts = {
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
        text = "\n".join(f"{name + ':':26} {value}" for name, value in facts.items())
        each = zip(range(len(bank)), bank.seeds, hashes, kept)
        rows = [{"model": n, "seed": int(seed), "kept": int(size), "mask": mask} for n, seed, mask, size in each]
        self.show_table(facts, text, rows)


COMMANDS = {"run": Run, "info": Info}
