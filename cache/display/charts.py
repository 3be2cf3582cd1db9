"""Small charts as SVG, in the page's own colours, so that they follow its theme; no library, no script."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float

DECADES = 5.0  # of influence below the largest
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LINE = 13  # height of a label

Number = float | int | np.number


@dataclass
class _Chart:
    """A drawing surface. across, up: value -> share of the width from the left, of the height from the bottom."""

    width: int
    height: int
    left: int
    right: int
    across: Callable[[Any], Any]
    up: Callable[[Any], Any]
    top: int = 12
    bottom: int = 36
    parts: list[str] = field(default_factory=list)

    def x(self, value: Number) -> float:
        return float(self.left + (self.width - self.left - self.right) * self.across(value))

    def y(self, value: Number) -> float:
        return float(self.top + (self.height - self.top - self.bottom) * (1 - self.up(value)))

    def text(self, x: Number, y: Number, text: str, anchor: str = "middle", kind: str = "") -> None:
        name = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, points: Sequence[tuple[Number, Number]], kind: str) -> None:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline class="{kind}" points="{joined}"/>')

    def ticks(self, across: Sequence[tuple[Number, str]], up: Sequence[tuple[Number, str]], name: str) -> None:
        """Grid lines with their labels, and the name of the horizontal axis."""
        low, end = self.height - self.bottom, self.width - self.right
        for value, label in up:
            self.line([(self.left, self.y(value)), (end, self.y(value))], "grid")
            self.text(self.left - 6, self.y(value) + 4, label, "end")
        for value, label in across:
            self.line([(self.x(value), self.top), (self.x(value), low)], "grid")
            self.text(self.x(value), low + 14, label)
        self.text((self.left + end) / 2, self.height - 4, name)

    def svg(self, label: str) -> str:
        head = f'<svg viewBox="0 0 {self.width} {self.height}" role="img" font-size="11" aria-label="{escape(label)}">'
        return head + "".join(self.parts) + "</svg>"


def tails(values: Float[np.ndarray, " n"] | Sequence[float]) -> str:
    """Rank against size of influence, both on logarithmic scales: one line for the positive values, a dashed one for
    the negative. A few values that carry most of the sum make a steep line."""
    values = np.asarray(values, np.float64)
    lines = {"help": np.sort(values[values > 0])[::-1], "hinder": np.sort(-values[values < 0])[::-1]}
    if not any(len(line) for line in lines.values()):
        return ""
    high = float(np.ceil(np.log10(max(float(line[0]) for line in lines.values() if len(line))) * 2) / 2)
    far = max(float(np.log10(max(len(line) for line in lines.values()))), 0.5)
    chart = _Chart(340, 210, 52, 10, lambda rank: np.log10(rank) / far, lambda log: 1 - (high - log) / DECADES)
    powers = range(int(np.ceil(high - DECADES)), int(np.floor(high)) + 1)
    chart.ticks(
        [(10.0**power, f"{10**power:,}") for power in range(int(far) + 1)],
        [(power, f"10{str(power).translate(RAISED)}") for power in powers],
        "rank",
    )
    for name, line in lines.items():
        if len(line):
            ranks = np.unique(np.geomspace(1, len(line), min(len(line), 120)).round().astype(int))
            logs = np.log10(np.maximum(line[ranks - 1], 1e-300))
            chart.line([(chart.x(r), chart.y(v)) for r, v in zip(ranks, logs) if v >= high - DECADES], name)
    return chart.svg("Influence by rank, logarithmic")


def bars(values: Sequence[Sequence[Any]], label: str = "Influence by layer") -> str:
    """A horizontal bar per (name, value), to the right of zero when the value is positive."""
    if not values:
        return ""
    step, left = 19, 7 * min(max(len(name) for name, _ in values), 24) + 8
    low, high = min(0.0, *(v for _, v in values)), max(0.0, *(v for _, v in values))
    span = (high - low) or 1.0
    chart = _Chart(340, 8 + step * len(values), left, 62, lambda value: (value - low) / span, abs)
    for row, (name, value) in enumerate(values):
        top, start, end = 4 + row * step, *sorted((chart.x(0), chart.x(value)))
        chart.text(left - 6, top + 11, name[-24:], "end")
        kind, width = "help" if value >= 0 else "hinder", max(end - start, 1)
        chart.parts.append(f'<rect class="{kind}" x="{start:.1f}" y="{top}" width="{width:.1f}" height="13" rx="2"/>')
        chart.text(end + 5, top + 11, f"{value:.2g}", "start")
    return chart.svg(label)


def against_compute(
    points: Sequence[tuple[str, Number, Number]], lines: Sequence[tuple[str, Number]], label: str, name: str
) -> str:
    """Values against a share of compute, in percent on a logarithmic axis.

    Args:
        points: (name, percent, value) of every method.
        lines: (name, value) of up to two levels to compare with: the first solid, the second dashed.
        label: what the chart shows, for readers who cannot see it.
        name: of the horizontal axis.
    """
    lowest, highest = 0.05, 200.0
    most = 1.05 * max([1e-9, *(value for *_, value in points), *(value for _, value in lines)])

    def across(percent: Number) -> float:
        return float(np.log(np.clip(percent, lowest, highest) / lowest) / np.log(highest / lowest))

    chart = _Chart(560, 320, 44, 96, across, lambda value: value / most, 14, 42)
    step = float(f"{most / 6:.0e}")
    chart.ticks(
        [(tick, f"{tick:g} %") for tick in (0.1, 1, 10, 100)],
        [(tick, f"{tick:g}") for tick in np.arange(0, most, step)],
        name,
    )
    taken: list[tuple[float, float]] = []
    levels = [chart.y(value) for _, value in lines]
    for (title, value), kind in zip(lines, ("help", "hinder")):
        end, height = chart.width - chart.right, chart.y(value)
        chart.line([(chart.left, height), (end, height)], kind)
        at = height + 4
        while any(abs(at - other) < LINE for _, other in taken):
            at += 1 if height > chart.y(lines[0][1]) else -1
        chart.text(end + 5, at, title, "start")
        taken.append((end + 5.0, at))
    for title, percent, value in sorted(points, key=lambda point: -point[2]):
        x, y = chart.x(percent), chart.y(value)
        at = y - 6 if any(abs(y - level) < LINE for level in levels) else y + 4
        while any(abs(at - other) < LINE and abs(x - there) < 130 for there, other in taken):
            at += 1 if levels and y < levels[0] - 3 * LINE else -1  # down when there is room above the lowest level
        taken.append((x, at))
        chart.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        right = x < (chart.left + chart.width - chart.right) / 2
        chart.text(x + (8 if right else -8), at, title, "start" if right else "end", "name")
    return chart.svg(label)
