"""The bank in the store: rows are models, a shard is a run of models trained together, masks beside outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Int64

from ..errors import CorruptEntry
from ..jobs.cluster import Cluster
from ..jobs.partitions import run_job
from ..store.entry import Entry
from ..store.layout import ArraySpec, Shard
from ..store.store import Store
from .replica_outputs import outputs_of_lanes
from .replicas import Lanes
from .retrained import Retrained, mask_hash

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
    cluster: str | Cluster = "inline",
    log: str | None = None,
) -> Retrained:
    """Train what the store does not hold yet, shard by shard on whatever cluster, and open the bank."""
    inputs = bank.inputs(masks, seeds)
    if store.has("bank", inputs):
        return retrained_from(store.open("bank", inputs))
    about = {
        **about,
        "train_ids": bank.train.ids,
        "point_ids": bank.points.ids,
        "coords": {"e": list(range(len(masks)))},
    }
    entry = run_job(
        store, "bank", inputs, _specs(bank, masks), _Models(bank, plan, masks, seeds),
        shard_rows=min(len(masks), MODELS_IN_A_SHARD), about=about, cluster=cluster, log=log, desc="bank",
        quiet=plan.quiet,
    )  # fmt: skip
    return retrained_from(entry)


@dataclass(frozen=True, eq=False)
class _Models:
    """A shard's models: trained, measured, and the hashes of their masks."""

    bank: "Bank"
    plan: "Plan"
    masks: np.ndarray
    seeds: np.ndarray

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        masks, seeds = self.masks[shard.rows], self.seeds[shard.rows]
        parts = [self.plan.outputs(masks, seeds, chunk) for chunk in self.plan.chunks(len(shard))]
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        hashes = [mask_hash(self.bank.train.ids, mask) for mask in masks]
        digests = np.array([list(bytes.fromhex(digest)) for digest in hashes], np.uint8)
        return {**outputs, "mask": masks, "seed": seeds, "mask_sha256": digests}


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
