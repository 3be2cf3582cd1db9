"""Activations of a trained model, at one or several hook points, in one pass."""

import tempfile
from dataclasses import replace
from typing import overload

import numpy as np

from whence.cache import Examples, Store, TrainedModel, activations
from whence.cache.model.names import known_as

from .activations import Activations, from_entry


@overload
def observe(trained: TrainedModel, at: str, examples: Examples | None = None) -> Activations: ...
@overload
def observe(
    trained: TrainedModel, at: list[str] | tuple[str, ...], examples: Examples | None = None
) -> dict[str, Activations]: ...
def observe(
    trained: TrainedModel, at: str | list[str] | tuple[str, ...], examples: Examples | None = None
) -> Activations | dict[str, Activations]:
    """Activations of every position that is not padding, examples in order, positions in order.

    Args:
        trained: the model; it runs on its device, cut short after the deepest hook point. Its store keeps the
            activations, which are then read as they are needed; without a store they are in memory.
        at: a hook point, or several, which give a dict; by its name in the model's own library (`model.layers.2`) or
            in TransformerLens (`blocks.2.hook_out`). The origin has the name of the tree of modules.
        examples: what it reads; by default its training data.

    Raises ModelError for an unknown hook point, NumericalError for an activation that is not finite.

    >>> observe(TrainedModel(model, train, task, quiet=True), at="1")
    Activations(12 rows of width 8 at 1, 12 documents)
    """
    names = [at] if isinstance(at, str) else list(at)
    if trained.store is None:
        with tempfile.TemporaryDirectory() as folder:
            found = _observed(trained.replace(store=Store(folder)), names, examples)
            found = {name: replace(acts, x=np.asarray(acts.x)) for name, acts in found.items()}  # the folder goes
    else:
        found = _observed(trained, names, examples)
    return found[at] if isinstance(at, str) else found


def _observed(trained: TrainedModel, names: list[str], examples: Examples | None) -> dict[str, Activations]:
    entry = activations(trained, names, examples, store=trained.store)
    return {name: from_entry(entry, known_as(trained.model, name)) for name in names}
