"""Run the evaluations of attrib.evaluate over methods on one problem: one row per method and test."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from whence import attrib
from whence.attrib import evaluate as judges
from whence.attrib.methods.early import EarlyScores
from whence.cache import Store, UsageError
from whence.cache.jobs.progress import say
from whence.cache.retrain.recipe import Recipe
from whence.cache.retrain.retrained import Retrained, subset_masks
from whence.cache.statistics import lds

from .problem import Problem, digits_problem, methods_for

if TYPE_CHECKING:
    import xarray

TESTS = ("lds", "leave-out", "documents", "qld", "brittleness", "recall", "pbrf", "mislabelled")
SHARES = {"lds": 0.5, "leave-out": 0.95}  # of the examples that a subset keeps
CEILING = "(other order)"
ABSOLUTE = 0.01  # damping of the proximal response, and of the scores compared with it

Scored: TypeAlias = dict[str, tuple[Any, float]]  # name -> scores [query, train], and seconds of fit and scoring


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
    others: Scored | None = None,
    damping: float | None = None,
    subsets: int = 48,
    store: Store | None = None,
    curve: Path | None = None,
    quiet: bool = False,
) -> list[Row]:
    """Every method under every test, in order. For language, lds and leave-out also have a row of the noise
    ceiling: how well a second set of retrainings, which sees the examples in another order, predicts the first.

    Args:
        problem: the model, its data and its training.
        tests: some of TESTS.
        names: of methods; by default all that apply.
        damping: of every method that has one, relative; by default each method's own choice.
        others: scores of this problem that were computed elsewhere, and their seconds.
        subsets: models that are retrained for lds, and for leave-out.
        store: where retrained models and scores are kept.
        curve: folder for the curves of mislabelled examples.
        quiet: no progress is printed.

    Raises UsageError, before anything is trained, for an unknown test or method, or one that the problem has no data
    for."""
    check_tests(problem, tests)
    named = methods_for(problem, list(names) if names is not None else None)
    if damping is not None:
        named = {name: with_damping(method, attrib.Damping(damping)) for name, method in named.items()}
    rows: list[Row] = []
    scored: Scored = dict(others or {})
    if set(tests) - {"mislabelled", "pbrf"}:
        scored |= scores_of(problem, named, store, quiet=quiet)
    for test in tests:
        if test in SHARES:
            rows += _lds(problem, scored, test, subsets, store, quiet)
        elif test == "documents":
            rows += _agreement(scored, test, without_each_document(problem, store, quiet))
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


def check_tests(problem: Problem, tests: Sequence[str]) -> None:
    """Raises UsageError for an unknown test, or one that the problem has no data for."""
    missing = {
        "recall": not problem.truth,
        "pbrf": "input_ids" in problem.train.columns,
        "documents": "topic" not in problem.train.about,
    }
    for test in tests:
        if test not in TESTS or missing.get(test):
            raise UsageError(
                f"There is no test {test!r} for {problem.name}.",
                f"Tests: {', '.join(TESTS)}; recall is for facts, documents for language, pbrf and "
                "mislabelled for digits.",
            )


def scores_of(problem: Problem, named: Mapping[str, Any], store: Store | None = None, *, quiet: bool = False) -> Scored:
    """Scores of every method for the problem's queries, and its seconds."""
    scored: Scored = {}
    for name, method in named.items():
        scored[name] = timed(partial(_scores, problem, method, store, quiet))
        if not quiet:
            say(f"{name}: fitted and scored in {scored[name][1]:.1f} s")
    return scored


