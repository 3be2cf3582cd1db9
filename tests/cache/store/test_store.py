"""The store as its callers see it: keys, writing, resuming, reading, errors."""

import errno
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import zarr

from whence.cache import ArraySpec, Store, errors
from whence.cache.store.keys import canonical, key_of
from whence.cache.store.layout import FORMERLY

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = ["float16", "float32", "float64", "bfloat16", "int8", "int32", "int64", "uint8", "uint16", "bool"]


def values(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=shape) * 50
    return drawn.astype(BF16 if dtype == "bfloat16" else dtype)


def build(place: Store, inputs: dict, arrays: dict[str, np.ndarray], shard_rows: int | None = None):
    specs = {name: ArraySpec(a.shape, a.dtype) for name, a in arrays.items()}
    with place.writer("gradients", inputs, specs, shard_rows) as w:
        for shard in w.todo():
            w.write(shard, {name: a[shard.rows] for name, a in arrays.items()})
        return w.seal()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "shard_rows"), [(1, None), (37, 8), (64, 16), (5, 5), (700, None), (0, None)])
def test_what_is_written_is_what_is_read(place, dtype, rows, shard_rows):
    x, y = values((rows, 3, 2), dtype), values((rows,), dtype, 1)
    entry = build(place, {"a": 1}, {"x": x, "blocks.0/mlp in": y}, shard_rows)
    for name, expected in (("x", x), ("blocks.0/mlp in", y)):
        assert entry.read(name).tobytes() == expected.tobytes()
        assert entry.read(name).dtype == expected.dtype
        assert entry[name][...].tobytes() == expected.tobytes()
        ids = np.random.default_rng(2).integers(-rows, rows, 20) if rows else np.array([], int)
        assert entry.rows(name, ids).tobytes() == expected[ids].tobytes()
        assert b"".join(b.tobytes() for b in entry.blocks(name, 10)) == expected.tobytes()
    assert entry.nbytes == x.nbytes + y.nbytes


def test_many_chunks_in_a_shard(place):
    x = values((3000, 1000), "float32")
    entry = build(place, {}, {"x": x}, 1024)
    stored = entry.header.stored["x"]
    assert stored.sharded
    assert stored.chunk_bytes <= 1 << 20
    np.testing.assert_array_equal(entry.read("x"), x)
    ids = np.random.default_rng(0).integers(0, 3000, 300)
    np.testing.assert_array_equal(entry.rows("x", ids), x[ids])
    np.testing.assert_array_equal(entry.slice("x", 1000, 2100), x[1000:2100])
    np.testing.assert_array_equal(entry["x"][900:1300, 5], x[900:1300, 5])
    views = list(entry.views("x"))
    np.testing.assert_array_equal(np.concatenate(views), x)
    assert not any(view.flags.writeable for view in views)


def test_shard_files_are_zarr_pythons_own(place, tmp_path):
    """Byte for byte what zarr-python writes for the same metadata, padding and index included."""
    for dtype, rows, shard_rows in [("float32", 3000, 1024), ("bfloat16", 100, 32), ("int64", 10, 10)]:
        x = values((rows, 1000), dtype)
        entry = build(place, {"dtype": dtype}, {"x": x}, shard_rows)
        source = Path(place.root) / "v1/gradients" / entry.key[:2] / entry.key / "data.zarr/x"
        copy = tmp_path / f"copy-{dtype}"
        copy.mkdir()
        (copy / "zarr.json").write_bytes((source / "zarr.json").read_bytes())
        zarr.open_array(str(copy), mode="r+")[...] = x.view(np.uint16) if dtype == "bfloat16" else x
        ours = sorted(p.name for p in source.iterdir())
        assert ours == sorted(p.name for p in copy.iterdir())
        for name in ours:
            assert (source / name).read_bytes() == (copy / name).read_bytes(), name


def test_arrays_of_any_shape_are_put_whole(place):
    arrays = {
        "a": values((5, 5), "float64"),
        "b": values((3, 7), "bfloat16"),
        "none": np.zeros((0, 4), np.float32),
        "flat": np.zeros((4, 0), np.float32),
        "one": np.float32(2.5),
    }
    entry = place.put("factors", {"p": [1, 2.5, None, "x"]}, arrays, about={"title": "t", "ids": np.arange(3)})
    assert entry.about["ids"] == [0, 1, 2]
    for name, expected in arrays.items():
        assert entry.read(name).tobytes() == np.asarray(expected).tobytes()
        assert entry[name].shape == np.shape(expected)
    again = place.put("factors", {"p": [1, 2.5, None, "x"]}, arrays)
    assert [event.what for event in place.events] == ["built", "hit"]
    assert again.key == entry.key == key_of("factors", {"p": (1, 2.5, None, "x")})
    assert place.events[0].bytes > 0


