"""Verify, repair, collect, pin, remove and export, by call and by command."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from whence.cache import Store, errors
from whence.cache.model.fingerprint import model_fingerprint
from whence.cache.store.commit import sign
from whence.cache.store.export import export
from whence.cache.store.maintenance import collect, remove, repair, repair_names, verify, verify_names
from whence.cli import main

from .fill import SPECS, fill


def folder(place: Store, key: str, kind: str = "gradients") -> Path:
    return Path(place.root) / "v1" / kind / key[:2] / key


def age(place: Store, key: str, days: float) -> None:
    when = time.time() - days * 86400
    os.utime(folder(place, key) / "entry.json", (when, when))


def test_listing(place):
    done = fill(place, {"n": 1})
    half = fill(place, {"n": 2}, stop=2)
    place.name("best", done)
    lines = {line.key: line for line in place.listing()}
    assert (lines[done.key].state, lines[half].state) == ("complete", "partial")
    assert (lines[half].shards_done, lines[half].shards) == (2, 5)
    assert lines[done.key].names == ("best",)
    assert lines[done.key].bytes > done.nbytes


@pytest.mark.parametrize(
    ("file", "shards"),
    [("data.zarr/x/c.3.0", (3,)), ("commits/00000001.json", (1,)), ("COMPLETE.json", ()),
     ("data.zarr/blocks.0%2Fa%20b/zarr.json", ()), ("data.zarr/zarr.json", ())],
)  # fmt: skip
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_what_is_damaged_is_found_and_only_that_is_done_again(place, file, shards, how):
    entry = fill(place, {"n": 1})
    before = {name: entry.read(name).tobytes() for name in entry.arrays}
    entry.close()
    path = folder(place, entry.key) / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data if how == "flip" else data[: len(data) // 2])
    expected = [] if (file, how) == ("COMPLETE.json", "gone") else [file]  # without a seal it is just unsealed
    assert [fault.path for fault in verify(place, "gradients", entry.key)] == expected
    if how != "flip" and "zarr.json" not in file:
        assert [fault.path for fault in verify(place, "gradients", entry.key, full=False)] == expected
    done = repair(place, "gradients", entry.key)
    assert done.dropped == shards
    assert not done.removed
    assert verify(place, "gradients", entry.key) == []
    again = fill(place, {"n": 1})
    assert place.events[-1].rows == 8 * len(shards)
    assert {name: again.read(name).tobytes() for name in again.arrays} == before


def test_a_damaged_header_takes_the_entry_with_it(place):
    entry = fill(place, {"n": 1})
    entry.close()
    path = folder(place, entry.key) / "entry.json"
    path.write_bytes(path.read_bytes().replace(b"float32", b"float64"))
    with pytest.raises(errors.CorruptEntry, match="own digest"):
        place.open("gradients", {"n": 1})
    assert place.listing()[0].state == "damaged"
    assert repair(place, "gradients", entry.key).removed
    assert list(place.contents()) == []


def test_collection_spares_what_is_pinned_named_open_young_or_being_built(place):
    entries = [fill(place, {"n": n}) for n in range(6)]
    for entry in entries:
        entry.close()
        age(place, entry.key, 40)
    keys = [entry.key for entry in entries]
    place.pin("gradients", keys[0])
    place.name("kept", entries[1])
    reader = place.get(keys[2])
    age(place, keys[2], 40)
    age(place, keys[3], 0.5)
    month = 30 * 86400.0
    assert [line.key for line in collect(place, older_than=month, dry_run=True)] == sorted(
        {keys[2], keys[4], keys[5]}, key=lambda k: next(line.used for line in place.listing() if line.key == k)
    )
    gone = {line.key for line in collect(place, older_than=month)}
    assert gone == {keys[4], keys[5]}
    reader.read("x")
    reader.close()
    place.pin("gradients", keys[0], pinned=False)
    assert {line.key for line in collect(place, older_than=month)} == {keys[0], keys[2]}
    with pytest.raises(errors.ResourceError, match="more than 10"):
        collect(place, max_bytes=10)
    with pytest.raises(errors.UsageError, match="No eviction limit"):
        collect(place)
    with place.writer("gradients", {"n": 9}, SPECS, 8) as w:
        age(place, w.key, 40)
        assert collect(place, older_than=month) == []
        with pytest.raises(errors.StoreError, match="being built"):
            remove(place, "gradients", w.key)
    assert not (Path(place.root) / "v1/trash").exists()


def test_the_least_recently_used_go_first(place):
    keys = [fill(place, {"n": n}).key for n in range(4)]
    for days, key in zip((5, 9, 7, 3), keys):
        age(place, key, days)
    size = place.listing()[0].bytes
    assert [line.key for line in collect(place, max_bytes=2 * size + size // 2)] == [keys[1], keys[2]]


def test_what_dead_writers_left_is_swept(place):
    """Beside a seal by the next start, beside shards by the next collection, young ones by nobody."""
    done = fill(place, {"n": 1})
    beside_seal, old, young = (folder(place, done.key) / name for name in (".tmp-1-a", "commits/.tmp-1-b", ".tmp-1-c"))
    done.close()
    beside_seal.touch()
    fill(place, {"n": 1}).close()
    assert not beside_seal.exists()
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    collect(place, older_than=86400.0)
    assert young.exists()
    assert not old.exists()


def test_removing(place):
    entry = fill(place, {"n": 1})
    with pytest.raises(errors.StoreError, match="open in some process"):
        remove(place, "gradients", entry.key)
    place.name("best", entry)
    entry.close()
    with pytest.raises(errors.StoreError, match="called 'best'"):
        remove(place, "gradients", entry.key)
    assert remove(place, "gradients", entry.key, force=True) > 0
    assert place.refs() == {}


@pytest.mark.parametrize("format", ["safetensors", "npy"])
def test_export(place, tmp_path, format):
    entry = fill(place, {"n": 1})
    files = export(entry, tmp_path / "out", format)
    if format == "safetensors":
        tensors = load_file(tmp_path / "out/arrays.safetensors")
        assert tensors["blocks.0/a b"].dtype == torch.bfloat16
        x, y = tensors["x"].numpy(), tensors["blocks.0/a b"].view(torch.uint16).numpy()
    else:
        x, y = np.load(tmp_path / "out/x.npy"), np.load(tmp_path / "out/blocks.0%2Fa%20b.bfloat16.npy")
    assert x.tobytes() == entry.read("x").tobytes()
    assert y.tobytes() == entry.read("blocks.0/a b").tobytes()
    assert json.loads((tmp_path / "out/entry.json").read_text())["inputs"] == {"n": 1}
    assert len(files) >= 2
    with pytest.raises(errors.StoreError, match="exists already"):
        export(entry, tmp_path / "out", format)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_models_are_compared_by_tensor(place):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    one = model_fingerprint(model)
    model.eval().requires_grad_(False)
    assert model_fingerprint(model) == one
    with torch.no_grad():
        model[3].weight[0, 0] += 1e-6
        model[2].running_mean[0] = 1
    two = model_fingerprint(model)
    assert one.hex != two.hex
    assert one.differs(two) == ("2.running_mean", "3.weight")
    other = nn.Sequential(model[0], nn.GELU(), model[2], model[3])
    assert model_fingerprint(other).differs(two) == ("(architecture)",)
    a = place.put("scores", {"model": one}, {"x": np.zeros(2)})
    b = place.put("scores", {"model": two}, {"x": np.ones(2)})
    assert place.open("scores", {"model": one.hex}).key == a.key
    assert place.differing_tensors(one.hex, two.hex) == ("2.running_mean", "3.weight")
    assert b.inputs == {"model": two.hex}


def test_commands(place, capsys, tmp_path):
    entry, key = fill(place, {"n": 1, "model": "a"}), fill(place, {"n": 2, "model": "a"}, stop=2)
    entry.close()

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["cache", *arguments, "--store", place.root])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    code, printed = run("ls")
    assert code == 0
    assert "2/5" in printed
    assert "2 entries" in printed
    assert len(json.loads(run("ls", "--json")[1])) == 2
    code, printed = run("info", entry.key[:8], key[:8], "--json")
    assert json.loads(printed)["differs"] == {"n": {"this": 1, "other": 2}}
    assert run("info", entry.key[:8])[0] == 0
    assert run("pin", entry.key[:8], "--name", "best") == (0, f"gradients {entry.key[:12]} kept\n")
    assert run("verify", "best")[0] == 0
    (folder(place, entry.key) / "data.zarr/x/c.1.0").write_bytes(b"x")
    code, printed = run("verify", "--quick")
    assert code == 1
    assert "c.1.0: 1 bytes instead of" in printed
    assert "1 shards to compute again" in run("repair")[1]
    assert run("repair")[1] == "Nothing is damaged.\n"
    fill(place, {"n": 1, "model": "a"}).close()
    assert run("export", "best", str(tmp_path / "out"))[0] == 0
    assert run("gc", "--older-than", "30d")[1] == "0 entries, 0 B removed\n"
    assert run("gc", "--older-than", "soon")[0] == 2
    assert run("rm", "best") == (1, f"whence: gradients {entry.key[:12]} is called 'best'.\n"
                                    "  To remove it all the same, add --force.\n")  # fmt: skip
    assert run("rm", "best", key[:10], "--force")[0] == 0
    assert run("ls")[1].endswith("0 entries, 0 B\n--out FILE writes a file\n")
    code, printed = run("info", "nothing")
    assert code == 1
    assert "No entry is called 'nothing'" in printed


def test_a_damaged_name_locks_nothing_and_is_found(place, capsys):
    entry, other = fill(place, {"n": 1}), fill(place, {"n": 2})
    for name, named in (("best", entry), ("second", other)):
        place.name(name, named)
    path = Path(place.root) / "v1/refs/best.json"
    text = path.read_text()
    for damaged in (text[: len(text) // 2], text.replace('"best"', '"Best"'), "{}", "[1]", "\x00"):
        path.write_text(damaged)
        assert place.refs() == {"second": other.key}
        assert len(place.listing()) == 2
        assert place.get("second").key == other.key
        assert verify_names(place)[0].path == "v1/refs/best.json"
        for command in (["ls"], ["info", entry.key[:12]], ["pin", entry.key[:12]], ["gc", "--older-than", "1d"]):
            assert main(["cache", *command, "--store", place.root]) == 0
        assert main(["cache", "verify", "--store", place.root]) == 1
        assert "v1/refs/best.json" in capsys.readouterr().out
    path.write_text(text.replace('"best"', '"Best"'))
    for opened in (entry, other):
        opened.close()
    for key in (entry.key, other.key):
        place.pin("gradients", key, False)
        age(place, key, 9)
    assert collect(place, older_than=1.0) == []  # the damaged name may be this entry's
    assert main(["cache", "repair", "--store", place.root]) == 0
    assert (path.exists(), verify_names(place)) == (False, [])
    remove(place, "gradients", entry.key)


def test_a_damaged_hash_of_a_model_locks_nothing(place):
    hashed = model_fingerprint(nn.Linear(2, 2))
    place.remember(hashed)
    path = Path(place.root) / f"v1/fingerprints/{hashed.hex}.json"
    path.write_bytes(path.read_bytes()[:-9])
    assert place.differing_tensors(hashed.hex, hashed.hex) is None
    assert repair_names(place) == [f"v1/fingerprints/{hashed.hex}.json"]
    place.remember(hashed)
    assert place.differing_tensors(hashed.hex, hashed.hex) == ()


def test_a_sealed_entry_whose_header_is_lost_is_found_and_built_again(place):
    entry = fill(place, {"n": 1})
    before = entry.read("x").tobytes()
    entry.close()
    (folder(place, entry.key) / "entry.json").unlink()
    assert not place.has("gradients", {"n": 1})
    assert [line.state for line in place.listing()] == ["damaged"]
    assert [fault.path for fault in verify(place, "gradients", entry.key)] == ["entry.json"]
    again = fill(place, {"n": 1})
    assert (again.sealed, again.read("x").tobytes()) == (True, before)
    assert verify(place, "gradients", entry.key) == []
    again.close()
    (folder(place, entry.key) / "entry.json").unlink()
    assert repair(place, "gradients", entry.key).removed
    assert list(place.contents()) == []


def test_stray_temporary_files_are_swept_wherever_they_are(place):
    entry = fill(place, {"n": 1})
    place.name("best", entry)
    place.pin("gradients", entry.key)
    strays = [Path(place.root) / "v1" / part / ".tmp-1-ab" for part in ("refs", "pins", "fingerprints", "scores/0a/0a")]
    for stray in strays:
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.touch()
    young = strays[0].with_name(".tmp-2-cd")
    young.touch()
    for stray in strays:
        os.utime(stray, (0, 0))
    collect(place, older_than=1e9)
    assert [stray.exists() for stray in (*strays, young)] == [False] * 4 + [True]


@pytest.mark.parametrize("sizes", [(10**12, 1), (2**60, 2**59), (2**40, 1)])
def test_signed_headers_with_absurd_sizes_are_refused_quickly(place, sizes):
    rows, shard_rows = sizes
    entry = fill(place, {"n": 1})
    entry.close()
    path = folder(place, entry.key) / "entry.json"
    document = json.loads(path.read_bytes())
    del document["digest"]
    document["grid"] = {"rows": rows, "shard_rows": shard_rows, "whole": False}
    for spec in document["arrays"].values():
        spec["shape"][0] = rows
    path.write_bytes(sign(document))
    began = time.monotonic()
    assert verify(place, "gradients", entry.key)
    assert place.listing()
    repair(place, "gradients", entry.key)
    assert time.monotonic() - began < 10


def test_a_grid_that_its_arrays_do_not_have_is_refused(place):
    entry = fill(place, {"n": 1})
    path = folder(place, entry.key) / "entry.json"
    document = json.loads(path.read_bytes())
    del document["digest"]
    document["grid"]["rows"] = 10**15
    path.write_bytes(sign(document))
    with pytest.raises(errors.CorruptEntry, match="impossible shards"):
        place.get(entry.key)