def timed(work: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _scores(problem: Problem, method: Any, store: Store | None, quiet: bool) -> "xarray.DataArray":
    return method.fit(problem.trained(store, quiet)).score(problem.queries)


def retrained(
    problem: Problem, subsets: int, share: float, store: Store | None, quiet: bool, order: int = 0
) -> Retrained:
    """Models trained on random subsets that keep `share` of the examples, from the same start.

    Args:
        problem: how they are trained.
        subsets: how many.
        share: of the examples that each keeps.
        store: where they are kept.
        quiet: no progress is printed.
        order: seed of the order of the examples; 0 is the order of the problem's own model.
    """
    masks, rows = subset_masks(len(problem.train), subsets, share), problem.order(order)
    return problem.bank(order=order).run(masks[:, rows], np.zeros(subsets, np.int64), store, quiet=quiet)


def without_each_document(problem: Problem, store: Store | None, quiet: bool) -> Retrained:
    """Models trained on all but the passages of one document (the examples of one topic)."""
    topics = np.asarray(problem.train.about["topic"])
    masks = topics[None] != np.unique(topics)[:, None]
    return problem.bank().run(masks, np.zeros(len(masks), np.int64), store, quiet=quiet)


def _agreement(scored: Scored, test: str, bank: Retrained) -> list[Row]:
    rows = []
    for name, (scores, seconds) in scored.items():
        found = judges.lds(scores, bank)
        rows.append(Row(test, name, found.value, found.low, found.high, seconds))
    return rows


def _lds(problem: Problem, scored: Scored, test: str, subsets: int, store: Store | None, quiet: bool) -> list[Row]:
    bank = retrained(problem, subsets, SHARES[test], store, quiet)
    rows = _agreement(scored, test, bank)
    if "input_ids" in problem.train.columns and isinstance(problem.recipe, Recipe):
        again = retrained(problem, subsets, SHARES[test], store, quiet, order=1)
        found = lds(again["measurements"], bank["measurements"])
        rows.append(Row(test, CEILING, found.value, found.low, found.high, np.nan, "second set of retrainings"))
    return rows


def _removals(problem: Problem, scored: Scored, test: str, store: Store | None, quiet: bool) -> list[Row]:
    """QLD, or brittleness to the top 5 %, of all methods on one bank."""
    n, output = len(problem.train), "losses" if test == "qld" else "measurements"
    removed = [max(1, round(n / 100) if test == "qld" else n // 20)]
    scores = {name: values for name, (values, _) in scored.items()}
    every = judges.brittleness_of_all(
        scores, problem.bank(), removed, output=output, seeds=1, random=8, store=store, quiet=quiet
    )
    rows = []
    for name, found in every.items():
        note = f"{removed[0]} left out, falls by {found.top.mean():.3f}, random {found.random.mean():.3f}"
        excess = found.excess[0]
        rows.append(Row(test, name, excess.value, excess.low, excess.high, scored[name][1], note))
    return rows


def _pbrf(problem: Problem, named: Any, quiet: bool) -> list[Row]:
    """Pearson correlation with the proximal response, 100 training examples by 10 queries, the same damping on
    both sides. Methods without a damping are compared as they are."""
    rows = np.random.default_rng(0).permutation(len(problem.train))[:100]
    queries = problem.queries.select(range(min(10, len(problem.queries))))
    response, seconds = timed(lambda: judges.pbrf(problem.trained(quiet=quiet), queries, rows, ABSOLUTE))
    found = [Row("pbrf", "(response)", float(response.residual.max()), np.nan, np.nan, seconds, "largest residual")]
    for name, method in named.items():
        damped = with_damping(method, attrib.Damping(ABSOLUTE, "absolute"))
        scores, took = timed(partial(_scores, replace(problem, queries=queries), damped, None, quiet))
        each, slope = judges.agreement_with_pbrf(scores, response)
        low, high = np.quantile(each, [0.025, 0.975])
        found.append(Row("pbrf", name, float(each.mean()), low, high, took, f"slope {slope:.2f}; range over queries"))
    return found


def with_damping(method: Any, damping: attrib.Damping) -> Any:
    """The method with this damping, if it has one."""
    if hasattr(method, "ekfac"):
        return replace(method, ekfac=replace(method.ekfac, damping=damping))
    if not isinstance(getattr(method, "damping", 0.0), float) and method.name != "identity":
        return replace(method, damping=damping)
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
