"""Two ensembles compared point by point: KLoM in its published forms, with null row, intervals and advice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from whence.cache import DataError
from whence.cache.display import Cell, Interval, axes_or_new, bars
from whence.cache.display import page as document
from whence.cache.errors import check_known

from ..metrics import FEWEST, FORMS, Advice, KLoM, Summary, noise_floor
from ..results import NO_OP, NULL
from ..tables import ResultTable, between, row_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Margins = Mapping[str, Float[np.ndarray, "_ _"]]
UNLEARNED, NOISE = "unlearned", "noise (simulated)"
EFFECTS = (1.0, 0.5)  # standard deviations that the advice is for
HEAD = ("KLoM", "ensemble", "part", "points", "p95", "90 %", "mean", "p99")


class Line(NamedTuple):
    """KLoM of one form, of one ensemble against the oracles, on one part."""

    form: str
    ensemble: str
    part: str
    points: int
    klom: Summary


@dataclass(frozen=True, eq=False)
class Comparison(ResultTable):
    """What `compare` found: a row for each form, ensemble and part (nats; 90 % intervals over models), and the advice.

    models: per side. advice: form -> effect in standard deviations -> `Advice`.
    """

    head = HEAD
    lines: tuple[Line, ...]
    models: int
    advice: Mapping[str, Mapping[float, Advice]]

    def __getitem__(self, key: tuple[str, str, str]) -> Summary:
        """The summary of (form, ensemble, part)."""
        return row_of({line[:3]: line.klom for line in self.lines}, key)

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a row, with plain values: for JSON and tables."""
        return [
            {
                "form": line.form, "ensemble": line.ensemble, "part": line.part, "points": line.points,
                "models": self.models, "p95": line.klom.p95, "low": line.klom.interval.low,
                "high": line.klom.interval.high, "mean": line.klom.mean, "p99": line.klom.p99,
                "hidden": line.klom.hidden, "diverged": line.klom.diverged,
                "source": FORMS[line.form].source if line.form in FORMS else "",
            }
            for line in self.lines
        ]  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """Rows and advice, as `--json` prints them."""
        advice = {form: {str(e): one._asdict() for e, one in each.items()} for form, each in self.advice.items()}
        return {"models": self.models, "rows": self.rows(), "advice": advice}

    def cells(self) -> list[list[Any]]:
        out: list[list[Any]] = []
        for line in self.lines:
            p95, mean, p99 = (
                Cell("" if np.isnan(value) else f"{value:.2f}", value)
                for value in (line.klom.p95, line.klom.mean, line.klom.p99)
            )
            out.append([*line[:4], p95, between(line.klom.interval, 2), mean, p99])
        return out

    def notes(self) -> list[str]:
        """What each form is, how many models an effect needs, and which rows are to be doubted."""
        found = []
        for form, each in self.advice.items():
            needs = ", ".join(f"{one.models} show a shift of {effect:g}" for effect, one in each.items())
            found += [
                f"{form}: {FORMS[form].source if form in FORMS else 'a metric of your own'}.",
                f"  models per side: {self.models} here; {needs} standard deviations at twice the noise",
            ]
        doubted = [line for line in self.lines if line.klom.doubt]
        return found + [f"Warning: {one.form} of {one.ensemble}, {one.part}: {one.klom.doubt}." for one in doubted]

    def caption(self) -> str:
        return "KLoM in nats. " + super().caption()

    def plot(self, form: str = "whence", ax: "Axes | None" = None) -> "Axes":
        """p95 of one form (nats), a group of bars a part, with intervals. Returns the axes."""
        axes = axes_or_new(ax, 5.0, 3.2)
        own = [line for line in self.lines if line.form == form]
        parts, ensembles = ([*dict.fromkeys(getattr(line, name) for line in own)] for name in ("part", "ensemble"))
        for k, ensemble in enumerate(ensembles):
            kloms = [self[form, ensemble, part] for part in parts]
            errors = [np.nan_to_num([max(0.0, abs(getattr(one.interval, side) - one.p95)) for one in kloms])
                      for side in ("low", "high")]  # fmt: skip
            at = np.arange(len(parts)) + 0.8 * k / len(ensembles)
            heights = [one.p95 for one in kloms]
            axes.bar(at, heights, 0.8 / len(ensembles), yerr=np.array(errors), label=ensemble, align="edge")
        axes.set(xticks=np.arange(len(parts)) + 0.4, xticklabels=parts, ylabel="KLoM p95, nats", title=form)
        axes.legend(fontsize=7)
        return axes

    def page(self, title: str = "Unlearned models against oracles") -> str:
        """One self-contained HTML page: a chart a form, and the table."""
        charts = "".join(
            f"<div><h2>{form}: KLoM p95, nats</h2>{bars(self._bars(form), f'KLoM p95, {form}')}</div>"
            for form in dict.fromkeys(line.form for line in self.lines)
        )
        return document(title, f'<section class="panel">{charts}</section>', self.shown())

    def _bars(self, form: str) -> list[tuple[str, float]]:
        return [(f"{line.part}: {line.ensemble}", line.klom.p95) for line in self.lines if line.form == form]


