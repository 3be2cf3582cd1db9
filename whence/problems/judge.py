"""Run the evaluations of attrib.evaluate over methods on one problem: one row per method and test."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from whence import attrib
from whence.attrib import evaluate as judges
from whence.attrib.methods.early import EarlyScores
from whence.cache import Store, UsageError
from whence.cache.jobs.progress import say
from whence.cache.retrain.retrained import Retrained, subset_masks

from .problem import Problem, digits_problem, methods_for

if TYPE_CHECKING:
    import xarray

TESTS = ("lds", "leave-out", "qld", "brittleness", "recall", "pbrf", "mislabelled")
ABSOLUTE = 0.01  # damping of the proximal response, and of the scores compared with it


class Row(NamedTuple):
    """One number of one method: value with its interval (NaN if there is none), seconds of fit and scoring."""

    test: str
    method: str
    value: float
    low: float
    high: float
    seconds: float
    note: str = ""

    def __str__(self) -> str:
        interval = "" if np.isnan(self.low) else f"[{self.low:.3f}, {self.high:.3f}]"
        name = f"{self.test:12} {self.method:15}"
        return f"{name} {self.value:8.3f} {interval:17} {self.seconds:7.1f} s  {self.note}".rstrip()


HEAD = f"{'test':12} {'method':15} {'value':>8} {'95 % interval':17} {'time':>9}"


def judge(
    problem: Problem,
    tests: Sequence[str],
    names: Sequence[str] | None = None,
    *,
    subsets: int = 48,
    store: Store | None = None,
    curve: Path | None = None,
    quiet: bool = False,
) -> list[Row]:
    """Every method under every test, in order. Raises UsageError, before anything is trained, for an unknown test or
    method, or one that the problem has no data for."""
    for test in tests:
        missing = {"recall": not problem.truth, "pbrf": "input_ids" in problem.train.columns}
        if test not in TESTS or missing.get(test):
            raise UsageError(
                f"There is no test {test!r} for {problem.name}.",
                f"Tests: {', '.join(TESTS)}; recall is for facts, pbrf and mislabelled for digits.",
            )
    named = methods_for(problem, list(names) if names is not None else None)
    rows: list[Row] = []
    scored: dict[str, tuple[xarray.DataArray, float]] = {}
    for name, method in named.items() if set(tests) - {"mislabelled", "pbrf"} else ():
        scored[name] = timed(partial(_scores, problem, method, store, quiet))
        if not quiet:
            say(f"{name}: fitted and scored in {scored[name][1]:.1f} s")
    for test in tests:
        if test in ("lds", "leave-out"):
            rows += _lds(problem, scored, test, subsets, store, quiet)
        elif test in ("qld", "brittleness"):
            rows += _removals(problem, scored, test, store, quiet)
        elif test == "recall":
            for name, (scores, seconds) in scored.items():
                found = judges.recall(scores, problem.truth)
                rows.append(Row("recall@1", name, found.at[1], np.nan, np.nan, seconds, str(found)))
        elif test == "pbrf":
            rows += _pbrf(problem, named, quiet)
        else:
            rows += _mislabelled(problem, named, curve, quiet)
    return rows


def timed(work: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _scores(problem: Problem, method: Any, store: Store | None, quiet: bool) -> "xarray.DataArray":
    return method.fit(problem.trained(store, quiet)).score(problem.queries)


def retrained(problem: Problem, subsets: int, share: float, store: Store | None, quiet: bool) -> Retrained:
    """Models trained on random subsets that keep `share` of the examples, from the same start."""
    masks = subset_masks(len(problem.train), subsets, share)
    return problem.bank().run(masks, np.zeros(subsets, np.int64), store, quiet=quiet)


def _lds(problem: Problem, scored: Any, test: str, subsets: int, store: Store | None, quiet: bool) -> list[Row]:
    bank = retrained(problem, subsets, 0.5 if test == "lds" else 0.95, store, quiet)
    rows = []
    for name, (scores, seconds) in scored.items():
        found = judges.lds(scores, bank)
        rows.append(Row(test, name, found.value, found.low, found.high, seconds))
    return rows


def _removals(problem: Problem, scored: Any, test: str, store: Store | None, quiet: bool) -> list[Row]:
    rows = []
    for name, (scores, seconds) in scored.items():
        options: dict[str, Any] = {"seeds": 1, "random": 8, "store": store, "quiet": quiet}
        if test == "qld":
            found = judges.qld(scores, problem.bank(), **options)
        else:
            found = judges.brittleness(scores, problem.bank(), [max(1, len(problem.train) // 20)], **options)
        note = f"{int(found.removed[0])} left out, falls by {found.top.mean():.3f}, random {found.random.mean():.3f}"
        excess = found.excess[0]
        rows.append(Row(test, name, excess.value, excess.low, excess.high, seconds, note))
    return rows


def _pbrf(problem: Problem, named: Any, quiet: bool) -> list[Row]:
    """Pearson correlation with the proximal response, 100 training examples by 10 queries, the same damping on
    both sides. Methods without a damping are compared as they are."""
    rows = np.random.default_rng(0).permutation(len(problem.train))[:100]
    queries = problem.queries.select(range(min(10, len(problem.queries))))
    response, seconds = timed(lambda: judges.pbrf(problem.trained(quiet=quiet), queries, rows, ABSOLUTE))
    found = [Row("pbrf", "(response)", float(response.residual.max()), np.nan, np.nan, seconds, "largest residual")]
    for name, method in named.items():
        damped = with_damping(method)
        scores, took = timed(partial(_scores, replace(problem, queries=queries), damped, None, quiet))
        each, slope = judges.agreement_with_pbrf(scores, response)
        low, high = np.quantile(each, [0.025, 0.975])
        found.append(Row("pbrf", name, float(each.mean()), low, high, took, f"slope {slope:.2f}; range over queries"))
    return found


def with_damping(method: Any) -> Any:
    """The method with the proximal response's damping, if it has one."""
    absolute = attrib.Damping(ABSOLUTE, "absolute")
    if hasattr(method, "ekfac"):
        return replace(method, ekfac=attrib.EKFAC(damping=absolute))
    if not isinstance(getattr(method, "damping", 0.0), float):
        return replace(method, damping=absolute)
    return method


def _mislabelled(problem: Problem, named: Any, curve: Path | None, quiet: bool) -> list[Row]:
    """A tenth of the digits' labels flipped; ranked by self-influence, or by a method's own score of an example."""
    problem = replace(digits_problem(flipped=0.1), device=problem.device, dtype=problem.dtype)
    trained, rows = problem.trained(quiet=quiet), []
    for name, method in methods_for(problem, list(named)).items():
        fitted, seconds = timed(partial(method.fit, trained))
        if isinstance(fitted, EarlyScores):
            suspicion = fitted.score(problem.queries.select([0])).values[0]  # the same for every query
        elif type(fitted) is attrib.Factors:
            suspicion = fitted.self_influence().values
        else:
            continue
        assert problem.flipped is not None  # of this problem
        found = judges.detection(suspicion, problem.flipped)
        if curve is not None:
            from matplotlib.figure import Figure

            curve.mkdir(parents=True, exist_ok=True)
            figure = Figure(figsize=(4.5, 3.5), layout="constrained")
            found.plot(name, figure.subplots())
            figure.savefig(curve / f"mislabelled-{name}.svg")
        rows.append(Row("mislabelled", name, found.auc, np.nan, np.nan, seconds, str(found)))
    return rows
