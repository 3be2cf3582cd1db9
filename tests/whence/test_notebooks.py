"""Every notebook runs at a small size; its first cell says what it shows, its last what can go wrong, and its plots
have labels."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from .tiny import saved

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
# what replaces the values of the cell that is tagged "parameters"
SMALL: dict[str, dict[str, Any]] = {
    "01_cache": {"documents": 6},
    "03_dictionaries": {"size": 48, "k": 4, "documents": 16, "sparsities": (1, 4)},
    "04_unlearning": {"training": 100, "models": 8, "subsets": 40, "steps": 4, "size": 8, "epochs": 2},
    "05_condensation": {"outer": 2, "networks": 2, "passes": 4, "matched": "mlp-8"},
    "06_together": {
        "documents": 12,
        "size": 48,
        "k": 4,
        "training": 200,
        "models": 8,
        "epochs": 2,
        "steps": 4,
        "subsets": 40,
        "outer": 2,
        "hidden": 8,
    },
    "07_your_model": {
        "where": "model",
        "passages": 6,
        "chosen": "*.layers.1.mlp.*",
        "layer": "model.layers.1",
        "size": 16,
    },
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all notebooks, so that the model is trained once."""
    return str(tmp_path_factory.mktemp("store"))


@pytest.mark.filterwarnings("ignore:p95")  # eight models show little, and the evaluation says so
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, quick: Path, shared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHENCE_CACHE", shared)
    saved(quick / "model")  # in the place of a real model
    scope: dict[str, Any] = {}
    try:
        for number, cell in enumerate(cells_of(path)):
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), scope)
            if "parameters" in cell["metadata"].get("tags", ()):
                assert set(SMALL[path.stem]) <= set(scope), "the test replaces values that are not there"
                scope |= SMALL[path.stem]
        for axes in (axes for number in plt.get_fignums() for axes in plt.figure(number).axes):
            assert axes.images or axes.get_ylabel() or axes.get_xlabel()
            assert not axes.lines or (axes.get_xlabel() and axes.get_ylabel())
    finally:
        plt.close("all")


def test_there_are_seven() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06", "07"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_short_half_prose_and_stored_without_outputs(path: Path) -> None:
    cells = cells_of(path)
    prose = sum(cell["cell_type"] == "markdown" for cell in cells)
    assert len(cells) < 40
    assert 0.35 < prose / len(cells) < 0.75
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_begins_with_what_it_shows_and_ends_with_what_can_go_wrong(path: Path) -> None:
    first, *_, last = ("".join(cell["source"]) for cell in cells_of(path) if cell["cell_type"] == "markdown")
    assert "**This notebook shows**" in first
    assert last.startswith("## What can go wrong")
    page = re.findall(r"`docs/(\w+\.md)`", last)
    assert len(page) == 1
    assert (path.parents[1] / "docs" / page[0]).exists()


def cells_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text("utf-8"))["cells"]
