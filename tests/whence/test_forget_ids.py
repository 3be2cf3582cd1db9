"""Ids and settings on the command line: as they stand, named once, and checked before anything is trained."""

from pathlib import Path

import numpy as np
import pytest

from whence.cache import DataError, UsageError
from whence.cli import main
from whence.commands._classifier import listed_ids
from whence.files import LABELLED, labelled_arrays


@pytest.mark.parametrize("name", ["ids.txt", "ids.csv", "ids.json"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=ascii)
def test_every_file_that_select_writes_is_a_forget_set(name: str, mark: str, tmp_path: Path) -> None:
    text = {"ids.txt": "3\r\n17\n", "ids.csv": "id\n3\n17\n", "ids.json": "[3, 17]\n"}[name]
    (tmp_path / name).write_bytes((mark + text).encode())
    assert listed_ids(str(tmp_path / name)).tolist() == [3, 17]
    assert listed_ids("3, 17,").tolist() == [3, 17]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3,17,3", "id 3 is named twice"),
        ("3,1.5", "'1.5' names no example"),
        ("3,99999999999999999999", "names no"),
        ("", "''"),
    ],
)
def test_what_is_no_id_or_named_twice_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        listed_ids(text)


def test_settings_are_checked_before_anything_is_trained(monkeypatch, capsys) -> None:
    def trained(*_: object, **__: object) -> None:
        raise AssertionError("a model is trained")

    monkeypatch.setattr("whence.cache.retrain.bank.Bank.run", trained)
    monkeypatch.setattr("whence.cache.retrain.bank.Bank.train_replicas", trained)
    for arguments in (["run", "--method", "scrub", "--set", "epoks=3"], ["evaluate", "--methods", "dmm,skrub"]):
        assert main(["unlearn", *arguments]) == 2
        assert "Did you mean" in capsys.readouterr().err


def test_labelled_arrays_are_numbers_in_a_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    arrays = {name: np.ones((2, 3)) for name in LABELLED}
    np.savez(path, **arrays)
    assert list(labelled_arrays(str(path))) == list(LABELLED)
    np.savez(path, **arrays | {"x_test": np.array([{}, None], object)})
    with pytest.raises(DataError, match="cannot be read"):
        labelled_arrays(str(path))
    np.savez(path, **{name: arrays[name] for name in LABELLED[:3]})
    with pytest.raises(DataError, match="has no array y_test"):
        labelled_arrays(str(path))
    path.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match="cannot be read"):
        labelled_arrays(str(path))
    with pytest.raises(DataError, match="There is no labelled data set"):
        labelled_arrays("nothing.npz")
