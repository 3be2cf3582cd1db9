"""Oracle Matching (Georgiev et al. 2024): fine-tune to the logits of retrained models. Not deployable, since the
retrained models exist; it bounds what matching can reach."""

from dataclasses import dataclass, field

import numpy as np

from whence.cache import DataError
from whence.cache.retrain.retrained import Retrained

from ..deletion import Deletion
from ..loop import Plan
from .matching import Matching, spread


@dataclass(frozen=True, eq=False)
class OracleMatching:
    """oracles: a bank of them whose points hold forgotten and retained examples.

    one_each: model e matches oracle e, which keeps the ensemble's spread; otherwise all match the oracles' mean,
    which KLoM scores worse for its missing variance.
    """

    oracles: Retrained
    matching: Matching = field(default_factory=Matching)
    one_each: bool = True
    name: str = "oracle matching"

    def plan(self, deletion: Deletion) -> Plan:
        oracles = self.oracles.oracles(np.r_[deletion.forget, deletion.ledger.forgotten])
        if self.one_each and len(oracles) < len(deletion.models):
            raise DataError(
                f"{len(oracles)} oracles cannot be matched one each by {len(deletion.models)} models.",
                "Train as many oracles as models, or match their mean (one_each=False).",
            )
        rows = self.matching.rows(deletion)
        ids = deletion.pool.columns["example_id"][rows].numpy()
        logits = oracles.rows("logits", slice(0, len(deletion.models) if self.one_each else len(oracles)))
        if logits.shape[2:] != _output_shape(deletion, logits):
            raise DataError(
                f"The oracles' logits have shape {list(logits.shape[2:])} a point, the models' differ.",
                "Use a bank of the same model and task.",
            )
        targets = logits[:, oracles.at_points(ids)]
        if not self.one_each:
            targets = np.repeat(targets.mean(0, keepdims=True), len(deletion.models), axis=0)
        return self.matching.plan(deletion, rows, spread(targets, rows, len(deletion.pool)), 0.0)


def _output_shape(deletion: Deletion, like: np.ndarray) -> tuple[int, ...]:
    from ..loop import logits_table

    one = deletion.models.select([0])
    return tuple(logits_table(deletion, one, np.arange(1)).shape[2:])
