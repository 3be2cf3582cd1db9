"""Examples whose loss or gradient is not finite: found, named, and left out by choice; never averaged in."""

import numpy as np
import torch
from torch import nn

from whence.cache import Examples, Sites, Task, find_sites, progress, say
from whence.cache.model.batches import plan_batches
from whence.cache.model.capture import nonfinite

from .method import FitOptions


def nonfinite_ids(
    model: nn.Module,
    task: Task,
    examples: Examples,
    sites: Sites | None = None,
    *,
    seed: int = 0,
    options: FitOptions = FitOptions(),
) -> np.ndarray:
    """Ids of the examples whose loss, or any output gradient of it at the sites, is NaN or infinite, under the data's
    own labels or labels drawn from the model."""
    chosen = find_sites(model, quiet=True) if sites is None else sites
    device = options.device or next((p.device for p in model.parameters()), torch.device("cpu"))
    bad = np.zeros(len(examples), bool)
    batches = plan_batches(examples.lengths, np.arange(len(examples)), options.positions or 2048)
    for batch in progress(batches, desc="checking gradients", unit="batch", quiet=options.quiet):
        tensors = examples.batch(batch.rows, pad_to=batch.width, device=device)
        for objective in (task.loss, lambda m, b: task.sampled_loss(m, b, seed)):
            bad[batch.rows] |= nonfinite(model, chosen, tensors, objective)
    return examples.ids[bad]


def finite_examples(
    model: nn.Module,
    task: Task,
    examples: Examples,
    sites: Sites | None = None,
    *,
    options: FitOptions = FitOptions(),
) -> Examples:
    """The examples without those whose gradients are not finite; says which were left out."""
    bad = nonfinite_ids(model, task, examples, sites, options=options)
    if len(bad):
        say(f"{len(bad)} examples have gradients that are not finite and are left out: ids {bad[:10].tolist()}")
    return examples.without(bad) if len(bad) else examples
