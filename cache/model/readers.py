"""Batches of a stored entry's rows as torch tensors or JAX arrays."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..store.entry import Entry
from ..store.layout import BFLOAT16

if TYPE_CHECKING:
    import jax


def torch_batches(entry: Entry, names: Any = None, **options: Any) -> Iterator[dict[str, torch.Tensor]]:
    """One epoch of {name: tensor [batch, ...]}; bfloat16 stays bfloat16.

    Args:
        entry: what is read.
        names: which arrays; all by default.
        options: those of `Entry.batches`.
    """
    for arrays in entry.batches(names, **options):
        yield {
            name: torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
            if array.dtype == BFLOAT16
            else torch.from_numpy(array)
            for name, array in arrays.items()
        }


def jax_batches(entry: Entry, names: Any = None, **options: Any) -> Iterator[dict[str, "jax.Array"]]:
    """One epoch of {name: array [batch, ...]}, 64 bits wide only if JAX is set so; arguments as `torch_batches`."""
    import jax

    for arrays in entry.batches(names, **options):
        yield {
            name: jax.numpy.asarray(array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False))
            for name, array in arrays.items()
        }
