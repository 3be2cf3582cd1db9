"""Unlearned models against oracles, with the noise of the comparison beside every number.

A panel holds the oracles of one forget set in two halves: one is the reference, the other is the null row, what a
perfect method would score. Settings are chosen by a rule that is stated before anything is scored, on another forget
set than the one reported: the best of a grid by the reported metric is an illusion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from whence.cache import DataError, Examples, UsageError
from whence.cache.retrain.retrained import Retrained

from .attacks import u_lira
from .deletion import Deletion
from .loop import Method, Unlearned, run
from .metrics import FEWEST, KLoM, energy_distance, two_sample_test, warn_if_hidden
from .results import NOTHING, NULL, Evaluation, Row


@dataclass(frozen=True, eq=False)
class Panel:
    """Points by part, and oracles in two halves.

    reference, held_out: margins [f p] of two disjoint groups of oracles. columns: part -> columns of p.
    points: the examples whose margins they are. tokens: for language, bool [points, t], which margins count.
    """

    deletion: Deletion
    points: Examples
    reference: Float[np.ndarray, "f p"]
    held_out: Float[np.ndarray, "g p"]
    columns: Mapping[str, np.ndarray]
    metric: KLoM
    tokens: np.ndarray | None = None

    def __repr__(self) -> str:
        parts = ", ".join(f"{len(at)} {name}" for name, at in self.columns.items())
        return f"Panel(outputs: {parts}; {len(self.reference)} + {len(self.held_out)} oracles)"

    @property
    def models(self) -> int:
        """How many models a side every comparison uses."""
        return min(len(self.reference), len(self.held_out), len(self.deletion.models))

    @staticmethod
    def of(deletion: Deletion, oracles: Retrained, points: Examples, metric: KLoM | None = None) -> "Panel":
        """From a bank of oracles for exactly this forget set (refused otherwise), twice as many as the models.

        Raises DataError when the bank's masks hold what was forgotten, when there are too few oracles for two
        halves, or when a part has no point.
        """
        checked = oracles.oracles(np.r_[deletion.forget, deletion.ledger.forgotten])
        if len(checked) < 2 * FEWEST:
            raise DataError(
                f"{len(checked)} oracles cannot be split into a reference and a null of {FEWEST} each.",
                f"Train at least {2 * FEWEST}; best twice as many as there are models to judge.",
            )
        margins = checked["margins"][:, checked.at_points(points.ids)]
        margins, tokens, owner = _flatten(margins)
        ids = points.ids[owner]
        parts = {
            "forget": np.isin(ids, deletion.forget),
            "retain": np.isin(ids, deletion.train.ids[deletion.left]),
            "validation": ~np.isin(ids, deletion.train.ids),
        }
        for name, mask in parts.items():
            if not mask.any():
                raise DataError(
                    f"No evaluated point is in the {name} part.",
                    "Evaluate on forgotten, kept and held-out examples.",
                )
        half = len(checked) // 2
        columns = {name: np.flatnonzero(mask) for name, mask in parts.items()}
        return Panel(deletion, points, margins[:half], margins[half:], columns, metric or KLoM(), tokens)

    def margins(self, unlearned: Unlearned) -> Float[np.ndarray, "e p"]:
        """The models' margins at the panel's points. Raises DataError when they do not match the bank's."""
        return self._matching(unlearned.outputs(self.points, ("margins",))["margins"])

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
        return row._replace(ratio=1.0, passes=float(self.deletion.retraining))

    def nothing(self, resamples: int = 0) -> Row:
        """The models as they were."""
        return self.score(NOTHING, self.before(), resamples=resamples)

    def before(self) -> Float[np.ndarray, "e p"]:
        """Margins, at the panel's points, of the models as they were."""
        margins = self.deletion.models.outputs(self.deletion.task, self.points, ("margins",))["margins"]
        return self._matching(margins)


