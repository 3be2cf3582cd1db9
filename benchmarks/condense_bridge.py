"""Condensed retained data instead of real ones, for DMM and others: KLoM on digits (see condense_shown.py).

An MLP 64-32-10 on 400 digits forgets 20 of them; 32 models are compared with 32 of 64 oracles, the other half is the
null row. Every method runs with all real retained data, with real ones sampled at random, and with as many condensed
ones; its settings are chosen for each of the three, on a forget set of its own, by the rule of `unlearn.evaluate`. The
rate of condensing is chosen by the accuracy of networks trained on the set, on digits that no table uses.
"""

from dataclasses import dataclass, replace

import numpy as np

from whence.cache.retrain.recipe import AdamW
from whence.cache.retrain.retrained import subset_masks
from whence.unlearn import forget_sets
from whence.unlearn.condense import Pool, Settings, Training, condensed_retain, network, select
from whence.unlearn.datamodels import Regression, ridge
from whence.unlearn.evaluate import OracleSplit, sweep
from whence.unlearn.loop import run
from whence.unlearn.methods import DMM, DescentAscent, Matching, NegGradPlus, UnlearningMethod
from whence.unlearn.results import PARTS

from .condense_common import Sweep, best, spread
from .forgetting import POINTS, TRAIN, Forgetting, digits, forgetting_digits
from .harness import Run

JUDGING, FORGOTTEN, TUNING = 300, 20, 99


def candidates(datamodel: Regression) -> dict[str, list[UnlearningMethod]]:
    """Settings to choose among, gentlest first."""
    return {
        "DMM": [DMM(datamodel, Matching(optimiser=AdamW(rate))) for rate in (3e-3, 1e-2)],
        "descent-ascent": [DescentAscent(20, FORGOTTEN, optimiser=AdamW(rate)) for rate in (1e-4, 3e-4, 1e-3)],
        "NegGrad+": [NegGradPlus(0.99, 40, FORGOTTEN, optimiser=AdamW(rate)) for rate in (1e-4, 3e-4, 1e-3)],
    }


@dataclass(frozen=True)
class Bridge:
    """KLoM of unlearning with a condensed retain set of a quarter of the storage, beside real retained data."""

    sweep: Sweep
    per_class: int = 9  # 90 of 380 examples
    outer: int = 50
    sets: int = 4  # forget sets
    models: int = 32
    subsets: int = 512

    def show(self, report: Run) -> None:
        models = forgetting_digits(self.models)
        methods = candidates(ridge(models.bank.run(subset_masks(TRAIN, self.subsets, 0.6), quiet=True)))
        settings = self.condensing(Pool.of(models.bank.train))
        chosen = {
            (name, kept): sweep(split, grid).method or grid[0]
            for kept, split in self.splits(models, settings, TUNING).items()
            for name, grid in methods.items()
        }
        found: dict[tuple[str, str], list[list[float]]] = {}
        sizes: dict[str, int] = {}
        for seed in range(self.sets):
            splits = self.splits(models, settings, seed)
            whole = splits["real, all"]
            rows = {("oracles (null)", ""): whole.null(), ("no-op", ""): whole.no_op()}
            for (name, kept), method in chosen.items():
                split = splits[kept]
                rows[name, kept] = split.score(name, split.margins(run(method, split.request)))
                sizes[kept] = len(split.request.kept)
            for key, scored in rows.items():
                found.setdefault(key, []).append([scored.klom[part].p95 for part in PARTS])
        report.say(
            f"digits, {FORGOTTEN} of {TRAIN} forgotten, {self.sets} random forget sets, condensed at {settings.lr:g}"
        )
        title = "KLoM, 95th percentile over points: mean over forget sets [95 % interval]"
        table = report.table("method", "retained data", "examples", *PARTS, title=title)
        for (name, kept), values in sorted(found.items(), key=lambda item: (item[0][1] != "", item[0][0])):
            table.row(name, kept, sizes.get(kept), *(spread(column, 2) for column in np.array(values).T))
        report.say()
        part = f"{sizes['condensed']} of {sizes['real, all']} examples"
        for name in methods:
            gap = [c[2] - r[2] for c, r in zip(found[name, "condensed"], found[name, "real, all"])]
            text = f"{name}: validation KLoM of condensed ({part}) within 1 of all real data"
            report.claim(text, max(gap) <= 1, f"{spread(gap, 2)}, above 1 on {sum(g > 1 for g in gap)} of {len(gap)}")

    def condensing(self, pool: Pool) -> Settings:
        """How to condense: the rate is the best for accuracy on digits of no other use."""
        settings = Settings("dcc", network("mlp-32"), self.per_class, self.outer, 10, 5, 64, warm_outer=0)
        x, y = (values[POINTS : POINTS + JUDGING] for values in digits())
        judging = Pool.of((x.reshape(-1, 64).astype(np.float32), y), pool.classes, pool.scaling)
        return replace(settings, lr=best(self.sweep.of(settings, pool, judging, Training(100))))

    def splits(self, models: Forgetting, settings: Settings, seed: int) -> dict[str, OracleSplit]:
        """One forget set's comparison with each of the three kinds of retained data."""
        whole, _ = models.split(forget_sets.random_set(models.bank.train, FORGOTTEN, seed))
        plain = whole.request
        sampled = plain.kept.rows_of(select(Pool.of(plain.kept), "random", self.per_class, seed).ids)
        return {
            "real, all": whole,
            "real, random": replace(whole, request=replace(plain, retain=plain.kept.select(sampled))),
            "condensed": replace(whole, request=condensed_retain(plain, settings, seed)),
        }
