"""Every block of Python in the documents runs, in the order of its page; every command that they show exists."""

import re
import shlex
from pathlib import Path

import pytest
import torch

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
