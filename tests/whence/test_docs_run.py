"""Every block of Python in the documents runs, in the order of its page; every command that they show exists."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from tests.whence import tiny
from whence.cli import main
from whence.help import flags
from whence.packages import command_groups

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("explanation/*.md")])
# what a page leaves to its reader
BEFORE = {
    "attrib": """
import torch
from torch import nn
from whence.cache import Examples

train = Examples.of((torch.randn(16, 4).numpy(), torch.arange(16).numpy() % 2))
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
batches = torch.arange(16).split(4)


def loss(model, rows):
    batch = train.batch(rows.numpy())
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

""",
    "unlearn": """
from tests.unlearn import cases

language_model, texts = cases.readers().module(0), cases.text()
""",
}


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all pages, so that the model is trained once."""
    return str(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python")], ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:p95")  # few models show little, and the evaluation says so
def test_python_runs(path: Path, quick: Path, shared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHENCE_CACHE", shared)
    torch.manual_seed(0)
    scope: dict = {"__name__": f"{path.stem}_page"}
    exec(BEFORE.get(path.stem, ""), scope)
    for number, block in enumerate(blocks(path, "python")):
        exec(compile(block, f"{path.name}, python block {number}", "exec"), scope)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_exist(path: Path) -> None:
    """In blocks of shell, and in the text: the command, and each of its options."""
    text = path.read_text("utf-8")
    lines = "\n".join(blocks(path, "sh")).splitlines()
    spans = re.findall(r"`(whence [a-z]+ [a-z]+(?: [^`\n]*)?)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for line in [*lines, *spans]:
        words = shlex.split(line, comments=True)
        if not words or words[0] != "whence" or words[1] not in command_groups() or command_groups()[words[1]].single:
            continue
        known = command_groups()[words[1]].load()
        assert words[2] in known, line
        options = [word.partition("=")[0] for word in words[3:] if word.startswith("--") and word != "--help"]
        assert set(options) <= set(flags(known[words[2]])), line


def test_the_commands_on_rows_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of the section, on the rows of its table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHENCE_CACHE", str(tmp_path / "store"))
    page = (DOCS / "tasks.md").read_text("utf-8")
    (section,) = re.findall(r"^## Rows of a file\n(.*?)(?=^## )", page, re.DOTALL | re.MULTILINE)
    given = [json.loads(row) for row in re.findall(r"^\| `(\{.*?\})` \|", section, re.MULTILINE) if "..." not in row]
    names = {
        "label": "labels",
        "chosen": "preferences",
        "options": "choices",
        "reward": "rewards",
        "completion": "prompts",
    }
    assert len(given) == len(names) + 1
    for row in given:
        name = next((file for column, file in names.items() if column in row), "texts")
        rewards = [{"reward": row["reward"] * n} for n in range(4)] if name == "rewards" else [{}] * 4
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row | more) + "\n" for more in rewards))
    for name in ("my-model", "before"):
        tokenizer = tiny.saved(tmp_path / name, "gpt2", 1)
    np.array([5, 6, 7, 0, 8, 9, 0], np.uint16).tofile(tmp_path / "tokens.bin")
    GPT2ForSequenceClassification(
        GPT2Config(vocab_size=400, n_embd=8, n_layer=1, n_head=2, n_positions=32, pad_token_id=1)
    ).save_pretrained(tmp_path / "my-classifier")
    for file in tokenizer.glob("token*"):
        shutil.copy(file, tmp_path / "my-classifier")
    lines = re.findall(r"^whence (.*)$", section, re.MULTILINE)
    for line in lines:
        assert main([*shlex.split(line), "--quiet", "--method", "identity"]) == 0, line
    assert len(pandas.read_parquet("out/scores.parquet")) == 16
    assert len(lines) == 5
