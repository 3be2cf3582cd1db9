"""Unlearned models against oracles, with the noise of the comparison beside every number.

An oracle split is the oracles of one forget set in two halves: one is the reference, the other is the null row, what a
perfect method would score. Settings are chosen by a rule that is stated before anything is scored, on another forget
set than the one reported: the best of a grid by the reported metric is an illusion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from whence.cache import DataError, Examples, UsageError
from whence.cache.display import axes_or_new
from whence.cache.display.interval import Interval
from whence.cache.retrain.retrained import Retrained

from .audit import u_lira
from .loop import Unlearned, run
from .methods.method import UnlearningMethod
from .metrics import FEWEST, KLoM, Summary, warn_if_hidden
from .request import UnlearningRequest
from .results import NO_OP, NULL, Evaluation, Row
from .two_sample import energy_distance, two_sample_test

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class OracleSplit:
    """Points by part, and oracles in two halves.

    request: what the oracles never saw. points: the examples whose margins are compared. reference, held_out: margins
    [f p] of two disjoint groups of oracles. columns: part -> columns of p. metric: what compares them. tokens: for
    language, bool [points, t], which margins count.
    """

    request: UnlearningRequest
    points: Examples
    reference: Float[np.ndarray, "f p"]
    held_out: Float[np.ndarray, "g p"]
    columns: Mapping[str, np.ndarray]
    metric: KLoM
    tokens: np.ndarray | None = None

    def __repr__(self) -> str:
        parts = ", ".join(f"{len(at)} {name}" for name, at in self.columns.items())
        return f"OracleSplit(outputs: {parts}; {len(self.reference)} + {len(self.held_out)} oracles)"

    @property
    def models(self) -> int:
        """How many models per side every comparison uses."""
        return min(len(self.reference), len(self.held_out), len(self.request.models))

    @staticmethod
    def of(
        request: UnlearningRequest, oracles: Retrained, points: Examples, metric: KLoM | None = None
    ) -> "OracleSplit":
        """From a bank of oracles for exactly this forget set (refused otherwise), twice as many as the models.

        Raises DataError if the bank's masks include what was forgotten, if there are too few oracles for two halves, or
        if a part has no point.
        """
        checked = oracles.oracles(np.r_[request.forget, request.log.forgotten])
        if len(checked) < 2 * FEWEST:
            raise DataError(
                f"{len(checked)} oracles cannot be split into a reference and a null of {FEWEST} each.",
                f"Train at least {2 * FEWEST}; best twice as many as there are models to judge.",
            )
        if not np.array_equal(np.sort(checked.train_ids), np.sort(request.train.ids)):
            raise DataError(
                "These oracles were trained on other examples than the request's models.",
                "Run the bank of oracles on the request's training examples.",
            )
        margins = checked["margins"][:, checked.at_points(points.ids)]
        margins, tokens, owner = _flatten(margins)
        ids = points.ids[owner]
        parts = {
            "forget": np.isin(ids, request.forget),
            "retain": np.isin(ids, request.train.ids[request.left]),
            "validation": ~np.isin(ids, request.train.ids),
        }
        for name, mask in parts.items():
            if not mask.any():
                raise DataError(
                    f"No evaluated point is in the {name} part.",
                    "Evaluate on forgotten, kept and held-out examples.",
                )
        half = len(checked) // 2
        columns = {name: np.flatnonzero(mask) for name, mask in parts.items()}
        return OracleSplit(request, points, margins[:half], margins[half:], columns, metric or KLoM(), tokens)

    def margins(self, unlearned: Unlearned) -> Float[np.ndarray, "e p"]:
        """The models' margins at the split's points. Raises DataError if they do not match the bank's."""
        return self._matching(unlearned.outputs(self.points, ("margins",))["margins"])

    def plot_margins(self, unlearned: Unlearned, column: int, ax: "Axes | None" = None) -> "Axes":
        """One point's margins (in nats of log-odds) over the models before, after, and over the oracles, as histograms
        on one set of bins: what KLoM compares. column: of the split's points, one of `columns`. Returns the axes."""
        found = {"before": self.before(), "after": self.margins(unlearned), "oracles": self.reference}
        values = {name: margins[:, column] for name, margins in found.items()}
        axes, every = axes_or_new(ax), np.concatenate(list(values.values()))
        edges = np.linspace(every.min(), every.max() + 1e-9, 16)
        for name, own in values.items():
            axes.hist(own, edges.tolist(), histtype="step", linewidth=1.6, density=True, label=name)
        axes.set(xlabel="margin, nats", ylabel="density over models")
        axes.legend(frameon=False)
        return axes

    def _matching(self, margins: np.ndarray) -> np.ndarray:
        expected = (len(self.points), *(() if self.tokens is None else self.tokens.shape[1:]))
        if margins.shape[1:] != expected:
            raise DataError(
                f"The models' margins have shape {list(margins.shape[1:])}, the bank's {list(expected)}.",
                "Use a bank of the same task and the same points.",
            )
        return margins if self.tokens is None else margins[:, self.tokens]

    def score(self, name: str, margins: np.ndarray, *, resamples: int = 0, about: Unlearned | None = None) -> Row:
        """One row of the table, from margins [e p]. Every row uses equally many models."""
        margins, reference = margins[: self.models], self.reference[: self.models]
        klom = {
            part: self.metric.summary(margins[:, at], reference[:, at], resamples=resamples)
            for part, at in self.columns.items()
        }
        at = self.columns["forget"]
        apart = two_sample_test(margins[:, at], reference[:, at])
        return Row(
            name,
            klom,
            about.ratio if about else 0.0,
            about.passes if about else 0.0,
            about.seconds if about else 0.0,
            u_lira(margins[:, at], reference[:, at]).accuracy,
            float(energy_distance(margins[:, at], reference[:, at]).mean()),
            apart.accuracy,
            apart.p_value,
            len(about.stopped) if about else 0,
            str(about.settings) if about else "",
        )

    def null(self, resamples: int = 0) -> Row:
        """Oracles against other oracles: what no method can beat."""
        row = self.score(NULL, self.held_out, resamples=resamples)
        return row._replace(ratio=1.0, passes=float(self.request.retraining))

    def no_op(self, resamples: int = 0) -> Row:
        """The models as they were."""
        return self.score(NO_OP, self.before(), resamples=resamples)

    def before(self) -> Float[np.ndarray, "e p"]:
        """Margins, at the split's points, of the models as they were."""
        margins = self.request.models.outputs(self.request.task, self.points, ("margins",))["margins"]
        return self._matching(margins)