def test_resume_writes_only_what_is_missing(place):
    x = values((40, 4), "float32")
    specs = {"x": ArraySpec((40, 4), "float32")}

    def broken():
        with place.writer("bank", {"s": 0}, specs, 8) as w:
            for shard in w.todo():
                if shard.index == 2:
                    raise KeyboardInterrupt
                w.write(shard, {"x": x[shard.rows]})

    with pytest.raises(KeyboardInterrupt):
        broken()
    with pytest.raises(errors.NotCached, match="not complete"):
        place.open("bank", {"s": 0})
    half = place.open("bank", {"s": 0}, partial=True)
    np.testing.assert_array_equal(half.mask, np.arange(40) < 16)
    assert np.isnan(half.read("x")[16:]).all()
    np.testing.assert_array_equal(half["x"][:16], x[:16])
    assert np.isnan(half["x"][16:]).all()
    with pytest.raises(errors.DataError, match="not committed yet"):
        half.rows("x", [3, 17])
    half.close()
    with place.writer("bank", {"s": 0}, specs, 8) as w:
        assert [shard.index for shard in w.todo()] == [2, 3, 4]
        with pytest.raises(errors.StoreError, match="3 of 5 shards"):
            w.seal()
        for shard in w.todo():
            w.write(shard, {"x": x[shard.rows]})
        entry = w.seal(about={"loss": float("nan")})
    np.testing.assert_array_equal(entry.read("x"), x)
    assert np.isnan(entry.about["loss"])
    assert place.events[-1].what == "resumed"
    assert place.events[-1].rows == 24


def test_a_missing_entry_names_the_nearest_and_what_differs(place):
    with pytest.raises(errors.NotCached, match="no scores here at all"):
        place.open("scores", {"model": "a"})
    place.put("scores", {"model": "aaaa", "task": {"kind": "lm", "seed": 1}}, {"x": np.zeros(3)})
    place.put("scores", {"model": "bbbb", "task": {"kind": "mc", "seed": 9}}, {"x": np.zeros(3)})
    with pytest.raises(errors.NotCached, match=r"differs in task\.seed: 2 wanted, 1 found"):
        place.open("scores", {"model": "aaaa", "task": {"kind": "lm", "seed": 2}})


def test_a_listing_names_the_model_and_the_data_and_no_key_depends_on_them(place, tmp_path):
    inputs, arrays = {"what": "scores", "model": "0a1b", "data": "2c3d"}, {"values": np.zeros(2)}
    place.labels |= {"0a1b": "gpt2", "2c3d": "texts.jsonl", "4e5f": "another"}
    entry = place.put("scores", inputs, arrays)
    (line,) = Store(place.root).listing()
    assert line.of == "scores: gpt2, texts.jsonl" or line.of == "scores: texts.jsonl, gpt2"
    assert entry.key == Store(tmp_path / "unnamed").put("scores", inputs, arrays).key


def test_the_same_inputs_with_other_arrays_are_refused(place):
    place.put("scores", {"m": 1}, {"x": np.zeros(3)})
    with pytest.raises(errors.StoreError, match="'x' differ"):
        place.put("scores", {"m": 1}, {"x": np.zeros(4)})


def test_keys_do_not_depend_on_order_or_type_of_containers():
    assert canonical({"b": (1, 2), "a": np.int64(3)}) == canonical({"a": 3, "b": [1, 2]}) == '{"a":3,"b":[1,2]}'
    assert key_of("scores", {"a": 1}) != key_of("scores", {"a": 1.0}) != key_of("factors", {"a": 1.0})
    for bad in (float("nan"), object(), {1: 2}, float("inf")):
        with pytest.raises(errors.UsageError, match=r"inputs\.x"):
            key_of("scores", {"x": bad})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (np.zeros((4, 3), np.float64), "stored as float32"),
        (np.zeros((4, 3), BF16), "stored as float32"),
        (np.zeros((5, 3), np.float32), "has shape"),
        (np.zeros((4, 2), np.float32), "has shape"),
        (np.zeros((4, 3), np.int32), "stored as float32"),
    ],
)
def test_nothing_is_cast_or_cut(place, given, match):
    with place.writer("bank", {}, {"x": ArraySpec((8, 3), "float32")}, 4) as w:
        shard = next(iter(w.todo()))
        with pytest.raises(errors.DataError, match=match):
            w.write(shard, {"x": given})
        with pytest.raises(errors.DataError, match="has arrays x"):
            w.write(shard, {"y": given})
        assert w.missing == 2


def test_bfloat16_bits_never_become_integers(place):
    x = values((4,), "bfloat16")
    with place.writer("bank", {}, {"x": ArraySpec((4,), "uint16")}) as w:
        shard = next(iter(w.todo()))
        with pytest.raises(errors.DataError, match="stored as uint16; the rows given are bfloat16"):
            w.write(shard, {"x": x})
        w.write(shard, {"x": x.view(np.uint16)})
        assert w.seal().read("x").tobytes() == x.tobytes()


def test_a_sealed_entry_is_read_only_through_zarr(place):
    entry = build(place, {}, {"x": np.ones((4, 2), np.float32)})
    with pytest.raises(ValueError, match="read-only"):
        entry["x"][0] = 5
    with pytest.raises(ValueError, match="read-only"):
        entry._rows(entry.header.stored["x"], 0)[0, 0] = 5


