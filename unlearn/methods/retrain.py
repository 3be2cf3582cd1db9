"""Retraining without the forget set: exact, and what every other method's compute is measured against."""

from dataclasses import dataclass

import numpy as np

from whence.cache import UsageError
from whence.cache.retrain.bank import Bank

from ..plan import Plan
from ..request import UnlearningRequest
from .method import UnlearningMethod


@dataclass(frozen=True)
class Retrain(UnlearningMethod):
    """Train again from scratch on what is kept.

    Args:
        seed: added to every model's seed, so that the result is an independent oracle; 0 starts from the same weights
            in the same order.
    """

    seed: int = 0
    name, title = "retrain", "retrain"

    def plan(self, request: UnlearningRequest) -> Plan:
        if request.build is None:
            raise UsageError(
                "Retraining needs to know how to build an untrained model.",
                "Give the request `build`, a function from a seed to a module.",
            )
        bank = Bank(
            request.build, request.task, request.train, request.train, request.recipe, device=str(request.device)
        )
        masks = np.repeat(request.left[None], len(request.models), axis=0)
        trained = bank.train_replicas(masks, request.replica_seeds + self.seed)
        return Plan((), trained, spent=float(request.retraining))
