"""The evaluation as plots and as a page: KLoM against compute for every method, with the null row and the models left
as they are as lines."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from whence.cache.display import Shown, against_compute, axes_or_new, write_page
from whence.cache.display import page as document

from .results import NO_OP, NULL, PARTS, Evaluation, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _points(evaluation: Evaluation, part: str) -> list[tuple[str, float, float]]:
    """(method, compute in percent of retraining, p95 of KLoM) without the two rows to compare with."""
    rows = (row for row in evaluation.rows if row.method not in (NULL, NO_OP))
    return [(row.method, 100 * row.ratio, row.klom[part].p95) for row in rows]


def plot(evaluation: Evaluation, part: str = "forget", ax: "Axes | None" = None) -> "Axes":
    """p95 of KLoM (nats) on one part against compute (percent of retraining, logarithmic), one point per method; the
    null row and the models left as they are as lines. Returns the axes."""
    axes = axes_or_new(ax, 5.0, 3.8)
    for name, color, style in ((NULL, "green", "--"), (NO_OP, "brown", ":")):
        axes.axhline(evaluation[name].klom[part].p95, color=color, ls=style, lw=1, label=name)
    for k, (name, percent, value) in enumerate(_points(evaluation, part)):
        x = max(percent, 0.01)
        axes.plot(x, value, color=f"C{k % 10}", marker="os^Dv"[k // 10 % 5])
        axes.annotate(name, (x, value), fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set(xscale="log", xlabel="compute, % of retraining", ylabel="KLoM p95, nats", title=part)
    axes.legend(fontsize=7)
    return axes


def chart(evaluation: Evaluation, part: str = "forget") -> str:
    """The same as SVG for a page."""
    lines = [(name, evaluation[name].klom[part].p95) for name in (NULL, NO_OP)]
    label = f"KLoM p95 on the {part} set, nats, against compute"
    return against_compute(_points(evaluation, part), lines, label, "compute, share of retraining")


def plot_margins(
    before: Float[np.ndarray, " e"],
    after: Float[np.ndarray, " e"],
    oracles: Float[np.ndarray, " f"],
    ax: "Axes | None" = None,
) -> "Axes":
    """One point's margins (in nats of log-odds) over the models before, after, and over the oracles, as histograms on
    one set of bins: what KLoM compares. Returns the axes."""
    axes, every = axes_or_new(ax), np.concatenate([before, after, oracles])
    edges = np.linspace(every.min(), every.max() + 1e-9, 16)
    for name, values in {"before": before, "after": after, "oracles": oracles}.items():
        axes.hist(values, edges.tolist(), histtype="step", linewidth=1.6, density=True, label=name)
    axes.set(xlabel="margin, nats", ylabel="density over models")
    axes.legend(frameon=False)
    return axes


def page(evaluations: Sequence[Evaluation], title: str = "Unlearning against oracles") -> str:
    """One self-contained HTML page with a table and a chart per part for every forget set."""
    parts: list[str | Shown] = []
    for evaluation in evaluations:
        charts = "".join(f"<div><h2>KLoM p95, nats: {part}</h2>{chart(evaluation, part)}</div>" for part in PARTS)
        parts.append(f"<h2>{escape(evaluation.title or 'forget set')} ({evaluation.forgotten} examples)</h2>")
        parts += [f'<section class="panel">{charts}</section>', shown(evaluation)]
    return document(title, *parts)


def save(evaluations: Sequence[Evaluation], path: str | Path, title: str = "Unlearning against oracles") -> Path:
    """Write the page; returns where it is. Raises ResourceError when the file cannot be written."""
    return write_page(page(evaluations, title), path)
