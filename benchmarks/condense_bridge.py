"""Condensed retained data in the place of real ones, for DMM and others: KLoM on digits (see condense_shown.py).

An MLP 64-32-10 on 400 digits forgets 20 of them; 32 models are held against 32 of 64 oracles, the other half is the
null row. Every method runs with all real retained data, with real ones drawn at random, and with as many condensed
ones; its settings are chosen for each of the three, on a forget set of its own, by the rule of `unlearn.evaluate`. The
rate of condensing is chosen by the accuracy of networks trained on the set, on digits that no table uses.
"""

from dataclasses import dataclass, replace

import numpy as np

from whence.cache import Classification, Examples
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, AdamW, Recipe
from whence.cache.retrain.replicas import Replicas
from whence.cache.retrain.retrained import oracle_masks, subset_masks
from whence.unlearn import forget_sets
from whence.unlearn.condense import Pool, Settings, Training, condensed_retain, network, select
from whence.unlearn.datamodels import Regression, ridge
from whence.unlearn.deletion import Deletion
from whence.unlearn.evaluate import PARTS, Panel, sweep
from whence.unlearn.loop import Method, run
from whence.unlearn.methods import DMM, DescentAscent, Matching, NegGradPlus
from whence.unlearn.metrics import KLoM

from .condense_common import Sweep, best, digit_images, row, spread, table
from .unlearning_digits import mlp

TRAIN, POINTS, JUDGING, FORGOTTEN, TUNING = 400, 800, 300, 20, 99
RECIPE = Recipe(40, 50, SGD(0.02, 0.9))


def candidates(datamodel: Regression) -> dict[str, list[Method]]:
    """Settings to choose among, gentlest first."""
    return {
        "DMM": [DMM(datamodel, Matching(optimiser=AdamW(rate))) for rate in (3e-3, 1e-2)],
        "descent-ascent": [DescentAscent(20, FORGOTTEN, optimiser=AdamW(rate)) for rate in (1e-4, 3e-4, 1e-3)],
        "NegGrad+": [NegGradPlus(0.99, 40, FORGOTTEN, optimiser=AdamW(rate)) for rate in (1e-4, 3e-4, 1e-3)],
    }


@dataclass(frozen=True)
class Bridge:
    """KLoM of unlearning with a condensed retain set of a quarter of the storage, beside real retained data."""

    per_class: int = 9
    """Nine a class are 90 of 380."""
    outer: int = 50
    sets: int = 4
    """Forget sets."""
    models: int = 32
    subsets: int = 512
    sweep: Sweep = Sweep((0.03, 0.1, 0.3, 1.0))

    def run(self) -> None:
        x, y = digit_images()
        x, y = x.reshape(-1, 64), y.astype(np.int64)
        points = Examples.of((x[:POINTS], y[:POINTS]))
        train = points.select(np.arange(TRAIN))
        bank = Bank(mlp, Classification(), train, points, RECIPE)
        models = bank.train_replicas(np.ones((self.models, TRAIN), bool), self.seeds)
        methods = candidates(ridge(bank.run(subset_masks(TRAIN, self.subsets, 0.6), quiet=True)))
        settings = self.condensing(train, x[POINTS:], y[POINTS:])
        chosen = {
            (name, kept): sweep(panel, grid).method or grid[0]
            for kept, panel in self.panels(bank, models, settings, TUNING).items()
            for name, grid in methods.items()
        }
        found: dict[tuple[str, str], list[list[float]]] = {}
        held: dict[str, int] = {}
        for seed in range(self.sets):
            panels = self.panels(bank, models, settings, seed)
            whole = panels["real, all"]
            rows = {("oracles (null)", ""): whole.null(), ("do nothing", ""): whole.nothing()}
            for (name, kept), method in chosen.items():
                panel = panels[kept]
                rows[name, kept] = panel.score(name, panel.margins(run(method, panel.deletion)))
                held[kept] = len(panel.deletion.kept)
            for key, scored in rows.items():
                found.setdefault(key, []).append([scored.klom[part].p95 for part in PARTS])
        print(f"digits, {FORGOTTEN} of {TRAIN} forgotten, {self.sets} random forget sets, condensed at {settings.lr:g}")
        print("KLoM, 95th percentile over points: mean over forget sets [95 % interval]")
        table("method", "retained data", "examples", *PARTS)
        for (name, kept), values in sorted(found.items(), key=lambda item: (item[0][1] != "", item[0][0])):
            row(name, kept, held.get(kept, ""), *(spread(column, 2) for column in np.array(values).T))
        print(
            f"\nvalidation KLoM, condensed ({held['condensed']} of {held['real, all']} examples) minus all real data:"
        )
        for name in methods:
            gap = [c[2] - r[2] for c, r in zip(found[name, "condensed"], found[name, "real, all"])]
            verdict = "within 1 on every forget set" if max(gap) <= 1 else f"above 1 on {sum(g > 1 for g in gap)}"
            print(f"  {name}: {spread(gap, 2)}, {verdict}")

    @property
    def seeds(self) -> np.ndarray:
        return 10_000 + np.arange(self.models)

    def condensing(self, train: Examples, x: np.ndarray, y: np.ndarray) -> Settings:
        """How to condense: the rate is the best for accuracy on digits of no other use."""
        settings = Settings("dcc", network("mlp-32"), self.per_class, self.outer, 10, 5, 64, warm_outer=0)
        pool = Pool.of(train)
        judging = Pool.of((x[:JUDGING], y[:JUDGING]), pool.classes, pool.scaling)
        return replace(settings, lr=best(self.sweep.of(settings, pool, judging, Training(100))))

    def panels(self, bank: Bank, models: Replicas, settings: Settings, seed: int) -> dict[str, Panel]:
        """One forget set's panel with each of the three kinds of retained data."""
        forget = forget_sets.random_set(bank.train, FORGOTTEN, seed)
        masks = oracle_masks(bank.train.ids, forget, 2 * self.models)
        oracles = bank.run(masks, 20_000 + np.arange(2 * self.models), quiet=True)
        plain = Deletion(models, Classification(), bank.train, forget, RECIPE, mlp, self.seeds)
        drawn = plain.kept.rows_of(select(Pool.of(plain.kept), "random", self.per_class, seed).ids)
        whole = Panel.of(plain, oracles, bank.points, KLoM(bins=10))
        return {
            "real, all": whole,
            "real, random": replace(whole, deletion=replace(plain, retain=plain.kept.select(drawn))),
            "condensed": replace(whole, deletion=condensed_retain(plain, settings, seed)),
        }
