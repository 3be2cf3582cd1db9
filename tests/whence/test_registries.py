"""The registries of methods and the command line offer the same choices."""

import json
from dataclasses import fields

import pytest

from whence import attrib, decomp, unlearn
from whence.cli import main
from whence.unlearn import condense

LISTED = {"attrib": attrib.METHODS, "unlearn": unlearn.METHODS, "condense": condense.METHODS}


@pytest.mark.parametrize("group", LISTED)
def test_methods_lists_the_registry(group: str, capsys) -> None:
    assert main([group, "methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(LISTED[group])
    for name, method in LISTED[group].items():
        kind = method if isinstance(method, type) else type(method)
        assert set(rows[name]["settings"]) == {field.name for field in fields(kind)}
        assert rows[name]["what"]
    assert main([group, "methods"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in rows)


def test_every_builder_is_in_the_help_of_decomp_build(capsys) -> None:
    assert main(["decomp", "build", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(name in printed for name in decomp.BUILDERS)


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        (["attrib", "fit", "--method", "none"], attrib.METHODS),
        (["unlearn", "run", "--method", "none", "--models", "1", "--epochs", "1"], unlearn.METHODS),
        (["condense", "run", "--method", "none"], condense.METHODS),
    ],
)
def test_an_unknown_method_is_wrong_usage(arguments, known, capsys, tmp_path, monkeypatch, request) -> None:
    monkeypatch.setenv("WHENCE_CACHE", str(tmp_path))
    if arguments[0] == "attrib":
        request.getfixturevalue("quick")
    assert main([*arguments, "--quiet"] if arguments[0] != "unlearn" else arguments) == 2
    assert next(iter(known)) in capsys.readouterr().err
