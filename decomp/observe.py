"""Activations at hook points of a model that is at hand, in one pass, in memory."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from cache import outputs_at, progress
from cache.bridge import to_numpy
from cache.fingerprint import model_fingerprint

from .activations import Activations, Origin


def observe(
    model: nn.Module,
    examples: Any,
    sites: Sequence[str],
    *,
    batch: int = 32,
    column: str = "input_ids",
    quiet: bool = True,
) -> dict[str, Activations]:
    """site -> activations of every position that is not padding, examples in order, positions in order.

    The model runs once for all sites, cut short after the deepest. Raises ModelError for an unknown hook point.
    """
    names = list(sites)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    document: list[np.ndarray] = []
    position: list[np.ndarray] = []
    token: list[np.ndarray] = []
    fingerprint = model_fingerprint(model).hex
    starts = range(0, len(examples), batch)
    for start in progress(starts, desc="activations", unit="batch", quiet=quiet):
        rows = np.arange(start, min(start + batch, len(examples)))
        tensors = examples.batch(rows)
        ids = tensors[column]
        given = {"attention_mask": tensors["attention_mask"]} if "attention_mask" in tensors else {}
        seen = outputs_at(model, names, partial(model, ids, **given))
        width = np.arange(ids.shape[1])[None, :]
        real = width < np.asarray(examples.lengths)[rows][:, None]
        for name in names:
            parts[name].append(to_numpy(seen[name].float())[real])
        document.append(np.broadcast_to(np.asarray(examples.ids)[rows][:, None], real.shape)[real])
        position.append(np.broadcast_to(width, real.shape)[real])
        token.append(to_numpy(ids)[real])
    documents, positions, tokens = (np.concatenate(column).astype(np.int64) for column in (document, position, token))
    data = str(examples.fingerprint)
    return {
        name: Activations.of(np.concatenate(parts[name]), documents, positions, tokens, Origin(name, fingerprint, data))
        for name in names
    }
