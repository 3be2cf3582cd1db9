"""The deletion planner: KLoM that it predicts before a request is run, against KLoM measured on new forget sets.

Digits and the network of `benchmarks.unlearning digits`. Four pilot forget sets (random, neighbours of a digit, part of
a class, a principal direction of the datamodel) come from one half of the data and give the factors; 22 forget sets of
the same four kinds and of sizes 5 to 40 come from the other half. Nothing about them is known to the planner but the
datamodel's prediction.

Calibration error is |predicted - measured| in nats, beside that of a constant (the mean over the pilots).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from whence.cache import Examples
from whence.cache.retrain.retrained import subset_masks
from whence.cache.statistics import spearman
from whence.unlearn import forget_sets
from whence.unlearn.datamodels import Datamodel, Regression, ridge
from whence.unlearn.evaluate import OracleSplit
from whence.unlearn.loop import run as forget_with
from whence.unlearn.methods import DMM
from whence.unlearn.metrics import KLoM
from whence.unlearn.planner import NO_OP, RETRAIN, Candidate, DeletionPlan, candidates, pilot_factors, plan_deletion

from .forgetting import Forgetting, forgetting_digits
from .harness import Benchmark, Run
from .unlearning_digits import MATCHING

bench = Benchmark(__file__, __doc__)
SLACK = 1.0  # nats above noise that a user accepts
KINDS = {"random": (10, 20, 40), "neighbours": (5, 15), "part of a class": (5, 15), "principal": (10, 20)}
EACH = {"random": 2, "neighbours": 3, "part of a class": 3, "principal": 2}


def forget_set(kind: str, half: Examples, datamodel: Regression, size: int, number: int) -> np.ndarray:
    """Ids in this half of the data."""
    if kind == "random":
        return forget_sets.random_set(half, size, 100 * size + number)
    if kind == "principal":
        return forget_sets.principal(datamodel, size, number, among=half.ids)
    y = np.asarray(half.columns["y"])
    label = np.argsort(-np.bincount(y), kind="stable")[number]  # a class that has enough
    if kind == "part of a class":
        return forget_sets.class_slice(half, int(label), size, seed=size)
    return forget_sets.neighbours(half, int(half.ids[y == label][0]), size, within="y")


def measured(split: OracleSplit, way: Candidate) -> tuple[float, float]:
    """Mean and p95 of KLoM on the forget set after this way; the null row for retraining."""
    if way.name in (NO_OP, RETRAIN):
        row = split.no_op() if way.name == NO_OP else split.null()
    else:
        assert way.method is not None
        done = forget_with(way.method, split.request)
        row = split.score(way.name, split.margins(done), about=done)
    return row.klom["forget"].mean, row.klom["forget"].p95


@dataclass(frozen=True)
class Outcome:
    """A forget set's plan, and mean and p95 of KLoM measured for every way."""

    plan: DeletionPlan
    found: Mapping[str, tuple[float, float]]

    @property
    def enough(self) -> list[str]:
        """The ways that really came within the slack of noise, cheapest first."""
        return [o.candidate.name for o in self.plan.options if self.found[o.candidate.name][1] <= self.limit]

    @property
    def limit(self) -> float:
        return self.found[RETRAIN][1] + SLACK


