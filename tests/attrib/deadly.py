"""A task that takes its worker process down, importable by workers."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from whence.cache import LanguageModelling
from whence.cache.model.task import Batch


@dataclass(frozen=True)
class DiesTwice(LanguageModelling):
    """Kills the first worker that samples labels (a fit) and the first that takes the loss (a scoring run) of example
    `at`; never the process `home`. markers: a folder that notes both deaths."""

    home: int = 0
    markers: str = ""
    at: int = 23

    def _strike(self, stage: str, batch: Batch) -> None:
        marker = Path(self.markers, stage)
        if os.getpid() != self.home and not marker.exists() and bool((batch["example_id"] == self.at).any()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self._strike("score", batch)
        return super().loss(model, batch)

    def sampled_loss(self, model: nn.Module, batch: Batch, seed: int) -> Tensor:
        self._strike("fit", batch)
        return super().sampled_loss(model, batch, seed)
