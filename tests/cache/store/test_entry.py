"""An entry's batches and labelled view: every row once, read in runs, chunks of a shard's size."""

import ml_dtypes
import numpy as np
import pytest

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
def test_shuffled_batches_have_every_row_once(entry, buffer_bytes):
    def epoch(seed):
        return [b["x"] for b in entry.batches(["x"], 64, shuffle=True, seed=seed, buffer_bytes=buffer_bytes)]

    first = epoch(0)
    assert [len(batch) for batch in first] == [64] * 15 + [40]
    seen = np.concatenate(first)[:, 0] / 4
    assert sorted(seen.tolist()) == list(range(1000))
    assert np.array_equal(np.concatenate(epoch(0)), np.concatenate(first))
    assert not np.array_equal(np.concatenate(epoch(1)), np.concatenate(first))
    assert (np.diff(seen[:64]) != 1).mean() > 0.8


def test_batches_in_order(entry):
    batches = list(entry.batches(batch=300, drop_last=True))
    assert [b["x"].shape for b in batches] == [(300, 4)] * 3
    np.testing.assert_array_equal(np.concatenate([b["y"] for b in batches]), entry.read("y")[:900])
    with pytest.raises(errors.UsageError, match="no array 'z'"):
        next(entry.batches("z"))


def test_labelled(entry):
    data = entry.to_xarray()
    assert data["x"].dims == ("row", "d")
    assert data["x"].chunks == ((128,) * 7 + (104,), (4,))
    np.testing.assert_array_equal(data["x"].sel(row=[100, 1099]).values, entry.rows("x", [0, 999]))
    assert data.attrs["title"] == "t"
    assert set(data.coords) == {"row"}
