"""Answers that are stored: shown without torch and without the model, for the same model, data and code only."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import whence.inputs
from tests.whence import tiny
from whence.cli import main
from whence.commands import _answers

ASKED = ["--prompt", "the quick", "--completion", " brown fox"]
COMMANDS: dict[str, list[str]] = {
    "score": ASKED, "self": [], "tokens": [*ASKED, "--top", "1"], "report": ASKED,
    "query": [*ASKED, "--kind", "random", "--width", "64", "--candidates", "4", "--top", "2"],
    "score, the best only": [*ASKED, "--only-top", "--top", "2"],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    tiny.saved(folder / "model", layers=1)
    tiny.texts_file(folder / "texts.jsonl", 8)
    return folder


def asked(place: Path, name: str, *more: str) -> list[str]:
    own = ["--model", str(place / "model"), "--data", str(place / "texts.jsonl"), "--store", str(place / "store")]
    out = ["--out", str(place / "out" / "report.html")] if name == "report" else ["--json"]
    return ["attrib", name.partition(",")[0], *own, *COMMANDS[name], "--quiet", *out, *more]


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("a model is loaded")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_answer_is_shown_again_without_the_model(name: str, place: Path, capsys: Any, monkeypatch: Any) -> None:
    assert main(["--debug", *asked(place, name)]) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(whence.inputs, "load_model", refuse)
    assert main(["--debug", *asked(place, name)]) == 0
    assert capsys.readouterr().out == first


def test_a_stored_score_needs_no_torch_and_is_listed_and_written_anew(place: Path, capsys: Any) -> None:
    assert main(asked(place, "score", "--sites", "*")) == 0
    first = json.loads(capsys.readouterr().out)["queries"][0]
    arguments = asked(place, "score", "--sites", "*", "--top", "3", "--out", str(place / "scores.parquet"))
    code = f"import sys; from whence.cli import main; assert main({arguments!r}) == 0"
    code += "; assert not {'torch', 'jax', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["queries"][0]["helpful"] == first["helpful"][:3]
    table = pandas.read_parquet(place / "scores.parquet").set_index("train")
    for line in first["helpful"]:
        np.testing.assert_allclose(table.loc[line["id"], "influence"], line["nats"], rtol=1e-6)


def test_another_model_data_or_code_is_another_answer(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    assert main(asked(place, "self")) == 0
    monkeypatch.setattr(whence.inputs, "load_model", refuse)
    tiny.texts_file(tmp_path / "texts.jsonl", 9)
    tiny.saved(tmp_path / "model", layers=1)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-03'))
    for changed in (["--data", str(tmp_path / "texts.jsonl")], ["--model", str(tmp_path / "model")],
                    ["--damping", "0.2"], ["--trust-remote-code"], ["--model", "some/hub-name"]):  # fmt: skip
        with pytest.raises(AssertionError, match="a model is loaded"):
            raise_error(asked(place, "self", *changed))
    monkeypatch.setattr(_answers, "code", lambda: "edited")
    with pytest.raises(AssertionError, match="a model is loaded"):
        raise_error(asked(place, "self"))


def test_a_hub_name_is_its_folder_in_the_local_cache(
    place: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """Offline, or at a commit, a name means these files; else the hub could have newer ones."""
    hub, commit = tmp_path / "models--some--tiny", "0" * 39 + "1"
    shutil.copytree(place / "model", hub / "snapshots" / commit)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(asked(place, "self", "--model", "some/tiny")) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(whence.inputs, "load_model", refuse)
    assert main(asked(place, "self", "--model", "some/tiny")) == 0
    assert capsys.readouterr().out == first
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for revision, known in ((None, None), ("main", None), (commit, hub / "snapshots" / commit)):
        with contextlib.nullcontext() if known else pytest.raises(LookupError):
            assert _answers._downloaded("model", "some/tiny", revision) == known


def raise_error(arguments: list[str]) -> None:
    """Run a command; what it raises is raised."""
    from whence.cli import dispatch

    dispatch(arguments)
