"""Crossing between torch and JAX keeps values, shares memory where that is safe, and copies where it is asked to."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from whence.cache.model.bridge import to_jax, to_numpy, to_torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32])
def test_there_and_back(dtype: torch.dtype) -> None:
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    crossed = to_jax(tensor)
    assert str(crossed.dtype) == str(dtype).removeprefix("torch.")
    assert torch.equal(to_torch(crossed), tensor)


def test_no_copy_of_aligned_memory_and_a_copy_when_asked() -> None:
    tensor = torch.zeros(1024)
    shared, own = to_jax(tensor), to_jax(tensor, copy=True)
    assert shared.unsafe_buffer_pointer() == tensor.data_ptr()
    assert own.unsafe_buffer_pointer() != tensor.data_ptr()
    assert to_torch(shared, copy=False).data_ptr() == tensor.data_ptr()
    assert to_torch(shared).data_ptr() != tensor.data_ptr()


def test_strided_and_differentiated_tensors() -> None:
    tensor = torch.randn(4, 6, requires_grad=True)
    np.testing.assert_array_equal(to_jax(tensor.T[1:, ::2]), tensor.detach().numpy().T[1:, ::2])


def test_double_precision_only_when_jax_has_it() -> None:
    tensor = torch.ones(3, dtype=torch.float64) / 3
    assert to_jax(tensor).dtype == jnp.float32
    with jax.enable_x64(True):
        assert to_jax(tensor).dtype == jnp.float64


def test_numpy_from_either() -> None:
    np.testing.assert_array_equal(to_numpy(torch.ones(2, requires_grad=True)), to_numpy(jnp.ones(2)))


def test_jax_leaves_the_gpu_to_both() -> None:
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_a_program_is_compiled_once_for_all_processes(tmp_path) -> None:
    code = (
        "import whence.cache.model.bridge, jax; from jax._src import monitoring; seen = [];"
        "monitoring.register_event_listener(lambda name, **more: seen.append(name));"
        "print(float(jax.jit(lambda x: (x @ x).sum())(jax.numpy.eye(9))), sum('cache_hits' in n for n in seen))"
    )
    store = str(tmp_path / "store")
    env = {**os.environ, "WHENCE_CACHE": store, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    runs = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True) for _ in range(2)]
    first, second = (run.stdout.split() for run in runs)
    assert first == ["9.0", "0"], runs[0].stderr
    assert second[0] == "9.0"
    assert int(second[1]) > 0
    assert not Path(store).exists()  # beside the store, not in it
