"""Retraining without the forget set: exact, and what every other method's compute is measured against."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from whence.cache import UsageError
from whence.cache.retrain.loop import train
from whence.cache.retrain.replicas import Replicas

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
        seeds = request.replica_seeds + self.seed
        fresh = Replicas.of([_built(request.build, int(seed)) for seed in seeds]).to(request.device)
        masks = np.repeat(request.left[None], len(seeds), axis=0)
        trained = train(fresh, request.task, request.train, masks, seeds, request.recipe)
        return Plan((), trained, spent=float(request.retraining))


def _built(build: Callable[[int], nn.Module], seed: int) -> nn.Module:
    """The untrained model of a seed, as a bank builds it: with torch's generator at that seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(seed)
