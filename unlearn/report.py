"""The evaluation as a table and as a page: KLoM against compute for every method, the null row drawn in."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from whence.cache import DataError
from whence.cache.display.html import Cell, Shown, axes_or_new, picture, write_page
from whence.cache.display.html import page as document
from whence.cache.display.html import table as show_table

from .evaluate import NOTHING, NULL, PARTS, Evaluation, Row
from .metrics import KLoM, Summary

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes


def table(evaluation: Evaluation) -> str:
    """Markdown: p95 and mean of KLoM by part (nats), the 90 % interval of the forget set's p95, compute over
    retraining, U-LiRA, energy distance and two-sample accuracy on the forget set."""
    head = [part for name in PARTS for part in (f"{name} p95", "mean")]
    head = ["method", head[0], "90 %", *head[1:], "compute", "U-LiRA", "energy", "told apart"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in evaluation.rows:
        lines.append("| " + " | ".join(_cells(row)) + " |")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    f, r, v = (row.klom[part] for part in PARTS)
    interval = f"{f.low:.2f}-{f.high:.2f}" if np.isfinite(f.low) else ""
    name = row.method + (f" ({row.stopped} stopped)" if row.stopped else "")
    return [
        name,
        f"{f.p95:.2f}",
        interval,
        f"{f.mean:.2f}",
        f"{r.p95:.2f}",
        f"{r.mean:.2f}",
        f"{v.p95:.2f}",
        f"{v.mean:.2f}",
        "" if row.method == NOTHING else f"{100 * row.ratio:.1f} %",
        f"{row.u_lira:.2f}",
        f"{row.energy:.2f}",
        f"{row.told_apart:.2f}",
    ]


def to_dataset(evaluation: Evaluation) -> "xarray.Dataset":
    """klom [row, part, statistic] in nats; ratio, passes, seconds, u_lira, energy, told_apart [row]."""
    import xarray as xr

    rows = evaluation.rows
    values = np.array([[list(row.klom[part]) for part in PARTS] for row in rows])
    single = ("ratio", "passes", "seconds", "u_lira", "energy", "told_apart")
    return xr.Dataset(
        {
            "klom": (("row", "part", "statistic"), values),
            **{name: ("row", [getattr(row, name) for row in rows]) for name in single},
        },
        {
            "row": [row.method for row in rows],
            "part": list(PARTS),
            "statistic": ["mean", "p95", "p99", "low", "high"],
        },
        {"models": evaluation.models, "bins": evaluation.bins, "direction": evaluation.metric.direction},
    )


def to_json(evaluation: Evaluation) -> str:
    """Everything in it, to be read back by `from_json`."""
    rows = [row._asdict() | {"klom": {part: s._asdict() for part, s in row.klom.items()}} for row in evaluation.rows]
    settings = {"direction": evaluation.metric.direction, "bins": evaluation.metric.bins}
    document = {"metric": settings, "models": evaluation.models, "forgotten": evaluation.forgotten}
    return json.dumps({**document, "title": evaluation.title, "rows": rows})


def from_json(text: str) -> Evaluation:
    """The evaluation that `to_json` wrote. Raises DataError for anything else."""
    try:
        found = json.loads(text)
        rows = tuple(
            Row(**{**row, "klom": {part: Summary(**s) for part, s in row["klom"].items()}}) for row in found["rows"]
        )
        metric = KLoM(found["metric"]["direction"], found["metric"]["bins"])
        return Evaluation(rows, metric, found["models"], found["forgotten"], found["title"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("This file holds no evaluation.", "Give one that `whence unlearn evaluate` wrote.") from error


def plot(evaluation: Evaluation, part: str = "forget", ax: "Axes | None" = None) -> "Axes":
    """p95 of KLoM (nats) on one part against compute (percent of retraining, logarithmic), a point a method; oracles
    against oracles and doing nothing as lines. Returns the axes."""
    axes = axes_or_new(ax, 5.0, 3.8)
    axes.axhline(evaluation[NULL].klom[part].p95, color="green", ls="--", lw=1, label="oracles (null)")
    axes.axhline(evaluation[NOTHING].klom[part].p95, color="brown", ls=":", lw=1, label="do nothing")
    for k, row in enumerate(row for row in evaluation.rows if row.method not in (NULL, NOTHING)):
        x = max(100 * row.ratio, 0.01)
        axes.plot(x, row.klom[part].p95, color=f"C{k % 10}", marker="os^Dv"[k // 10 % 5])
        axes.annotate(row.method, (x, row.klom[part].p95), fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set(xscale="log", xlabel="compute, % of retraining", ylabel="KLoM p95, nats", title=part)
    axes.legend(fontsize=7)
    return axes


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


def shown(evaluation: Evaluation) -> Shown:
    """The table, sortable: the null row and doing nothing first."""
    head = [c.strip() for c in table(evaluation).splitlines()[0].strip("|").split("|")]
    rows = []
    for row in evaluation.rows:
        f, r, v = (row.klom[part] for part in PARTS)
        keys = (f.p95, f.low, f.mean, r.p95, r.mean, v.p95, v.mean, row.ratio, row.u_lira, row.energy, row.told_apart)
        name, *cells = _cells(row)
        rows.append([name, *(Cell(text, float(key)) for text, key in zip(cells, keys))])
    caption = (
        f"KLoM {evaluation.metric.direction} in nats, {evaluation.models} models a side, {evaluation.bins} bins; "
        f"{evaluation.forgotten} examples forgotten. The null row is oracles against other oracles: noise."
    )
    return show_table(head, rows, caption)


def page(evaluations: Sequence[Evaluation], title: str = "Unlearning against oracles") -> str:
    """One self-contained HTML page with a table and a plot for every forget set."""
    from matplotlib.figure import Figure

    parts = []
    for evaluation in evaluations:
        figure = Figure(figsize=(12, 4), layout="constrained")
        for part, axes in zip(PARTS, figure.subplots(1, 3, sharey=True)):
            plot(evaluation, part, axes)
        parts.append(f"<h2>{html.escape(evaluation.title or 'forget set')} ({evaluation.forgotten} examples)</h2>")
        parts += [picture(figure, "KLoM against compute"), shown(evaluation).html]
    return document(title, *parts)


def save(evaluations: Sequence[Evaluation], path: str | Path, title: str = "Unlearning against oracles") -> Path:
    """Write the page; returns where it is. Raises ResourceError where that cannot be done."""
    return write_page(page(evaluations, title), path)
