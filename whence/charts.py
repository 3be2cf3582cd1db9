"""What the joint report draws: a chart as SVG in the page's own colours, and strips of images as PNG."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from .story import Deleted

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 44, 96, 14, 42
LOWEST, HIGHEST = 0.05, 200.0  # percent of retraining
LINE = 13  # between two labels


def against_compute(rows: Sequence["Deleted"]) -> str:
    """p95 of KLoM on the forget set against compute on a logarithmic axis; the null row and doing nothing as lines."""
    null, nothing, *methods = rows
    most = 1.05 * max(row.p95 for row in rows)

    def x(percent: float) -> float:
        share = np.log(np.clip(percent, LOWEST, HIGHEST) / LOWEST) / np.log(HIGHEST / LOWEST)
        return float(LEFT + (WIDTH - LEFT - RIGHT) * share)

    def y(value: float) -> float:
        return float(TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / most))

    parts = []
    for tick in np.arange(0, most, max(1, round(most / 6))):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in (0.1, 1, 10, 100):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{tick:g} %</text>')
    for row, kind in ((null, "help"), (nothing, "hinder")):
        line = f"{LEFT},{y(row.p95):.1f} {WIDTH - RIGHT},{y(row.p95):.1f}"
        parts.append(f'<polyline class="{kind}" points="{line}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 5}" y="{y(row.p95) + 4:.1f}">{escape(row.method)}</text>')
    taken = [(WIDTH - RIGHT + 5.0, y(row.p95) + 4) for row in (null, nothing)]
    for row in sorted(methods, key=lambda row: -row.p95):
        at, top = x(100 * (row.compute or 0.0)), y(row.p95)
        label = top - 6 if abs(top - y(null.p95)) < LINE or abs(top - y(nothing.p95)) < LINE else top + 4
        while any(abs(label - other) < LINE and abs(at - there) < 130 for there, other in taken):
            label += 1 if top < y(null.p95) - 3 * LINE else -1
        taken.append((at, label))
        parts.append(f'<circle cx="{at:.1f}" cy="{top:.1f}" r="4.5"/>')
        right = at < (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            f'<text class="name" x="{at + (8 if right else -8):.1f}" y="{label:.1f}" '
            f'text-anchor="{"start" if right else "end"}">{escape(row.method)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">compute, share of retraining</text>')
    name = "KLoM p95 on the forget set, nats, against compute"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def strip(images: Float[np.ndarray, "n h w"]) -> str:
    """Grey images side by side, a pixel between them, as PNG in base64; each from its 1st to its 99th percentile."""
    from matplotlib.image import imsave

    low, high = np.percentile(images, [1, 99], axis=(1, 2), keepdims=True)
    grey = np.clip((images - low) / np.maximum(high - low, 1e-9), 0, 1)
    framed = np.pad(grey, ((0, 0), (0, 0), (0, 1)), constant_values=0.0)
    whole = np.concatenate(list(framed), axis=1)[:, :-1]
    out = io.BytesIO()
    imsave(out, whole, cmap="gray", vmin=0, vmax=1, format="png")
    return base64.b64encode(out.getvalue()).decode()
