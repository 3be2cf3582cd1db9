"""The one place where torch and JAX meet.

Tensors cross by DLPack: without a copy where memory is contiguous and aligned, with one otherwise. A shared
buffer must never be written again by either side, so only tensors nobody else will write to (captured
activations and gradients, fresh results) may cross this way; `copy=True` makes the crossing safe for any other.
"""

import os
from typing import TYPE_CHECKING

import numpy as np
import torch

# JAX and torch share one GPU: JAX takes memory as it needs it instead of three quarters at the start
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

if TYPE_CHECKING:
    import jax


def to_jax(tensor: torch.Tensor, *, copy: bool = False) -> "jax.Array":
    """A torch tensor as a JAX array on the same device. float64 needs `jax.enable_x64`; without it, it is narrowed
    to float32, as everywhere in JAX."""
    import jax
    import jax.numpy as jnp

    tensor = tensor.detach()
    if copy:
        tensor = tensor.clone()
    if tensor.dtype in (torch.float64, torch.int64, torch.bool) or tensor.device.type not in ("cpu", "cuda"):
        return jnp.asarray(tensor.cpu().numpy())
    return jax.dlpack.from_dlpack(tensor.contiguous())


def to_torch(array: "jax.Array", *, copy: bool = True) -> torch.Tensor:
    """A JAX array as a torch tensor on the same device; `copy=False` shares memory, which then must not be written."""
    tensor = torch.from_dlpack(array)
    return tensor.clone() if copy else tensor


def to_numpy(array: "jax.Array | torch.Tensor | np.ndarray") -> np.ndarray:
    """Either library's array as numpy on the host; bfloat16, which numpy lacks, as float32."""
    if isinstance(array, torch.Tensor):
        return (array.float() if array.dtype == torch.bfloat16 else array).detach().cpu().numpy()
    return np.asarray(array)
