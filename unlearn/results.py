"""What an evaluation found: a row per method, as a table, a Dataset and JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from whence.cache import DataError
from whence.cache.display import Cell, Interval, Shown, axes_or_new

from .metrics import KLoM, Summary
from .tables import ResultTable, between, row_of

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

PARTS = ("forget", "retain", "validation")
NULL, NO_OP = "oracles (null)", "no-op"
HEAD = ("method", "forget p95", "90 %", "mean", "retain p95", "mean", "validation p95", "mean", "compute", "U-LiRA",
        "energy", "two-sample")  # fmt: skip
SINGLE = ("ratio", "passes", "seconds", "u_lira", "energy", "two_sample")
BEFORE_RENAMING = {"told_apart": "two_sample", "do nothing": NO_OP}  # in files of earlier versions
STATISTICS = ("mean", "p95", "p99", "low", "high", "hidden", "diverged")


class Row(NamedTuple):
    """One method on one forget set: KLoM by part, compute over retraining, and the companions.

    u_lira: on the forget set, 0.5 ideal. energy: mean energy distance on it. two_sample: two-sample accuracy on it.
    stopped: models whose loss became non-finite. settings: as text.
    """

    method: str
    klom: dict[str, Summary]
    ratio: float
    passes: float
    seconds: float
    u_lira: float
    energy: float
    two_sample: float
    p_value: float
    stopped: int
    settings: str


@dataclass(frozen=True, eq=False)
class Evaluation(ResultTable):
    """Rows of one forget set, the null row first and the no-op baseline second.

    The table has p95 and mean of KLoM by part (nats), the 90 % interval of the forget set's p95, compute over
    retraining, and U-LiRA, energy distance and two-sample accuracy on the forget set.
    """

    head = HEAD

    rows: tuple[Row, ...]
    metric: KLoM
    models: int
    forgotten: int
    title: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, method: str) -> Row:
        return row_of({row.method: row for row in self.rows}, method)

    @property
    def bins(self) -> int:
        return self.metric.bins_for(self.models)

    def __repr__(self) -> str:
        methods = ", ".join(row.method for row in self.rows)
        return f"Evaluation({self.forgotten} examples forgotten, {self.models} models per side: {methods})"

    def cells(self) -> list[list[Any]]:
        return [_cells(row) for row in self.rows]

    def notes(self) -> list[str]:
        return [f"Warning: {text}" for text in self.warnings]

    def caption(self) -> str:
        about = (
            f"KLoM {self.metric.direction} in nats, {self.models} models per side, {self.bins} bins; "
            f"{self.forgotten} examples forgotten. The null row is oracles against other oracles: noise."
        )
        return " ".join([about, *self.notes()])

    @property
    def warnings(self) -> list[str]:
        """What a reader must know: of the request, and of rows whose KLoM is to be doubted."""
        doubts = [
            f"KLoM of {row.method}, {part}: {klom.doubt}."
            for row in self.rows
            for part, klom in row.klom.items()
            if klom.doubt
        ]
        return [*self.about.get("warnings", ()), *doubts]

    def compute_and_klom(self, part: str) -> list[tuple[str, float, float]]:
        """(method, compute in percent of retraining, p95 of KLoM) without the two rows to compare with."""
        rows = (row for row in self.rows if row.method not in (NULL, NO_OP))
        return [(row.method, 100 * row.ratio, row.klom[part].p95) for row in rows]

    def plot(self, part: str = "forget", ax: "Axes | None" = None) -> "Axes":
        """p95 of KLoM (nats) on one part against compute (percent of retraining, logarithmic), one point per method;
        the null row and the models left as they are as lines. Returns the axes."""
        axes = axes_or_new(ax, 5.0, 3.8)
        for name, color, style in ((NULL, "green", "--"), (NO_OP, "brown", ":")):
            axes.axhline(self[name].klom[part].p95, color=color, ls=style, lw=1, label=name)
        for k, (name, percent, value) in enumerate(self.compute_and_klom(part)):
            x = max(percent, 0.01)
            axes.plot(x, value, color=f"C{k % 10}", marker="os^Dv"[k // 10 % 5])
            axes.annotate(name, (x, value), fontsize=7, xytext=(3, 3), textcoords="offset points")
        axes.set(xscale="log", xlabel="compute, % of retraining", ylabel="KLoM p95, nats", title=part)
        axes.legend(fontsize=7)
        return axes


def shown(evaluation: Evaluation) -> Shown:
    """The table for a page: the null row and the models left as they are come first."""
    return evaluation.shown()


def _cells(row: Row) -> list[Any]:
    def number(value: float) -> Cell:
        return Cell(f"{value:.2f}", value)

    name = row.method + (f" ({row.stopped} stopped)" if row.stopped else "")
    forget, *others = (row.klom[part] for part in PARTS)
    klom = [number(forget.p95), between(forget.interval, 2), number(forget.mean)]
    klom += [number(value) for part in others for value in (part.p95, part.mean)]
    ratio = Cell("" if row.method == NO_OP else f"{100 * row.ratio:.1f} %", row.ratio)
    return [name, *klom, ratio, *map(number, (row.u_lira, row.energy, row.two_sample))]


def to_dataset(evaluation: Evaluation) -> "xarray.Dataset":
    """klom [row, part, statistic] in nats (hidden: share of points; diverged: models); ratio, passes, seconds, u_lira,
    energy, two_sample [row]."""
    import xarray as xr

    rows = evaluation.rows
    values = np.array([[list(_statistics(row.klom[part]).values()) for part in PARTS] for row in rows])
    return xr.Dataset(
        {
            "klom": (("row", "part", "statistic"), values),
            **{name: ("row", [getattr(row, name) for row in rows]) for name in SINGLE},
        },
        {"row": [row.method for row in rows], "part": list(PARTS), "statistic": list(STATISTICS)},
        {
            "models": evaluation.models, "bins": evaluation.bins, "direction": evaluation.metric.direction,
            "forget": list(evaluation.about.get("forget", ())),
        },
    )  # fmt: skip


def _statistics(summary: Summary) -> dict[str, float]:
    klom = (summary.mean, summary.p95, summary.p99, summary.interval.low, summary.interval.high)
    found = (*klom, summary.hidden, summary.diverged)
    return dict(zip(STATISTICS, found))


def to_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One flat mapping a method: `forget_p95` and so on in nats, then compute and companions."""
    rows = []
    for row in evaluation.rows:
        klom = {f"{part}_{name}": value for part in PARTS for name, value in _statistics(row.klom[part]).items()}
        own = {name: value for name, value in row._asdict().items() if name not in ("method", "klom")}
        rows.append({"method": row.method, **klom, **own})
    return rows


