"""A condensed set to look at: the examples as a grid, the training curve and the card, on one page of HTML."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from whence.cache.display import Shown, axes_or_new, facts, page, picture, write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 10


@runtime_checkable
class SyntheticSet(Protocol):
    """What is shown of a condensed set: its examples x [n ...] with labels [n c], losses [outer], and its card."""

    @property
    def x(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def losses(self) -> np.ndarray: ...
    @property
    def about(self) -> Mapping[str, Any]: ...
    def __len__(self) -> int: ...


def grid(condensed: SyntheticSet, columns: int = MOST_COLUMNS) -> np.ndarray:
    """Images side by side, one row per class, values 0 to 1, [height width 3]: what lies three standard deviations from
    the data's mean or farther is black or white. Vectors become a row of one image, one line per example."""
    x = np.clip(condensed.x / 6 + 0.5, 0, 1)
    classes = condensed.labels.shape[1]
    if x.ndim == 2:
        return np.repeat(x[..., None], 3, -1)
    per_class = len(x) // classes
    x = x.reshape(classes, per_class, *x.shape[1:])[:, :columns]
    x = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1.0)
    rows, count, h, w, channels = x.shape
    tiled = x.transpose(0, 2, 1, 3, 4).reshape(rows * h, count * w, channels)
    return np.repeat(tiled, 3, -1) if channels == 1 else tiled[..., :3] if channels >= 3 else tiled[..., [0, 0, 0]]


def plot_examples(condensed: SyntheticSet, ax: "Axes | None" = None) -> "Axes":
    """The examples as a picture (`grid`). Returns the axes."""
    axes = axes_or_new(ax, 4.0, 4.0)
    axes.imshow(grid(condensed), interpolation="nearest", aspect="auto" if condensed.x.ndim == 2 else "equal")
    axes.set(xticks=[], yticks=[], title=f"{len(condensed)} examples, one row per class")
    return axes


def plot_losses(condensed: SyntheticSet, ax: "Axes | None" = None) -> "Axes":
    """Matching loss (sum over classes and layers of 1 - cosine, no unit) of every outer step. Returns the axes."""
    axes = axes_or_new(ax)
    axes.plot(np.arange(1, len(condensed.losses) + 1), condensed.losses, linewidth=1)
    axes.set(xlabel="outer step", ylabel="matching loss", title=str(condensed.about.get("method", "")))
    return axes


def figure(condensed: SyntheticSet) -> "Figure":
    """The grid beside the training curve (matching loss of every outer step)."""
    from matplotlib.figure import Figure

    whole = Figure(figsize=(8, 4), layout="constrained")
    left, right = whole.subplots(1, 2)
    plot_examples(condensed, left)
    plot_losses(condensed, right)
    return whole


def card(condensed: SyntheticSet) -> Shown:
    """What the set is, how it was computed, and what was measured."""
    pairs = [(name, value) for name, value in condensed.about.items() if name != "settings"]
    pairs += list(dict(condensed.about.get("settings", {})).items())
    return facts(repr(condensed), [(str(name), _text(value)) for name, value in pairs])


def report(condensed: SyntheticSet, path: str | Path, title: str = "A condensed set") -> Path:
    """Write one HTML page with everything in it and return its path. Raises ResourceError when it cannot be written."""
    image = picture(figure(condensed), "the examples and the training curve")
    return write_page(page(title, image, "<h2>Card</h2>", card(condensed)), path)


def _text(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else str(value)
