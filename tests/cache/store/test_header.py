"""Forged and hostile stores: nothing read from one is executed, and no path leaves its root."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from whence.cache import errors
from whence.cache.store.commit import check, sign
from whence.cache.store.keys import key_of
from whence.cache.store.layout import entry_path
from whence.cache.store.maintenance import remove, verify


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: str):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def entry(place):
    entry = place.put("factors", {"n": 1}, {"x": np.arange(6.0), "y": np.ones(2)})
    entry.close()
    return Path(place.root) / entry_path("factors", entry.key)


def forged(path: Path, **changes) -> None:
    """Rewrite a signed document as somebody would who knows the format."""
    path.write_bytes(sign(check(path.read_bytes(), "it") | changes))


@pytest.mark.parametrize("file", ["entry.json", "COMPLETE.json", "commits/00000000.json", "data.zarr/x/zarr.json"])
def test_pickles_are_not_loaded(place, entry, tmp_path, file):
    (entry / file).write_bytes(pickle.dumps(Bomb(str(tmp_path / "mark"))))
    with pytest.raises(errors.CorruptEntry):
        place.open("factors", {"n": 1}).read("x")
    place.listing()
    verify(place, "factors", entry.name)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["../../../secret", "/etc/passwd", "x/../../../../secret", "..", "\0"])
def test_array_names_cannot_leave_the_entry(place, entry, quick, name):
    (quick / "secret").write_bytes(b"secret" * 8)
    document = json.loads((entry / "entry.json").read_text())
    forged(entry / "entry.json", arrays={name: document["arrays"]["x"]})
    with pytest.raises(errors.StoreError):
        place.open("factors", {"n": 1})
    metadata = {f"data.zarr/{name}/zarr.json": document["metadata"]["data.zarr/x/zarr.json"]}
    forged(
        entry / "entry.json", metadata=metadata | {"data.zarr/zarr.json": document["metadata"]["data.zarr/zarr.json"]}
    )
    with pytest.raises(errors.StoreError):
        place.open("factors", {"n": 1})


def test_forged_headers(place, entry):
    original = (entry / "entry.json").read_bytes()
    for changes in (
        {"kind": "scores"},
        {"key": "0" * 64},
        {"inputs": {"n": 2}},
        {"arrays": {"x": {"shape": [-5], "dtype": "float64", "dims": None}}},
        {"arrays": {"x": {"shape": [6], "dtype": "object", "dims": None}}},
        {"arrays": []},
        {"grid": {"rows": 1, "shard_rows": 0, "whole": True}},
        {"grid": {"rows": 1, "shard_rows": 1, "whole": True, "more": 1}},
        {"metadata": {}},
        {"created": "yesterday"},
    ):
        (entry / "entry.json").write_bytes(original)
        forged(entry / "entry.json", **changes)
        with pytest.raises(errors.StoreError):
            place.open("factors", {"n": 1}).read("x")


@pytest.mark.parametrize("what", ["data", "folder", "entry", "commits"])
def test_links_are_not_followed(place, entry, quick, what):
    outside = quick / "outside"
    outside.mkdir()
    target = {
        "data": entry / "data.zarr/x/c.0",
        "folder": entry / "data.zarr/x",
        "entry": entry,
        "commits": entry / "commits",
    }[what]
    target.rename(outside / "moved")
    target.symlink_to(outside / "moved")
    with pytest.raises(errors.StoreError, match="link"):
        place.open("factors", {"n": 1}).read("x")
    if what != "entry":
        remove(place, "factors", entry.name)
        assert (outside / "moved").exists(), "removal went through a link"


def test_names_cannot_point_outside(place, entry):
    document = {"format": 1, "name": "best", "kind": "x", "key": "../../../etc"}
    place.backend.publish({"v1/refs/best.json": [sign(document)]})
    with pytest.raises(errors.StoreError):
        place.get("best")


@pytest.mark.parametrize("path", ["../x", "v1/../../x", "/etc/passwd", "v1//x", "v1/./x", "", "v1/\0"])
def test_paths_stay_inside(place, path):
    for act in (place.backend.read, place.backend.local, place.backend.remove, place.backend.remove_tree):
        with pytest.raises(errors.StoreError):
            act(path)
    with pytest.raises(errors.StoreError):
        place.backend.publish({path: [b"x"]})


def test_deep_json_is_refused(place, entry):
    (entry / "entry.json").write_bytes(b'{"digest":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    with pytest.raises(errors.CorruptEntry):
        place.open("factors", {"n": 1})
    assert key_of("factors", {"n": 1}) == entry.name


def test_objects_are_never_stored_or_loaded(place):
    with pytest.raises(errors.UsageError, match="dtype object"):
        place.put("factors", {}, {"x": np.array([Bomb("x")], dtype=object)})
