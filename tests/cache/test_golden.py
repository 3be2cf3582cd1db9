"""Stores written by released versions stay readable: by us, by plain zarr, and by tensorstore."""

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr

from whence.cache import Store
from whence.cache.store.maintenance import verify

from .golden.make import arrays, make, whole

HERE = Path(__file__).parent / "golden"
INPUTS = {"model": "golden", "rank": 8, "damping": 0.1, "sites": ["a", "b"]}


@pytest.fixture(params=sorted(path.name for path in HERE.glob("v*-store")))
def golden(request, quick) -> Store:
    return Store(shutil.copytree(HERE / request.param, quick / "golden"))


def test_read_by_us(golden):
    for kind, name, expected in (("gradients", "rows", arrays()), ("factors", "whole", whole())):
        entry = golden.open(kind, INPUTS)
        assert golden.get(name).key == entry.key
        for array, rows in expected.items():
            assert entry.read(array).tobytes() == rows.tobytes()
            assert entry[array][...].tobytes() == rows.tobytes()
        assert verify(golden, kind, entry.key) == []
    assert golden.open("gradients", INPUTS).about == {"title": "gölden", "note": "sealed"}


def test_read_by_plain_zarr(golden):
    """zarr-python and xarray open the group as it lies there (bfloat16 needs its data type registered)."""
    key = golden.open("gradients", INPUTS).key
    group = zarr.open_group(str(Path(golden.root) / "v1/gradients" / key[:2] / key / "data.zarr"), mode="r")
    by_name = {array.attrs["name"]: array for _, array in group.arrays()}
    for name, rows in arrays().items():
        assert by_name[name][...].tobytes() == rows.tobytes()


def test_read_by_tensorstore(golden):
    """Bit for bit, bfloat16 too, without any of our code."""
    for kind, expected in (("gradients", arrays()), ("factors", whole())):
        entry = golden.open(kind, INPUTS)
        base = Path(golden.root) / "v1" / kind / entry.key[:2] / entry.key
        for name, rows in expected.items():
            path = str(base / entry.header.stored[name].path)
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
            read = np.asarray(tensorstore.open(spec, read=True).result().read().result())
            assert read.tobytes() == rows.tobytes(), name
            assert (read.dtype == ml_dtypes.bfloat16) == (rows.dtype == ml_dtypes.bfloat16)


def test_written_the_same_today(golden, quick):
    """This version writes the golden store's shard files byte for byte."""
    make(str(quick / "today"))
    files = sorted(path.relative_to(golden.root) for path in Path(golden.root).rglob("data.zarr/*/c*"))
    assert len(files) > 15
    for path in files:
        assert (quick / "today" / path).read_bytes() == (Path(golden.root) / path).read_bytes(), path
