"""Two small plots as SVG: styled by the page's own colours, so they follow its theme; no library, no script."""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from jaxtyping import Float

Scale = Callable[[float], float]
WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 34
DECADES = 5.0  # of influence below the largest
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def tail(values: Float[np.ndarray, " n"]) -> str:
    """Rank against size of influence, both on logarithmic scales: one line for those that help, one for those that
    hinder. A few passages that carry most of it make a steep line."""
    lines = {"help": np.sort(values[values > 0])[::-1], "hinder": np.sort(-values[values < 0])[::-1]}
    if not any(len(line) for line in lines.values()):
        return ""
    most = max(float(line[0]) for line in lines.values() if len(line))
    longest = max(len(line) for line in lines.values())
    high = np.ceil(np.log10(most) * 2) / 2
    low, far = float(high - DECADES), max(float(np.log10(longest)), 0.5)

    def x(rank: float | int) -> float:
        return float(LEFT + (WIDTH - LEFT - RIGHT) * np.log10(rank) / far)

    def y(log: float | int) -> float:
        return float(TOP + (HEIGHT - TOP - BOTTOM) * (high - log) / (high - low))

    parts = []
    for power in range(int(np.ceil(low)), int(np.floor(high)) + 1):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(power):.1f}" y2="{y(power):.1f}"/>')
        label = f"10{str(power).translate(RAISED)}"
        parts.append(f'<text x="{LEFT - 6}" y="{y(power) + 4:.1f}" text-anchor="end">{label}</text>')
    for power in range(int(np.floor(far)) + 1):
        at = x(10.0**power)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{10**power:,}</text>')
    for name, line in lines.items():
        parts.append(f'<polyline class="{name}" points="{_points(line, low, x, y)}"/>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">rank</text>')
    return _svg(HEIGHT, "Influence by rank, logarithmic", parts)


def _points(line: np.ndarray, low: float, x: Scale, y: Scale) -> str:
    """A polyline's points, about 120 of them, evenly spaced on the logarithmic axis."""
    if not len(line):
        return ""
    ranks = np.unique(np.geomspace(1, len(line), min(len(line), 120)).round().astype(int))
    logs = np.log10(np.maximum(line[ranks - 1], 1e-300))
    return " ".join(f"{x(float(r)):.1f},{y(float(v)):.1f}" for r, v in zip(ranks, logs) if v >= low)


def bars(values: Sequence[tuple[str, float]]) -> str:
    """A horizontal bar a name, to the right of zero where it is positive."""
    if not values:
        return ""
    step, name_width = 19, 7 * min(max(len(name) for name, _ in values), 24) + 8
    lowest, highest = min(0.0, *(v for _, v in values)), max(0.0, *(v for _, v in values))
    span = (highest - lowest) or 1.0
    room = WIDTH - name_width - 62

    def x(value: float | int) -> float:
        return name_width + room * (value - lowest) / span

    parts = []
    for row, (name, value) in enumerate(values):
        top, left, right = 4 + row * step, min(x(0), x(value)), max(x(0), x(value))
        kind = "help" if value >= 0 else "hinder"
        parts.append(f'<text x="{name_width - 6}" y="{top + 11}" text-anchor="end">{escape(name[-24:])}</text>')
        parts.append(
            f'<rect class="{kind}" x="{left:.1f}" y="{top}" width="{max(right - left, 1):.1f}" height="13" rx="2"/>'
        )
        parts.append(f'<text x="{right + 5:.1f}" y="{top + 11}">{value:.2g}</text>')
    return _svg(8 + step * len(values), "Influence by layer", parts)


def _svg(height: float | int, label: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
    return head + "".join(parts) + "</svg>"
