"""The errors that a newcomer meets first: each says what is wrong and what to do, before any long work."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from whence import cli

from .tiny import saved, texts_file

MODEL = "--model model --data texts.jsonl --quiet"
QUERY = "--prompt=the_quick --completion=_brown_fox"
LONG = f"--prompt=the_quick --completion={40 * '_brown_fox'}"
# what is typed (a _ in a query is a space), the exit code, what the error says, what it says to do
ERRORS = [
    ("atrib", 2, "no command called 'atrib'", "Did you mean 'attrib'?"),
    ("attrib scroe", 2, "no command of attrib called 'scroe'", "Did you mean 'score'?"),
    ("attrib score --promt x", 2, "has no option '--promt'", "Did you mean '--prompt'?"),
    ("attrib score hello", 2, "has no argument 'hello'", "quote a text with spaces"),
    (f"attrib score --model nowhere --data texts.jsonl {QUERY}", 1, "no folder or file 'nowhere'", "config.json"),
    (f"attrib score --model notok --data texts.jsonl {QUERY}", 1, "notok has no tokenizer", "save_pretrained"),
    (f"attrib score --model empty --data texts.jsonl {QUERY}", 1, "empty has no weights", "safetensors"),
    (f"attrib score --model w.pt --data texts.jsonl {QUERY}", 1, "is a file of weights", "save_pretrained(FOLDER)"),
    (f"attrib score --model model --data none.jsonl {QUERY}", 1, "There is no file none.jsonl", "Check the path"),
    (f"attrib score --model model --data a.docx {QUERY}", 2, "kind of file cannot be read", ".jsonl"),
    (f"attrib score --model model --data column.jsonl {QUERY}", 1, "no column of text called 'text'", "It has: body"),
    (f"attrib score --model model --data broken.jsonl {QUERY}", 1, "broken.jsonl, line 2 is not JSON", "per line"),
    (f"attrib score {MODEL}", 2, "There is no query", "--prompt and --completion"),
    (f"attrib score {MODEL} --prompt x", 2, "A query has a prompt and a completion", "Give both"),
    (f"attrib score {MODEL} {QUERY} --sites *.mpl.*", 1, "No site matches '*.mpl.*'", "whence attrib sites"),
    (f"attrib score {MODEL} {QUERY} --method ekfca", 2, "no method 'ekfca'", "Did you mean 'ekfac'?"),
    (f"attrib score {MODEL} {QUERY} --set labls=true", 2, "ekfac has no setting 'labls'", "Did you mean 'labels'?"),
    (f"attrib score {MODEL} {QUERY} --set labels", 2, "labels has no value", "labels=VALUE"),
    (f"attrib score {MODEL} {LONG}", 1, "the model reads at most 64", "a shorter prompt"),
    (f"attrib score {MODEL} {QUERY} --length 4096", 2, "at most 64 tokens, not 4096", "--length 64 or less"),
    (f"attrib score {MODEL} {QUERY} --device cuda:9", 1, "cannot be moved to cuda:9", "Leave --device out"),
    (f"attrib score {MODEL} {QUERY} --memory lots", 2, "--memory cannot be 'lots'", "4GB"),
    (f"attrib score {MODEL} {QUERY} --out scores.xlsx", 2, "--out cannot be 'scores.xlsx'", ".csv"),
    (f"attrib tokens {MODEL} {QUERY} --out tokens.pdf", 2, "--out cannot be 'tokens.pdf'", ".html"),
    (f"attrib score --model model/config.json --data texts.jsonl {QUERY}", 1, "is a file", "Give its folder, model"),
    (f"decomp build {MODEL} --at blocks.9.hook_out", 1, "no module or hook point 'blocks.9.hook_out'", "Near names"),
    (f"decomp build {MODEL} --builder idta", 2, "no builder 'idta'", "Did you mean 'itda'?"),
    ("decomp evaluate nothing", 1, "no dictionary in nothing", "whence decomp build --out"),
    ("cache info 3fa9", 1, "No entry has a key", "whence cache ls"),
    ("unlearn run --method dmn", 2, "no unlearning method 'dmn'", "Did you mean 'dmm'?"),
    ("unlearn run --set stpes=3", 2, "dmm has no setting", "matching.steps"),
    ("unlearn run --forget random:many", 2, "names no forget set", "random:20"),
    (f"unlearn document {MODEL} --document 3", 2, "not calibrated", "--scale"),
    (
        f"unlearn document {MODEL} --document 77 --scale 1",
        1,
        "No training example has the document 77",
        "Near names: 7",
    ),
    ("condense run --data x.npz", 1, "x.npz has no array x_train", "y_test"),
    ("run none.toml", 2, "Cannot read none.toml", "Give the path"),
    ("run job.toml", 2, "unknown key 'modle'", "Did you mean 'model'?"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, texts, and files with the faults of a first try."""
    here = tmp_path_factory.mktemp("first")
    saved(here / "model", "gpt2")
    texts_file(here / "texts.jsonl", 12)
    for name, lost in {"notok": "tok*", "empty": "*.safetensors"}.items():
        shutil.copytree(here / "model", here / name, ignore=shutil.ignore_patterns(lost))
    files = {
        "broken.jsonl": '{"text": "one"}\n{"text": "tw\n',
        "column.jsonl": '{"body": "one two"}\n',
        "a.docx": "",
        "w.pt": "",
        "job.toml": 'command = "attrib score"\nmodle = "demo"\n',
    }
    for name, text in files.items():
        (here / name).write_text(text)
    np.savez(here / "x.npz", images=np.zeros((3, 4, 4)))
    return here


@pytest.mark.parametrize(("typed", "code", "said", "cure"), ERRORS, ids=[e[0][:60] for e in ERRORS])
def test_says_what_is_wrong_and_what_to_do(
    typed: str, code: int, said: str, cure: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("WHENCE_CACHE", str(place / "store"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = [
        word.replace("_", " ") if word.startswith(("--prompt=", "--completion=")) else word for word in typed.split()
    ]
    assert cli.main(words) == code
    error = capsys.readouterr().err.partition("whence: ")[2]
    cause, _, advice = error.partition("\n  ")
    assert said in cause
    assert cure in advice
    assert "Traceback" not in error
    assert not [*(place / "store").glob("v1/factors/*")], "fitted before the error"
