"""The one place where torch and JAX meet.

Tensors cross by DLPack: without a copy where memory is contiguous and aligned, with one otherwise. A shared
buffer must never be written again by either side, so only tensors nobody else will write to (captured
activations and gradients, fresh results) may cross this way; `copy=True` makes the crossing safe for any other.
"""

import hashlib
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import platformdirs
import torch

from ..errors import UsageError

# JAX and torch share one GPU: JAX takes memory as it needs it instead of three quarters at the start
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# products by cuBLAS, whose own choice of algorithm is good: XLA's Triton kernels need autotuning, which at first use
# takes longer than a whole fit, and without it they are five times slower. Flags of the user's own come later and win.
GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
os.environ["XLA_FLAGS"] = f"{GPU_FLAGS} {os.environ.get('XLA_FLAGS', '')}".rstrip()


def compiled_folder() -> str:
    """Where JAX keeps compiled programs from one process to the next: beside the default store, in a folder of this
    kind of processor."""
    root = os.environ.get("WHENCE_CACHE", "")
    if not root or "://" in root:
        root = platformdirs.user_cache_dir("whence")
    features = platform.processor()
    with suppress(OSError, StopIteration):
        features = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    kind = hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:12]
    return str(Path(f"{root.rstrip('/')}-compiled") / kind)


# a program is compiled once per machine; the size makes JAX lock the folder, and drop what was not used for longest
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled_folder())
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(1 << 30))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

STAGED = 1 << 20  # bytes, from which a transfer goes through page-locked memory

if TYPE_CHECKING:
    import jax


def to_jax(tensor: torch.Tensor, *, copy: bool = False) -> "jax.Array":
    """A torch tensor as a JAX array on the same device. float64 needs `jax.enable_x64`; without it, it is narrowed
    to float32, as everywhere in JAX.

    Raises UsageError for a tensor on a GPU if JAX has none: through the host, each batch would cross twice.
    """
    import jax
    import jax.numpy as jnp

    tensor = tensor.detach()
    if copy:
        tensor = tensor.clone()
    if tensor.device.type == "cuda" and jax.default_backend() == "cpu":
        raise UsageError(
            f"The model is on {tensor.device}, but JAX sees no GPU.",
            "Install JAX with CUDA (pip install 'whence[cuda]'), unset JAX_PLATFORMS, or use device='cpu'.",
        )
    if tensor.dtype in (torch.float64, torch.int64, torch.bool) or tensor.device.type not in ("cpu", "cuda"):
        return jnp.asarray(tensor.cpu().numpy())
    return jax.dlpack.from_dlpack(tensor.contiguous())


def to_torch(array: "jax.Array", *, copy: bool = True) -> torch.Tensor:
    """A JAX array as a torch tensor on the same device; `copy=False` shares memory, which then must not be written."""
    tensor = torch.from_dlpack(array)
    return tensor.clone() if copy else tensor


def to_numpy(array: "jax.Array | torch.Tensor | np.ndarray") -> np.ndarray:
    """Either library's array as numpy on the host; bfloat16, which numpy lacks, as float32. Large ones leave a GPU
    through page-locked memory, which is some ten times as fast as through ordinary memory."""
    if isinstance(array, np.ndarray):
        return array
    if not isinstance(array, torch.Tensor):
        if array.nbytes < STAGED or array.dtype != np.float32 or next(iter(array.devices())).platform != "gpu":
            return np.asarray(array)
        array = to_torch(array, copy=False)
    array = (array.float() if array.dtype == torch.bfloat16 else array).detach()
    host = to_host(array)
    return host.numpy().copy() if host.is_pinned() else host.numpy()


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in the host's memory, page-locked if it is large and comes from a GPU."""
    if tensor.device.type != "cuda" or tensor.nbytes < STAGED:
        return tensor.cpu()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)


def to_accelerator(array: np.ndarray) -> "jax.Array":
    """A host array on JAX's default device; large ones reach a GPU through page-locked memory, as in `to_numpy`."""
    import jax
    import jax.numpy as jnp

    if array.nbytes < STAGED or array.dtype != np.float32 or jax.default_backend() != "gpu":
        return jnp.asarray(array)
    host = torch.from_numpy(np.ascontiguousarray(array))
    return to_jax(torch.empty_like(host, pin_memory=True).copy_(host).to("cuda"))


def idle_bytes(device: torch.device) -> int:
    """Bytes of a GPU that JAX has taken and does not use at present; 0 before JAX has used it."""
    if "jax" not in sys.modules:
        return 0
    import jax

    stats = [
        d.memory_stats() or {} for d in jax.devices() if d.platform == "gpu" and d.local_hardware_id == device.index
    ]
    return sum(max(0, s.get("pool_bytes", 0) - s.get("bytes_in_use", 0)) for s in stats)