def calibration(
    run: Run,
    models: Forgetting,
    datamodel: Datamodel,
    dmm: DMM,
    pilots: Mapping[str, np.ndarray],
    sets: Mapping[str, np.ndarray],
) -> None:
    """Tables of predicted and measured KLoM, of calibration error, and of what was recommended, with their claims."""
    known = [models.split(forget)[0] for forget in pilots.values()]
    ways = candidates(known[0].request, dmm=dmm)
    factors = pilot_factors(known, ways, datamodel)
    run.say(f"\nfactors of the predicted shift on {len(pilots)} pilots ({', '.join(pilots)}): " + "; ".join(
        f"{name} {', '.join(f'{v:.2f}' for v in values)}" for name, values in factors.items() if name != RETRAIN
    ))  # fmt: skip
    constant = {way.name: np.mean([measured(split, way) for split in known], axis=0) for way in ways}
    table = run.table(
        "forget set", "size", "way", "mean, predicted|.2f", "measured|.2f", "p95, predicted|.2f", "range",
        "measured|.2f",
        title=f"Predicted and measured KLoM on the forget set, nats, {models.count} models a side",
    )  # fmt: skip
    outcomes: list[Outcome] = []
    for name, forget in sets.items():
        split, _ = models.split(forget)
        here = candidates(split.request, dmm=dmm)
        plan = plan_deletion(split.request, here, factors, datamodel, metric=split.metric, slack=SLACK)
        outcomes.append(Outcome(plan, {way.name: measured(split, way) for way in here}))
        for option in plan.options:
            way, (mean, p95) = option.candidate.name, outcomes[-1].found[option.candidate.name]
            span = f"{option.low:.2f}-{option.high:.2f}"
            table.row(name, len(forget), way, option.mean, mean, option.klom, span, p95)
    errors = run.table(
        "way", "error of the mean|.2f", "of a constant|.2f", "error of p95|.2f", "of a constant|.2f",
        "bias of p95|+.2f", "in range", "rank correlation of p95",
        title=f"Calibration error over {len(sets)} forget sets, nats",
    )  # fmt: skip
    better = []
    for way in (NO_OP, dmm.display_name):
        predicted = np.array([(o.plan[way].mean, o.plan[way].klom) for o in outcomes])
        actual = np.array([o.found[way] for o in outcomes])
        error, flat = np.abs(predicted - actual).mean(0), np.abs(constant[way] - actual).mean(0)
        low, high = (np.array([getattr(o.plan[way], end) for o in outcomes]) for end in ("low", "high"))
        inside = int(((low <= actual[:, 1]) & (actual[:, 1] <= high)).sum())
        rank = float(spearman(predicted[:, 1:], actual[:, 1:])[0])
        bias = float((predicted - actual)[:, 1].mean())
        errors.row(way, error[0], flat[0], error[1], flat[1], bias, f"{inside} of {len(sets)}", f"{rank:.2f}")
        better.append(error[1] < flat[1])
    right = sum(o.plan.chosen in o.enough for o in outcomes)
    cheapest = sum(o.plan.chosen == o.enough[0] for o in outcomes)
    run.say(
        f"\nrecommended: {right} of {len(sets)} ways came within {SLACK:g} nats of the null row's p95; {cheapest} were "
        "the cheapest that did\n"
    )
    run.claim("predicted p95 is nearer to the measured one than a constant is, for every way", all(better))
    run.claim("what is recommended comes within the slack on nine sets in ten", right >= 0.9 * len(sets))


@bench.case(quick={"models": 16, "subsets": 64})
def digits(run: Run, models: int = 64, subsets: int = 1024) -> None:
    """22 forget sets of digits.

    Args:
        models: that forget; oracles of a set are twice as many.
        subsets: retrainings that the datamodel is fitted to.
    """
    on = replace(forgetting_digits(models, run.store), metric=KLoM())
    train = on.bank.train
    masks = subset_masks(len(train), subsets, 0.6)
    datamodel = ridge(on.bank.run(masks, store=run.store, quiet=True))
    run.say(f"datamodel: {subsets} retrainings, penalty {datamodel.penalty:g}, LDS {datamodel.lds}")
    order = np.random.default_rng(0).permutation(len(train))
    first, second = (train.select(np.sort(rows)) for rows in np.array_split(order, 2))
    pilots = {kind: forget_set(kind, first, datamodel, sizes[-1], 0) for kind, sizes in KINDS.items()}
    sets = {
        f"{kind}, {size}, {number}": forget_set(kind, second, datamodel, size, number)
        for kind, sizes in KINDS.items() for size in sizes for number in range(EACH[kind])
    }  # fmt: skip
    calibration(run, on, datamodel, DMM(datamodel, MATCHING), pilots, sets)


if __name__ == "__main__":
    bench.main()
