"""The evaluation as a table and as a page: KLoM against compute for every method, the null row drawn in."""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache import DataError

from .evaluate import NOTHING, NULL, PARTS, Evaluation, Row
from .metrics import KLoM, Summary

if TYPE_CHECKING:
    import xarray

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}
tr.null{background:#eef6ee}tr.nothing{background:#f7f0ec}img{max-width:100%}small{color:#666}"""


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


def plot(evaluation: Evaluation) -> bytes:
    """PNG: p95 of KLoM on each part against compute (log scale), the null row as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
    methods = [row for row in evaluation.rows if row.method not in (NULL, NOTHING)]
    for axis, part in zip(axes, PARTS):
        axis.axhline(evaluation[NULL].klom[part].p95, color="green", ls="--", lw=1, label="oracles (null)")
        axis.axhline(evaluation[NOTHING].klom[part].p95, color="brown", ls=":", lw=1, label="do nothing")
        for k, row in enumerate(methods):
            x = max(100 * row.ratio, 0.01)
            axis.plot(x, row.klom[part].p95, color=f"C{k % 10}", marker="os^Dv"[k // 10 % 5])
            axis.annotate(row.method, (x, row.klom[part].p95), fontsize=7, xytext=(3, 3), textcoords="offset points")
        axis.set(xscale="log", xlabel="compute, % of retraining", title=part)
    axes[0].set_ylabel("KLoM p95, nats")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def page(evaluations: Sequence[Evaluation], title: str = "Unlearning against oracles") -> str:
    """One self-contained HTML page with a table and a plot for every forget set."""
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"]
    parts.append(f"<h1>{html.escape(title)}</h1>")
    for evaluation in evaluations:
        image = base64.b64encode(plot(evaluation)).decode()
        parts.append(
            f"<h2>{html.escape(evaluation.title or 'forget set')} ({evaluation.forgotten} examples)</h2>"
            f"<p>KLoM {html.escape(evaluation.metric.direction)}, {evaluation.models} models a side, "
            f"{evaluation.bins} bins. The null row is oracles against other oracles: noise, which no method "
            "can beat.</p>"
            f'<img alt="KLoM against compute" src="data:image/png;base64,{image}">{_html_table(evaluation)}'
        )
    return "\n".join(parts)


def _html_table(evaluation: Evaluation) -> str:
    lines = table(evaluation).splitlines()
    cells = [[html.escape(c.strip()) for c in line.strip("|").split("|")] for line in [lines[0], *lines[2:]]]
    kind = {NULL: "null", NOTHING: "nothing"}
    out = ["<table><tr>" + "".join(f"<th>{c}</th>" for c in cells[0]) + "</tr>"]
    for row, line in zip(evaluation.rows, cells[1:]):
        settings = html.escape(row.settings)
        out.append(
            f'<tr class="{kind.get(row.method, "")}" title="{settings}">'
            + "".join(f"<td>{c}</td>" for c in line)
            + "</tr>"
        )
    return "".join(out) + "</table>"


def save(evaluations: Sequence[Evaluation], path: str | Path, title: str = "Unlearning against oracles") -> Path:
    """Write the page; returns where it is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(evaluations, title))
    return path
