"""The bank in the store: rows are models, a shard is a run of models trained together, masks beside outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Int64

from .entry import Entry
from .errors import CorruptEntry
from .lanes import Lanes
from .layout import ArraySpec
from .progress import say
from .retrained import Retrained, mask_hash
from .store import Store

if TYPE_CHECKING:
    from .bank import Bank, Plan

MODELS_IN_A_SHARD = 64


@dataclass(frozen=True, eq=False)
class StoredOutput:
    """An output of a stored bank, read when it is asked for: `output[models]`."""

    entry: Entry
    name: str

    def __getitem__(self, models: Any) -> np.ndarray:
        if isinstance(models, slice):
            start, stop, stride = models.indices(self.entry.arrays[self.name].shape[0])
            if stride == 1:
                return self.entry.slice(self.name, start, stop)
            models = np.arange(start, stop, stride)
        return self.entry.rows(self.name, models)


def run_in_store(
    bank: "Bank",
    plan: "Plan",
    masks: Bool[np.ndarray, "e n"],
    seeds: Int64[np.ndarray, " e"],
    store: Store,
    about: Mapping[str, Any],
) -> Retrained:
    """Train what the store does not hold yet, shard by shard, and open the bank."""
    inputs = bank.inputs(masks, seeds)
    if store.has("bank", inputs):
        return retrained_from(store.open("bank", inputs))
    hashes = [mask_hash(bank.train.ids, mask) for mask in masks]
    about = {
        **about,
        "train_ids": bank.train.ids,
        "point_ids": bank.points.ids,
        "coords": {"e": list(range(len(masks)))},
    }
    with store.writer(
        "bank", inputs, _specs(bank, masks), shard_rows=min(len(masks), MODELS_IN_A_SHARD), about=about
    ) as writer:
        if not writer.complete and writer.missing < writer.grid.count:
            say(f"resuming: {writer.grid.count - writer.missing} of {writer.grid.count} shards of models are there")
        for shard in writer.todo():
            rows = slice(shard.start, shard.stop)
            parts = [plan.outputs(masks[rows], seeds[rows], chunk) for chunk in plan.chunks(shard.stop - shard.start)]
            outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            digests = np.array([list(bytes.fromhex(h)) for h in hashes[rows]], np.uint8)
            writer.write(shard, {**outputs, "mask": masks[rows], "seed": seeds[rows], "mask_sha256": digests})
        return retrained_from(writer.seal())


def retrained_from(entry: Entry) -> Retrained:
    """A bank that lies in the store, its outputs read when asked for, its masks checked against their hashes.

    Raises CorruptEntry when the entry is no bank, or a mask is not the one whose hash was recorded.
    """
    if entry.kind != "bank":
        raise CorruptEntry(f"{entry.key[:12]} is a {entry.kind}, no bank.", "Give the key of a bank.")
    outputs = {name: StoredOutput(entry, name) for name in entry.arrays if name not in ("mask", "seed", "mask_sha256")}
    retrained = Retrained(
        entry.read("mask"),
        entry.read("seed"),
        np.asarray(entry.about["train_ids"], np.int64),
        np.asarray(entry.about["point_ids"], np.int64),
        outputs,
        {"key": entry.key, **entry.about},
    )
    return retrained.check_hashes([bytes(row).hex() for row in entry.read("mask_sha256")])


def _specs(bank: "Bank", masks: np.ndarray) -> dict[str, ArraySpec]:
    """The arrays of the entry; outputs' shapes are those of an untrained model on one point."""
    from .bank import outputs_of_lanes

    lanes = Lanes.of([bank.build(0)], trainable=None).to(bank.device)
    with torch.random.fork_rng(devices=[]):
        sample = outputs_of_lanes(lanes, bank.task, bank.points.select([0]), bank.keep, bank.width)
    dims = {"logits": ("e", "p", "c"), "weights": ("e", "w")}
    specs = {}
    for name, values in sample.items():
        own = values.shape[1:] if name == "weights" else (len(bank.points), *values.shape[2:])
        named = dims.get(name, ("e", "p", "t")[: 1 + len(own)]) if len(own) < 3 else ("e", "p", "s", "c")
        specs[name] = ArraySpec((len(masks), *own), values.dtype, named)
    return {
        **specs,
        "mask": ArraySpec(masks.shape, "bool", ("e", "n")),
        "seed": ArraySpec((len(masks),), "int64", ("e",)),
        "mask_sha256": ArraySpec((len(masks), 32), "uint8", ("e", "byte")),
    }
