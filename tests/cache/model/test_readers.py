"""Batches of an entry in torch and JAX: the same bits, bfloat16 too."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from whence.cache import Store
from whence.cache.model.readers import jax_batches, torch_batches


@pytest.fixture
def entry(place: Store):
    y = np.arange(100).astype(ml_dtypes.bfloat16)
    return place.put("activations", {}, {"x": np.arange(400.0).reshape(100, 4), "y": y})


def test_torch(entry):
    batches = list(torch_batches(entry, batch=30))
    assert torch.cat([b["x"] for b in batches]).numpy().tobytes() == entry.read("x").tobytes()
    y = torch.cat([b["y"] for b in batches])
    assert y.dtype == torch.bfloat16
    assert y.view(torch.uint16).numpy().tobytes() == entry.read("y").tobytes()


def test_jax(entry):
    batches = list(jax_batches(entry, batch=30, drop_last=True))
    assert [b["x"].shape for b in batches] == [(30, 4)] * 3
    assert batches[0]["x"].dtype == jnp.float32
    assert np.asarray(batches[0]["y"]).tobytes() == entry.read("y")[:30].tobytes()
