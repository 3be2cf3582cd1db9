"""Evaluations as a page: KLoM against compute for every method, with the null row and the models left
as they are as lines."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from whence.cache.display import Shown, against_compute, write_page
from whence.cache.display import page as document

from .results import NO_OP, NULL, PARTS, Evaluation, shown


def chart(evaluation: Evaluation, part: str = "forget") -> str:
    """`Evaluation.plot` as SVG for a page."""
    lines = [(name, evaluation[name].klom[part].p95) for name in (NULL, NO_OP)]
    label = f"KLoM p95 on the {part} set, nats, against compute"
    return against_compute(evaluation.compute_and_klom(part), lines, label, "compute, share of retraining")


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