def test_entries_travel_between_processes(place):
    entry = build(place, {}, {"x": values((40, 3), "float32")}, 8)
    other = pickle.loads(pickle.dumps(entry))
    np.testing.assert_array_equal(other.read("x"), entry.read("x"))
    assert pickle.loads(pickle.dumps(entry["x"]))[5].tobytes() == entry["x"][5].tobytes()


def test_a_second_builder_waits_and_finds_it_done(place, caplog):
    x = values((6, 2), "float32")
    specs = {"x": ArraySpec((6, 2), "float32")}
    began, got = threading.Event(), []

    def second():
        began.wait()
        with Store(place.root).writer("bank", {}, specs) as w:
            got.append((w.complete, w.seal().read("x")))

    thread = threading.Thread(target=second)
    thread.start()
    with place.writer("bank", {}, specs) as w:
        began.set()
        while "Waiting" not in caplog.text:
            thread.join(0.01)
        for shard in w.todo():
            w.write(shard, {"x": x[shard.rows]})
        w.seal()
    thread.join()
    assert got[0][0]
    np.testing.assert_array_equal(got[0][1], x)
    again = place.writer("bank", {"other": 1}, specs)
    with place.writer("bank", {"other": 1}, specs), pytest.raises(errors.StoreError, match="this very thread"):
        again.__enter__()


@pytest.mark.parametrize(("kind", "former"), FORMERLY.items())
def test_kinds_of_earlier_versions_are_found(place, kind, former):
    inputs = {"what": "x"}
    place.put(former, inputs, {"x": np.zeros(3)}).close()
    assert place.has(kind, inputs)
    assert place.open(kind, inputs).kind == former
    place.put(kind, inputs, {"x": np.ones(3)}).close()
    assert place.open(kind, inputs).kind == kind
    assert place.open(former, inputs).read("x").sum() == 0


def test_names(place):
    entry = build(place, {}, {"x": np.zeros((2, 2), np.float32)})
    with pytest.raises(errors.NotCached, match="No entry is called"):
        place.get("best")
    place.name("../../évil name", entry)
    assert place.get("../../évil name").key == entry.key
    assert place.get(entry.key[:8]).key == entry.key
    files = [p.name for p in (Path(place.root) / "v1/refs").iterdir()]
    assert files == ["%2E.%2F..%2F%C3%A9vil%20name.json"]


def test_a_newer_format_says_so(place):
    entry = build(place, {}, {"x": np.zeros((2, 2), np.float32)})
    path = Path(place.root) / "v1/gradients" / entry.key[:2] / entry.key / "entry.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(errors.NewerFormat, match="format 2"):
        place.open("gradients", {})


def test_a_job_that_does_not_fit_is_refused_with_what_would(place):
    huge = place.writer("gradients", {}, {"g": ArraySpec((10**9, 10**6), "float32")})
    with pytest.raises(errors.ResourceError, match=r"rows fit|bfloat16"):
        huge.__enter__()


def test_a_folder_that_cannot_be_made_has_a_typed_error():
    with pytest.raises(errors.StoreError, match=r"/proc/whence\S* cannot be created(.|\n)*WHENCE_CACHE"):
        Store("/proc/whence/store").put("scores", {"n": 1}, {"v": np.zeros(0)})


def test_another_users_store_has_a_typed_error(place, monkeypatch):
    entry = place.put("scores", {"n": 1}, {"v": np.arange(3.0)})
    entry.close()

    def refused(*arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied")

    for what, calls in (
        ("open", (lambda: place.open("scores", {"n": 1}), lambda: place.get(entry.key))),
        ("listdir", (place.listing, lambda: place.find(entry.key))),
        ("stat", (place.listing,)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, what, refused)
            for call in calls:
                with pytest.raises(errors.StoreError, match=r"cannot be read(.|\n)*permissions"):
                    call()


def test_a_bfloat16_array_and_its_neighbours_are_read_by_plain_zarr(place):
    """In a process that has never imported this package."""
    x = values((30, 2), "bfloat16")
    entry = build(place, {"a": 1}, {"x": x, "y": values((30,), "float32")}, 8)
    group = Path(place.root) / "v1/gradients" / entry.key[:2] / entry.key / "data.zarr"
    script = (
        "import sys, zarr, ml_dtypes\n"
        f"group = zarr.open_group({str(group)!r}, mode='r')\n"
        "print(sorted(group.array_keys()), len(list(group.members())), group['y'].dtype, end=' ')\n"
        "print(group['x'].attrs['logical_dtype'])\n"
        "print(group['x'][:].view(ml_dtypes.bfloat16).tobytes().hex())\n"
        "assert 'whence' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    first, second = run.stdout.splitlines()
    assert first == "['x', 'y'] 2 float32 bfloat16"
    assert second == x.tobytes().hex()
    assert entry["x"].dtype == BF16
    assert entry.to_xarray()["x"].values.tobytes() == x.tobytes()
