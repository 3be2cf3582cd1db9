"""Datamodel Matching on handwritten digits against every other method, by one command:

    python -m benchmarks.unlearning digits [--out out/unlearning-digits.html] [--seeds 3]

An MLP 64-32-10 on 400 digits; 1,024 models retrained on random subsets give the datamodel; 64 models forget 20
examples, at random or the neighbours of one digit within its class, and are held against 64 of 128 oracles (the other
64 are the null row). One forget set, half random and half neighbours, is for choosing only: the share of the data that
subsets keep (by the error of the predicted change), and the settings of the iterative methods (by the rule of
`unlearn.evaluate.Rule`). The reported sets share no example with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from cache import Classification, Examples, Store, say
from cache.bank import Bank, outputs_of_lanes
from cache.lanes import Lanes
from cache.retrained import oracle_masks, subset_masks
from cache.training import SGD, AdamW, Recipe
from unlearn import forget_sets
from unlearn.datamodels import Calibrated, Pilot, Regression, calibrate, ridge
from unlearn.deletion import Deletion
from unlearn.evaluate import Evaluation, Panel, evaluate, sweep
from unlearn.loop import Method
from unlearn.methods import (
    DMM,
    DescentAscent,
    DMDirect,
    FineTune,
    GradientAscent,
    L1Sparse,
    Matching,
    NegGradPlus,
    OracleMatching,
    Retrain,
    SalUn,
    Scrub,
)
from unlearn.metrics import KLoM

MODELS, SUBSETS, SIZE = 64, 1024, 20
SHARES = (0.5, 0.6, 0.75)
MATCHING = Matching(steps=80, batch_size=128, optimiser=AdamW(1e-2))
RATES = (3e-4, 1e-3, 3e-3)
METRIC = KLoM(bins=10)


def mlp(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@dataclass(frozen=True, eq=False)
class Setting:
    """Data, bank, datamodel and the models that are to forget."""

    train: Examples
    points: Examples
    bank: Bank
    datamodel: Calibrated
    tuning: np.ndarray
    models: Lanes
    store: Store

    def deletion(self, forget: np.ndarray) -> Deletion:
        seeds = 10_000 + np.arange(MODELS)
        return Deletion(self.models, Classification(), self.train, forget, self.bank.recipe, mlp, seeds)

    def panel(self, forget: np.ndarray) -> tuple[Panel, Any]:
        masks = oracle_masks(self.train.ids, forget, 2 * MODELS)
        oracles = self.bank.run(masks, 20_000 + np.arange(2 * MODELS), self.store, quiet=True)
        return Panel.of(self.deletion(forget), oracles, self.points, METRIC), oracles


def setting(store: Store, subsets: int = SUBSETS) -> Setting:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))[:800]
    points = Examples.of(((data.data[order] / 16).astype(np.float32), data.target[order].astype(np.int64)))
    train = points.select(np.arange(400))
    bank = Bank(mlp, Classification(), train, points, Recipe(40, 50, SGD(0.02, 0.9)))
    models = bank.train_lanes(np.ones((MODELS, 400), bool), 10_000 + np.arange(MODELS))
    near = forget_sets.neighbours(train, int(train.ids[0]), SIZE // 2, within="y")
    tuning = np.sort(np.r_[near, forget_sets.random_set(train.without(near), SIZE // 2, 99)])
    oracles = bank.run(oracle_masks(train.ids, tuning, 2 * MODELS), 20_000 + np.arange(2 * MODELS), store, quiet=True)
    before = outputs_of_lanes(models, Classification(), points, ("logits",))["logits"]
    pilot = Pilot.of(tuning, points, before, oracles)

    def datamodel(share: float) -> Regression:
        say(f"training {subsets} models on random subsets of {100 * share:.0f} %")
        found = ridge(bank.run(subset_masks(400, subsets, share), store=store, quiet=True))
        say(f"  λ = {found.penalty:g}, LDS {found.lds}")
        return found

    chosen = calibrate(datamodel, SHARES, [pilot])
    say(f"subsets of {100 * chosen.setting:.0f} %: relative errors on the tuning set {chosen.errors}")
    return Setting(train, points, bank, chosen, tuning, models, store)


def forget_set(on: Setting, kind: str, seed: int) -> np.ndarray:
    others = on.train.without(on.tuning)
    if kind == "random":
        return forget_sets.random_set(others, SIZE, seed)
    eights = others.ids[np.asarray(others.columns["y"]) == 8]
    return forget_sets.neighbours(others, int(eights[seed]), SIZE, within="y")


def candidates() -> dict[str, list[Method]]:
    """The grid of every method that has to be tuned."""
    grids: dict[str, Callable[[AdamW], list[Method]]] = {
        "gradient ascent": lambda o: [GradientAscent(e, optimiser=o) for e in (2, 5, 10)],
        "descent-ascent": lambda o: [DescentAscent(s, 20, optimiser=o) for s in (10, 20, 40)],
        "NegGrad+": lambda o: [NegGradPlus(a, 40, 20, optimiser=o) for a in (0.9, 0.99)],
        "SCRUB": lambda o: [Scrub(4, m, forget_batch=20, optimiser=o) for m in (1, 2)],
        "SalUn": lambda o: [SalUn(0.5, s, 20, optimiser=o) for s in (10, 40)],
        "L1-sparse": lambda o: [L1Sparse(g, optimiser=o) for g in (1e-4, 1e-3)],
        "fine-tune": lambda o: [FineTune(e, optimiser=o) for e in (2, 5)],
    }
    return {name: [m for rate in RATES for m in grid(AdamW(rate))] for name, grid in grids.items()}


def tuned(on: Setting) -> dict[str, Any]:
    """What the rule chooses on the forget set that is for choosing."""
    panel, _ = on.panel(on.tuning)
    return {name: sweep(panel, grid) for name, grid in candidates().items()}


def show(on: Setting, seeds: int) -> list[Evaluation]:
    say("choosing settings on a forget set of their own")
    selected = tuned(on)
    for name, choice in selected.items():
        say(f"  {name}: {choice.method or 'no admissible setting; its gentlest is reported'}")
    found = []
    for kind in ("random", "neighbours"):
        for seed in range(seeds):
            forget = forget_set(on, kind, seed)
            panel, oracles = on.panel(forget)
            methods: list[Method] = [
                DMM(on.datamodel, MATCHING),
                DMDirect(on.datamodel),
                OracleMatching(oracles, MATCHING),
            ]
            grids = candidates()
            methods += [choice.on(panel.deletion) or grids[name][0] for name, choice in selected.items()]
            methods += [GradientAscent(10, optimiser=AdamW(1e-2), name="ascent, large rate"), Retrain(seed=50_000)]
            found.append(evaluate(panel, methods, title=f"{kind}, seed {seed}"))
    return found


def verdicts(evaluation: Evaluation) -> dict[str, bool]:
    """The protocol's claims on one forget set."""
    f = {row.method: row.klom["forget"].p95 for row in evaluation.rows}

    def mean(method: str) -> float:
        return evaluation[method].klom["forget"].mean

    every = [s.p95 for s in evaluation["ascent, large rate"].klom.values()]
    return {
        "DMM < half of doing nothing": f["DMM"] < 0.5 * f["do nothing"],
        "DMM < half of doing nothing, mean": mean("DMM") < 0.5 * mean("do nothing"),
        "DMM < half of descent-ascent": f["DMM"] < 0.5 * f["descent-ascent"],
        "ascent at a large rate destroys": min(every) > 9,
        "OM < DMM": f["oracle matching"] < f["DMM"],
    }
