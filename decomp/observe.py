"""Activations of a trained model, at one or several hook points, in one pass."""

import tempfile
from typing import overload

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
            activations; without one they are in memory only.
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
            return observe(trained.replace(store=Store(folder)), at, examples)
    entry = activations(trained, names, examples, store=trained.store)
    found = {name: from_entry(entry, known_as(trained.model, name)) for name in names}
    return found[at] if isinstance(at, str) else found
