"""A condensed set for people: the examples as a grid, the training curve and the card, on one page of HTML."""

import base64
import html
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .condensed import Condensed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COLUMNS = 10


def grid(condensed: Condensed, columns: int = MOST_COLUMNS) -> np.ndarray:
    """Images side by side, a row a class, values 0 to 1, [height width 3]: what lies three standard deviations from
    the data's mean or farther is black or white. Vectors become a row of one image, a line an example."""
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


def figure(condensed: Condensed) -> "Figure":
    """The grid beside the training curve (matching loss of every outer step)."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(8, 4), layout="constrained")
    left, right = page.subplots(1, 2)
    left.imshow(grid(condensed), interpolation="nearest", aspect="auto" if condensed.x.ndim == 2 else "equal")
    left.set(xticks=[], yticks=[], title=f"{len(condensed)} examples, a row a class")
    right.plot(np.arange(1, len(condensed.losses) + 1), condensed.losses, linewidth=1)
    right.set(xlabel="outer step", ylabel="matching loss", title=str(condensed.about.get("method", "")))
    return page


def report(condensed: Condensed, path: str | Path, title: str = "A condensed set") -> Path:
    """Write one page of HTML with everything in it. Returns its path."""
    image = io.BytesIO()
    figure(condensed).savefig(image, format="png", dpi=130)
    rows = [(name, value) for name, value in condensed.about.items() if name != "settings"]
    rows += list(dict(condensed.about.get("settings", {})).items())
    table = "\n".join(f"<tr><th>{html.escape(str(n))}</th><td>{html.escape(_text(v))}</td></tr>" for n, v in rows)
    picture = base64.b64encode(image.getvalue()).decode()
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}}
img{{max-width:100%}} th{{text-align:left;font-weight:500;padding-right:1.5rem;vertical-align:top}}
td{{overflow-wrap:anywhere}}</style></head>
<body><h1>{html.escape(title)}</h1>
<img alt="the examples and the training curve" src="data:image/png;base64,{picture}">
<h2>Card</h2><table>{table}</table></body></html>
"""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    return path


def _text(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else str(value)