def to_json(evaluation: Evaluation) -> str:
    """The whole evaluation, to be read back by `from_json`."""
    rows = [row._asdict() | {"klom": {part: _statistics(s) for part, s in row.klom.items()}} for row in evaluation.rows]
    return json.dumps({
        "metric": asdict(evaluation.metric), "models": evaluation.models, "forgotten": evaluation.forgotten,
        "title": evaluation.title, "about": dict(evaluation.about), "rows": rows,
    })  # fmt: skip


def from_json(text: str) -> Evaluation:
    """The evaluation that `to_json` wrote. Raises DataError for anything else."""

    def summary(mean: float, p95: float, p99: float, low: float, high: float, **doubts: Any) -> Summary:
        return Summary(mean, Interval(p95, low, high, 0.9), p99, **doubts)

    def row(fields: dict[str, Any]) -> Row:
        fields = {BEFORE_RENAMING.get(name, name): value for name, value in fields.items()}
        fields |= {"klom": {part: summary(**s) for part, s in fields["klom"].items()}}
        return Row(**(fields | {"method": BEFORE_RENAMING.get(fields["method"], fields["method"])}))

    try:
        found = json.loads(text)
        rows = tuple(row(fields) for fields in found["rows"])
        metric, about = KLoM(**found["metric"]), found.get("about", {})
        return Evaluation(rows, metric, found["models"], found["forgotten"], found["title"], about)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("This file has no evaluation.", "Give one that `whence unlearn evaluate` wrote.") from error