def compare(
    unlearned: Margins,
    oracles: Margins,
    *,
    before: Margins | None = None,
    forms: Sequence[str] | Mapping[str, KLoM] = tuple(FORMS),
    models: int | None = None,
    resamples: int = 20,
) -> Comparison:
    """KLoM of unlearned models against oracles by part and form, beside its null row.

    The null row compares oracles with other oracles, as many on each side as the other rows have. So by default half
    of the oracles is the reference, and at most as many unlearned models are used. With more models than that, there
    are no oracles left: the row is then the noise of normal margins, simulated at the same number.

    Args:
        unlearned: part -> margins [models, points].
        oracles: the same of models retrained without the forget set, at the same points.
        before: the same of the models before unlearning.
        forms: names of `unlearn.metrics.FORMS`, or name -> a metric of one's own.
        models: per side; by default as many as leave equally many oracles for the null row.
        resamples: of the models, for the interval of p95; 0 for none.

    Raises DataError if parts or points differ or there are too few models, UsageError for a form that is not known.

    >>> rng = np.random.default_rng(0)
    >>> found = compare({"forget": rng.normal(3, 1, (20, 50))}, {"forget": rng.normal(0, 1, (40, 50))}, resamples=0)
    >>> found["whence", "unlearned", "forget"].p95 > 2 * found["whence", "oracles (null)", "forget"].p95
    True
    """
    metrics = dict(forms) if isinstance(forms, Mapping) else {name: _form(name) for name in forms}
    groups = {UNLEARNED: unlearned, **({NO_OP: before} if before is not None else {})}
    parts = _same_parts(oracles, groups)
    counts = [_count(group) for group in groups.values()]
    held = _count(oracles)
    size = models or min(*counts, held // 2)
    if size > min(*counts, held) or size < FEWEST:
        raise DataError(
            f"There are {min(counts)} unlearned models and {held} oracles: not {size} per side"
            + (f", and a null row needs as many oracles again; at least {FEWEST}." if models is None else "."),
            f"Give at least {FEWEST} unlearned models and {2 * FEWEST} oracles, or a smaller number of models.",
        )
    spare = held >= 2 * size
    if spare:
        groups = {NULL: {part: oracles[part][size : 2 * size] for part in parts}, **groups}
    lines = []
    for form, metric in metrics.items():
        for part in parts:
            reference = oracles[part][:size]
            if not spare:
                noise = Summary(np.nan, Interval(noise_floor(size, metric=metric)), np.nan)
                lines.append(Line(form, NOISE, part, reference.shape[1], noise))
            for name, group in groups.items():
                found = metric.summary(group[part][:size], reference, resamples=resamples)
                lines.append(Line(form, name, part, reference.shape[1], found))
    advice = {form: {effect: metric.advise(effect) for effect in EFFECTS} for form, metric in metrics.items()}
    return Comparison(tuple(lines), size, advice)


def _form(name: str) -> KLoM:
    check_known("form of KLoM", name, FORMS)
    return FORMS[name].metric


def _count(group: Margins) -> int:
    return min(len(values) for values in group.values())


def _same_parts(oracles: Margins, groups: Mapping[str, Margins]) -> list[str]:
    if not oracles:
        raise DataError("The oracles have no part.", "Give at least one, such as forget.")
    for name, group in groups.items():
        if set(group) != set(oracles):
            raise DataError(
                f"The parts of {name} are {', '.join(sorted(group))}, of the oracles {', '.join(sorted(oracles))}.",
                "Measure both on the same parts.",
            )
    order = [part for part in ("forget", "retain", "validation") if part in oracles]
    return [*order, *sorted(set(oracles) - set(order))]
