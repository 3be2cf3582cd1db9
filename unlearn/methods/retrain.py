"""Retraining without the forget set: exact, and what every other method's compute is measured against."""

from dataclasses import dataclass

import numpy as np

from whence.cache import UsageError
from whence.cache.retrain.loop import train
from whence.cache.retrain.replicas import Replicas

from ..deletion import Deletion
from ..loop import Plan


@dataclass(frozen=True)
class Retrain:
    """Train again from scratch on what is kept. seed: added to every model's seed, so that the result is an
    independent oracle; 0 starts from the same weights in the same order."""

    seed: int = 0
    name: str = "retrain"

    def plan(self, deletion: Deletion) -> Plan:
        if deletion.build is None:
            raise UsageError(
                "Retraining needs to know how to build an untrained model.",
                "Give the deletion `build`, a function from a seed to a module.",
            )
        seeds = deletion.lane_seeds + self.seed
        fresh = Replicas.of([deletion.build(int(seed)) for seed in seeds])
        masks = np.repeat(deletion.left[None], len(seeds), axis=0)
        trained = train(fresh, deletion.task, deletion.train, masks, seeds, deletion.recipe)
        return Plan((), trained, spent=float(deletion.retraining))
