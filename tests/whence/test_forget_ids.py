"""Ids and settings on the command line: as they stand, named once, and checked before anything is trained."""

from pathlib import Path

import pytest

from whence.cache import UsageError
from whence.cli import main
from whence.commands._classifier import listed_ids


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
