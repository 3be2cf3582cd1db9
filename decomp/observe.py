"""Activations of a model that is at hand, at one or several hook points, in one pass."""

import tempfile
from collections.abc import Sequence
from typing import Any

from torch import nn

from whence.cache import Store, activations

from .activations import Activations, from_entry


def observe(
    model: nn.Module,
    examples: Any,
    sites: Sequence[str],
    store: Store | None = None,
    *,
    cluster: str = "inline",
    quiet: bool = True,
) -> dict[str, Activations]:
    """site -> activations of every position that is not padding, examples in order, positions in order.

    store: where they are kept for the next time; without one they are only held in memory. The model runs once for
    all sites, cut short after the deepest. cluster: where, see `cache.jobs.cluster`. Raises ModelError for an unknown
    hook point.
    """
    if store is not None:
        entry = activations(model, examples, list(sites), store=store, cluster=cluster, quiet=quiet)
        return {site: from_entry(entry, site) for site in sites}
    with tempfile.TemporaryDirectory() as folder:
        return observe(model, examples, sites, Store(folder), cluster=cluster, quiet=quiet)