def _flatten(margins: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """[e p] as it is; [e p t] with NaN where nothing is predicted as one column a token. Also which tokens
    count, and whose each column is."""
    if margins.ndim == 2:
        return margins, None, np.arange(margins.shape[1])
    tokens = np.isfinite(margins[0])
    return margins[:, tokens], tokens, np.nonzero(tokens)[0]


def evaluate(
    panel: Panel, methods: Sequence[Method | Unlearned], *, resamples: int = 20, title: str = "", quiet: bool = True
) -> Evaluation:
    """Run the methods (or take what they left) and score them, with the null row and doing nothing.

    Warns when doing nothing is already within noise on the forget set: then nothing can be shown, and says with
    how many models it could.

    >>> judged = evaluate(panel, [Retrain(seed=50)], resamples=0)
    >>> [row.method for row in judged.rows]
    ['oracles (null)', 'do nothing', 'retrain']
    """
    rows = [panel.null(resamples), panel.nothing(resamples)]
    floor, found = rows[0].klom["forget"].p95, rows[1].klom["forget"].p95
    warn_if_hidden(floor, found, panel.models)
    for method in methods:
        unlearned = method if isinstance(method, Unlearned) else run(method, panel.deletion, quiet=quiet)
        rows.append(panel.score(unlearned.method, panel.margins(unlearned), resamples=resamples, about=unlearned))
    return Evaluation(
        tuple(rows), panel.metric, panel.models, len(panel.deletion.forget), title, {"points": len(panel.points)}
    )


# --- choosing settings --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A selection rule, declared before anything is scored: among settings whose p95 on retain and validation is
    within `slack` of doing nothing, the smallest p95 on the forget set."""

    slack: float = 1.0

    def admissible(self, row: Row, nothing: Row) -> bool:
        return all(row.klom[part].p95 <= nothing.klom[part].p95 + self.slack for part in ("retain", "validation"))


DEFAULT_RULE = Rule()


@dataclass(frozen=True, eq=False)
class Selected:
    """What a sweep chose, on which forget sets; `on` runs it on others and refuses those.

    method: None when no setting was admissible, which is a result. rows: of every candidate on the first tuning set,
    then on the second, and so on. admissible: of every candidate, on all of them.
    """

    method: Method | None
    candidates: tuple[Method, ...]
    rule: Rule
    tuned_on: tuple[np.ndarray, ...]
    rows: tuple[Row, ...]
    admissible: tuple[bool, ...]

    def on(self, deletion: Deletion) -> Method | None:
        """The chosen method, for reporting on another forget set. Raises UsageError on one it was tuned on."""
        forget = set(np.asarray(deletion.forget).tolist())
        if any(set(tuned.tolist()) == forget for tuned in self.tuned_on):
            raise UsageError(
                "These settings were chosen on this very forget set.",
                "Report on forget sets that the choice has not seen.",
            )
        return self.method


def sweep(panels: Panel | Sequence[Panel], candidates: Sequence[Method], rule: Rule = DEFAULT_RULE) -> Selected:
    """Score candidate settings on one tuning forget set or several and choose by the rule: admissible on all of
    them, and the smallest mean over them.

    Raises UsageError without candidates or panels.
    """
    panels = [panels] if isinstance(panels, Panel) else list(panels)
    if not candidates or not panels:
        raise UsageError("There is nothing to choose among.", "Give at least one candidate setting and one panel.")
    rows: list[list[Row]] = []
    allowed = [True] * len(candidates)
    for panel in panels:
        nothing = panel.nothing()
        results = [run(candidate, panel.deletion) for candidate in candidates]
        rows.append([panel.score(r.method, panel.margins(r), about=r) for r in results])
        allowed = [ok and rule.admissible(row, nothing) for ok, row in zip(allowed, rows[-1])]
    scores = np.mean([[row.klom["forget"].p95 for row in found] for found in rows], axis=0)
    order = sorted((float(scores[k]), k) for k in range(len(candidates)) if allowed[k])
    best = candidates[order[0][1]] if order else None
    tuned_on = tuple(np.asarray(panel.deletion.forget) for panel in panels)
    every = tuple(row for found in rows for row in found)
    return Selected(best, tuple(candidates), rule, tuned_on, every, tuple(allowed))
