"""CoLoR-Filter: conditional loss reduction between two small models (Brandfonbrener et al. 2024, arXiv 2406.10670)."""

import numpy as np
from jaxtyping import Float, Int64

from whence.cache import DataError, Examples, LanguageModelling, TrainedModel

from ..annotations import values_of
from .top import check_k


def loss_reduction(
    prior: TrainedModel, conditional: TrainedModel, examples: Examples | None = None
) -> Float[np.ndarray, " n"]:
    """How many nats a token less the conditional model needs than the prior, for every example. Raises DataError for
    a task other than language modelling."""
    task = prior.task
    if not isinstance(task, LanguageModelling):
        raise DataError("Loss reduction is counted in nats a token.", "Use it with language models.")
    examples = prior.train if examples is None else examples
    losses = [values_of(model, examples, model.task.loss) for model in (prior, conditional)]
    counts = values_of(prior, examples, lambda model, batch: task.targets(batch)[1].sum(1))
    return (losses[0] - losses[1]) / np.maximum(counts, 1)


def color(
    prior: TrainedModel, conditional: TrainedModel, k: int, examples: Examples | None = None
) -> Int64[np.ndarray, " k"]:
    """Ids of the k examples whose loss falls most from the prior to the conditional model, best first.

    Args:
        prior: a small model of the data that is chosen from.
        conditional: the same after further training on the target.
        k: how many examples.
        examples: to choose from; the prior's training data by default.

    Raises UsageError for a k that is not 1 to n, DataError for a task other than language modelling.
    """
    examples = prior.train if examples is None else examples
    check_k(k, len(examples))
    return examples.ids[np.argsort(-loss_reduction(prior, conditional, examples), kind="stable")[:k]]
