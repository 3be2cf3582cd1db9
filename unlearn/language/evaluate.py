"""All metrics of one language model on one set of data, beside those of a model that never read what was forgotten."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from whence.cache import UsageError
from whence.cache.display import Cell, Interval
from whence.cache.errors import check_known

from ..tables import ResultTable, between, row_of
from .data import EvaluationData
from .metric import LanguageMetric, Measured, Session
from .reader import Reader
from .registry import METRICS

HEAD = ("metric", "value", "90 %", "retain model", "better", "items", "source")


class MetricRow(NamedTuple):
    """One metric. value: with a 90 % interval over items where it is a mean of them. retain: the retain model's own
    value, NaN if the metric is a comparison with it or there is none. parts: values that it is made of."""

    metric: LanguageMetric
    value: Interval
    retain: float
    items: int
    parts: dict[str, float]


@dataclass(frozen=True, eq=False)
class LanguageEvaluation(ResultTable):
    """Metrics that were measured, and why others were not."""

    head = HEAD
    measured: tuple[MetricRow, ...]
    skipped: dict[str, str]

    def __getitem__(self, name: str) -> MetricRow:
        return row_of({row.metric.name: row for row in self.measured}, name, self.skipped.get(name, ""))

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a row, with plain values, parts as rows of their own."""
        out = []
        for row in self.measured:
            about = {"better": row.metric.better, "items": row.items, "source": row.metric.source}
            plain = {"value": row.value.value, "low": row.value.low, "high": row.value.high, "retain": row.retain}
            out.append({"metric": row.metric.name, **plain, **about, "settings": str(row.metric)})
            out += [{"metric": f"{row.metric.name}: {part}", "value": value} for part, value in row.parts.items()]
        return out

    def facts(self) -> dict[str, Any]:
        """Rows, and what was not measured, as `--json` prints them."""
        return {"metrics": self.rows(), "not measured": self.skipped}

    def cells(self) -> list[list[Any]]:
        out: list[list[Any]] = []
        for row in self.measured:
            own, retain = (Cell(_text(value), value) for value in (row.value.value, row.retain))
            about = (row.metric.better, row.items, row.metric.source)
            out.append([row.metric.name, own, between(row.value, 3), retain, *about])
        return out

    def notes(self) -> list[str]:
        return [f"not measured: {name} ({why})" for name, why in self.skipped.items()]


def evaluate(
    model: Reader,
    data: EvaluationData,
    *,
    retain: Reader | None = None,
    metrics: Sequence[str | LanguageMetric] | None = None,
    resamples: int = 500,
) -> LanguageEvaluation:
    """Measure a language model, and a retain model beside it.

    Args:
        model: what is judged.
        data: questions, passages, texts and choices; metrics that lack their part are named with the reason.
        retain: a model that was trained without what is forgotten. Forget quality needs it; the value to meet for most.
        metrics: names, or metrics with settings of their own; all of `METRICS` by default.
        resamples: of the items, for the intervals of means; 0 for none.

    Raises UsageError for a name that is not known, or a named metric that cannot be measured on these data.
    """
    chosen = [METRICS[name]() for name in METRICS] if metrics is None else [_metric(one) for one in metrics]
    sessions = [Session(reader, data) for reader in (model, retain) if reader is not None]
    measured, skipped = [], {}
    for metric in chosen:
        why = metric.missing(data)
        if why is None:
            own, *other = (metric.measure(session) for session in sessions)
            found = metric.compared(own, other[0] if other else None)
            if found is not None:
                measured.append(_row(metric, found, other[0] if other else None, resamples))
                continue
            why = "it is a comparison with a retain model, and none was given"
        if metrics is not None:
            raise UsageError(f"{metric.name} cannot be measured: {why}.", "Give what it needs, or leave it out.")
        skipped[metric.name] = why
    return LanguageEvaluation(tuple(measured), skipped)


def _text(value: float) -> str:
    """Three decimals; a small p-value by its power of ten."""
    if np.isnan(value):
        return ""
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"


def _metric(given: str | LanguageMetric) -> LanguageMetric:
    if isinstance(given, LanguageMetric):
        return given
    check_known("metric", given, METRICS)
    return METRICS[given]()


def _row(metric: LanguageMetric, found: Measured, retain: Measured | None, resamples: int) -> MetricRow:
    own = np.nan if retain is None or metric.against else retain.value
    value, each = Interval(found.value, level=0.9), found.each
    if resamples and not found.parts and np.isclose(found.value, each.mean()) and len(each) > 1:
        value = Interval.bootstrap(each, resamples=resamples, level=0.9)
    return MetricRow(metric, value, own, len(each), dict(found.parts))