def _flatten(margins: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """[e p] as it is; [e p t] with NaN where nothing is predicted as one column per token. Also which tokens
    count, and the point of each column."""
    if margins.ndim == 2:
        return margins, None, np.arange(margins.shape[1])
    tokens = np.isfinite(margins).any(0)  # of any model: one that diverged has NaN everywhere
    return margins[:, tokens], tokens, np.nonzero(tokens)[0]


def evaluate(
    split: OracleSplit,
    methods: Sequence[UnlearningMethod | Unlearned],
    *,
    resamples: int = 20,
    title: str = "",
    quiet: bool = True,
) -> Evaluation:
    """Run the methods (or take their results) and score them, beside the null row and the no-op baseline.

    Args:
        split: the oracles, and the points that are compared.
        methods: methods, or what `run` returned.
        resamples: of the models, for the interval of p95; 0 for none.
        title: of the table.
        quiet: show no progress bars.

    Warns if the no-op baseline is already within noise on the forget set: then nothing can be shown; the warning says
    with how many models it could.

    >>> judged = evaluate(split, [Retrain(seed=50)], resamples=0)
    >>> [row.method for row in judged.rows]
    ['oracles (null)', 'no-op', 'retrain']
    """
    rows = [split.null(resamples), split.no_op(resamples)]
    floor, found = rows[0].klom["forget"].p95, rows[1].klom["forget"].p95
    warn_if_hidden(floor, found, split.models)
    for method in methods:
        unlearned = method if isinstance(method, Unlearned) else run(method, split.request, quiet=quiet)
        rows.append(split.score(unlearned.method, split.margins(unlearned), resamples=resamples, about=unlearned))
    request = split.request
    about = {"points": len(split.points), "forget": request.forget.tolist(), "warnings": list(request.warnings)}
    return Evaluation(tuple(rows), split.metric, split.models, len(request.forget), title, about)


# --- choosing settings --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A selection rule, declared before anything is scored: among settings whose p95 on retain and validation is
    within `slack` of the no-op baseline, and with which no model diverges, the smallest p95 on the forget set. (A
    diverged model hides the others from KLoM, see `Summary.doubt`.)"""

    slack: float = 1.0

    def admissible(self, row: Row, no_op: Row) -> bool:
        diverged = row.stopped or any(klom.doubt for klom in row.klom.values())
        return not diverged and all(
            row.klom[part].p95 <= no_op.klom[part].p95 + self.slack for part in ("retain", "validation")
        )


DEFAULT_RULE = Rule()


@dataclass(frozen=True, eq=False)
class Selected:
    """What a sweep chose, on which forget sets; `on` runs it on others and refuses those.

    method: None if no setting was admissible, which is a result. rows: of every candidate on the first tuning set,
    then on the second, and so on. admissible: of every candidate, on all of them.
    """

    method: UnlearningMethod | None
    candidates: tuple[UnlearningMethod, ...]
    rule: Rule
    tuned_on: tuple[np.ndarray, ...]
    rows: tuple[Row, ...]
    admissible: tuple[bool, ...]

    def on(self, request: UnlearningRequest) -> UnlearningMethod | None:
        """The chosen method, for reporting on another forget set. Raises UsageError on one it was tuned on."""
        forget = set(np.asarray(request.forget).tolist())
        if any(set(tuned.tolist()) == forget for tuned in self.tuned_on):
            raise UsageError(
                "These settings were chosen on this very forget set.",
                "Report on forget sets that the choice has not seen.",
            )
        return self.method


def tried(split: OracleSplit, result: Unlearned) -> Row:
    """The row of a candidate setting. If a model's margins are not finite, every distance is infinite and these models
    count as diverged, so that the rule does not admit the setting."""
    margins = split.margins(result)
    broken = int((~np.isfinite(margins).all(1)).sum())
    if not broken:
        return split.score(result.method, margins, about=result)
    worst = Summary(np.inf, Interval(np.inf, level=0.9), np.inf, diverged=broken)
    return Row(
        result.method, dict.fromkeys(split.columns, worst), result.ratio, result.passes, result.seconds,
        np.nan, np.nan, np.nan, np.nan, len(result.stopped), str(result.settings),
    )  # fmt: skip


def sweep(
    splits: OracleSplit | Sequence[OracleSplit], candidates: Sequence[UnlearningMethod], rule: Rule = DEFAULT_RULE
) -> Selected:
    """Score candidate settings on one tuning forget set or several and choose by the rule: admissible on all of
    them, and the smallest mean over them.

    Raises UsageError without candidates or splits.
    """
    splits = [splits] if isinstance(splits, OracleSplit) else list(splits)
    if not candidates or not splits:
        raise UsageError("There is nothing to choose among.", "Give at least one candidate setting and one split.")
    rows: list[list[Row]] = []
    allowed = [True] * len(candidates)
    for split in splits:
        no_op = split.no_op()
        results = [run(candidate, split.request) for candidate in candidates]
        rows.append([tried(split, result) for result in results])
        allowed = [ok and rule.admissible(row, no_op) for ok, row in zip(allowed, rows[-1])]
    scores = np.mean([[row.klom["forget"].p95 for row in found] for found in rows], axis=0)
    order = sorted((float(scores[k]), k) for k in range(len(candidates)) if allowed[k])
    best = candidates[order[0][1]] if order else None
    tuned_on = tuple(np.asarray(split.request.forget) for split in splits)
    every = tuple(row for found in rows for row in found)
    return Selected(best, tuple(candidates), rule, tuned_on, every, tuple(allowed))
