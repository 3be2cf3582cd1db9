"""Oracle Matching (Georgiev et al. 2024): fine-tune to the logits of retrained models. Not deployable, since the
retrained models exist; it bounds what matching can reach."""

from dataclasses import dataclass, field

import numpy as np

from whence.cache import DataError
from whence.cache.model.bridge import to_numpy
from whence.cache.retrain.retrained import Retrained

from ..plan import Plan, logits_table
from ..request import UnlearningRequest
from .matching import Matching, spread
from .method import UnlearningMethod, not_a_setting


@dataclass(frozen=True, eq=False)
class OracleMatching(UnlearningMethod):
    """Match retrained models.

    Args:
        oracles: a bank of them whose points contain forgotten and retained examples.
        matching: how their logits are matched.
        one_each: model e matches oracle e, which keeps the ensemble's spread; otherwise all match the oracles' mean,
            which KLoM scores worse for its missing variance.
    """

    oracles: Retrained = not_a_setting("an object, which the result keeps")
    matching: Matching = field(default_factory=Matching)
    one_each: bool = True
    name, title = "oracle-matching", "oracle matching"

    def plan(self, request: UnlearningRequest) -> Plan:
        oracles = self.oracles.oracles(np.r_[request.forget, request.log.forgotten])
        count = len(request.models)
        if self.one_each and len(oracles) < count:
            raise DataError(
                f"{len(oracles)} oracles cannot be matched one each by {count} models.",
                "Train as many oracles as models, or match their mean (one_each=False).",
            )
        rows = self.matching.rows(request)
        ids = to_numpy(request.pool.columns["example_id"][rows])
        logits = oracles.rows("logits", slice(0, count if self.one_each else len(oracles)))
        own = tuple(logits_table(request, request.models.select([0]), np.arange(1)).shape[2:])
        if logits.shape[2:] != own:
            raise DataError(
                f"The oracles' logits have shape {list(logits.shape[2:])} per point, the models' {list(own)}.",
                "Use a bank of the same model and task.",
            )
        targets = logits[:, oracles.at_points(ids)]
        if not self.one_each:
            targets = np.repeat(targets.mean(0, keepdims=True), count, axis=0)
        return self.matching.plan(request, rows, spread(targets, rows, request), 0.0)
