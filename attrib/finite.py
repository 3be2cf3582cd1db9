"""Examples whose loss or gradient is not finite: found, reported, and left out on request; never averaged in."""

from typing import Any

import numpy as np

from whence.cache import Examples, TrainedModel
from whence.cache.jobs.progress import say
from whence.cache.model.capture import nonfinite

POSITIONS = 2048  # positions in a batch


def nonfinite_ids(
    trained: TrainedModel, examples: Examples | None = None, *, sites: Any = None, seed: int = 0
) -> np.ndarray:
    """Ids of the examples whose loss, or any output gradient of it at the sites, is NaN or infinite, under the data's
    own labels or under labels sampled from the model.

    Args:
        examples: by default the training data.
        sites: by default the trained model's own.
        seed: of the sampled labels.
    """
    examples = trained.train if examples is None else examples
    found, task = trained.find(sites), trained.task
    bad = np.zeros(len(examples), bool)
    for planned, batch in trained.planned(examples, "checking gradients", POSITIONS):
        for objective in (task.loss, lambda m, b: task.sampled_loss(m, b, seed)):
            bad[planned.rows] |= nonfinite(trained.model, found, batch, objective)
    return examples.ids[bad]


def finite_examples(trained: TrainedModel, examples: Examples | None = None, *, sites: Any = None) -> Examples:
    """The examples without those whose gradients are not finite; reports which were left out. Arguments as in
    `nonfinite_ids`."""
    examples = trained.train if examples is None else examples
    bad = nonfinite_ids(trained, examples, sites=sites)
    if len(bad):
        say(f"{len(bad)} examples have gradients that are not finite and are left out: ids {bad[:10].tolist()}")
    return examples.without(bad) if len(bad) else examples
