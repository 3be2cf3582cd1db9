"""Loaders and labelled views: every row once, blocks read in order, chunks of a shard's size."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from whence.cache import ArraySpec, Store, errors

BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def entry(place: Store):
    rows = {"x": np.arange(1000 * 4, dtype=np.float32).reshape(1000, 4), "y": np.arange(1000).astype(BF16)}
    specs = {"x": ArraySpec((1000, 4), "float32", ("row", "d")), "y": ArraySpec((1000,), "bfloat16", ("row",))}
    about = {"coords": {"row": list(range(100, 1100)), "other": [1]}, "title": "t"}
    with place.writer("activations", {}, specs, 128, about=about) as w:
        for shard in w.todo():
            w.write(shard, {name: array[shard.rows] for name, array in rows.items()})
        return w.seal()


@pytest.mark.parametrize("buffer_bytes", [1 << 12, 1 << 20])
def test_shuffled_batches_hold_every_row_once(entry, buffer_bytes):
    def epoch(seed):
        return [b["x"] for b in entry.torch(["x"], batch=64, shuffle=True, seed=seed, buffer_bytes=buffer_bytes)]

    first = epoch(0)
    assert [len(batch) for batch in first] == [64] * 15 + [40]
    seen = torch.cat(first)[:, 0] / 4
    assert sorted(seen.tolist()) == list(range(1000))
    assert torch.equal(torch.cat(epoch(0)), torch.cat(first))
    assert not torch.equal(torch.cat(epoch(1)), torch.cat(first))
    assert (seen[:64].diff() != 1).float().mean() > 0.8


def test_in_order(entry):
    batches = list(entry.jax(batch=300, drop_last=True))
    assert [b["x"].shape for b in batches] == [(300, 4)] * 3
    assert batches[0]["y"].dtype == jnp.bfloat16
    torch_batches = list(entry.torch("y", batch=1000))
    assert torch_batches[0]["y"].dtype == torch.bfloat16
    assert torch_batches[0]["y"].view(torch.uint16).numpy().tobytes() == entry.read("y").tobytes()
    with pytest.raises(errors.UsageError, match="no array 'z'"):
        next(entry.torch("z"))


def test_labelled(entry):
    data = entry.to_xarray()
    assert data["x"].dims == ("row", "d")
    assert data["x"].chunks == ((128,) * 7 + (104,), (4,))
    np.testing.assert_array_equal(data["x"].sel(row=[100, 1099]).values, entry.rows("x", [0, 999]))
    assert data.attrs["title"] == "t"
    assert set(data.coords) == {"row"}
