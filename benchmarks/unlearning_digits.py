"""Datamodel Matching on handwritten digits against every other method.

An MLP 64-32-10 on 400 digits; 64 models forget 20 examples, at random or the neighbours of one digit within its class
(half of a class), and are compared with 64 of 128 oracles (the other 64 are the null row).

The selection rule, declared before anything is scored: for each kind of forget set, every method's settings (DMM's: on
which kind of random subsets its datamodel is fitted, and with which penalty) are those with the smallest mean p95 on
the forget sets among settings whose p95 on retain and validation stay within 1 of the no-op baseline, on pilot forget
sets of that kind. Reported are fresh forget sets: other seeds, other classes, no example in common with any pilot. A
bank whose masks omit neighbourhoods will by chance omit some that are forgotten later, so one more row shows the same
datamodel fitted without every mask that leaves out three quarters of the forget set or more.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import numpy as np

from whence.cache import Examples, Store
from whence.cache.jobs.progress import say
from whence.cache.retrain.recipe import AdamW
from whence.cache.retrain.retrained import Retrained, subset_masks
from whence.unlearn import forget_sets
from whence.unlearn.datamodels import Datamodel, grouped, nearest, neighbourhood_masks, ridge
from whence.unlearn.evaluate import Selected, evaluate, sweep
from whence.unlearn.methods import (
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
    UnlearningMethod,
)
from whence.unlearn.results import Evaluation

from .forgetting import Forgetting, forgetting_digits
from .harness import Run

MODELS, SUBSETS, SIZE = 64, 4096, 20
KINDS, PILOTS, PILOT_SEED, SEED = ("random", "neighbours"), 3, 3000, 5000
PENALTIES = (10.0, 100.0)  # λ's, of Gram matrices whose diagonal is about a thousand
MATCHING = Matching(steps=80, batch_size=128, optimiser=AdamW(1e-2))
BLIND = "DM-Direct, no such mask"
RATES = (3e-4, 1e-3, 3e-3)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A datamodel, and how to fit it to another bank."""

    bank: Retrained
    fit: Callable[[Retrained], Datamodel]
    datamodel: Datamodel

    def not_seeing(self, forget: np.ndarray) -> Datamodel:
        """Fitted without the masks that happen to leave out three quarters of this forget set or more."""
        gone = ~self.bank.masks[:, np.isin(self.bank.train_ids, forget)]
        return self.fit(self.bank.select(gone.mean(1) < 0.75))


@dataclass(frozen=True, eq=False)
class Setting:
    """The models that are to forget, datamodels by the name of their subsets, and pilots by kind."""

    models: Forgetting
    datamodels: dict[str, Fitted]
    pilots: dict[str, list[np.ndarray]]


def setting(store: Store, subsets: int = SUBSETS) -> Setting:
    models = forgetting_digits(MODELS, store)
    bank, train = models.bank, models.bank.train
    datamodels: dict[str, Fitted] = {}
    near = nearest(train, bank.points, within="y")
    for name, masks in designs(train, subsets).items():
        retrained = bank.run(masks, store=store, quiet=True)
        for penalty in PENALTIES:
            fits = (partial(ridge, penalties=[penalty]), partial(grouped, near=near, penalty=penalty))
            plain, terms = (Fitted(retrained, fit, fit(retrained)) for fit in fits)
            datamodels |= {f"{name}, λ = {penalty:g}": plain, f"{name}, group terms, λ = {penalty:g}": terms}
            scores = [fitted.datamodel.lds for fitted in (plain, terms)]  # type: ignore[attr-defined]
            say(f"{subsets} models on {name}, λ = {penalty:g}: {scores[0]}; with group terms {scores[1]}")
    pilots = {kind: [forget_set(train, kind, k, pilot=True) for k in range(PILOTS)] for kind in KINDS}
    return Setting(models, datamodels, pilots)


def designs(train: Examples, count: int) -> dict[str, np.ndarray]:
    """Random subsets to train on, by name: of one size, with whole parts of classes missing, or without some digits
    and all that look like them. A datamodel predicts best the kind of absence that it was fitted on."""
    found = {"random 60 %": subset_masks(len(train), count, 0.6)}
    generator, labels = np.random.default_rng(0), np.asarray(train.columns["y"])
    kept = generator.uniform(0.3, 1.0, (count, 10))
    found["classes at 30 to 100 %"] = generator.random((count, len(train))) < kept[:, labels]
    near = nearest(train, train, within="y")
    found["two neighbourhoods and a tenth missing"] = neighbourhood_masks(near, count)
    return found


def forget_set(train: Examples, kind: str, seed: int, *, pilot: bool = False) -> np.ndarray:
    """The pilot or reported forget set of this kind and number. Pilots and reported sets are of different classes
    (neighbours) or sampled from two disjoint halves of the data (random)."""
    labels = np.asarray(train.columns["y"])
    if kind == "random":
        order = np.random.default_rng(PILOT_SEED).permutation(len(train))
        half = train.select(np.sort(order[:200] if pilot else order[200:]))
        return forget_sets.random_set(half, SIZE, (PILOT_SEED if pilot else SEED) + seed)
    classes = np.random.default_rng(PILOT_SEED).permutation(10)
    label = classes[seed if pilot else -1 - seed]
    generator = np.random.default_rng((PILOT_SEED if pilot else SEED) + seed)
    return forget_sets.neighbours(train, int(generator.choice(train.ids[labels == label])), SIZE, within="y")


def candidates(on: Setting) -> dict[str, list[UnlearningMethod]]:
    """The grid of every method."""
    grids: dict[str, Callable[[AdamW], list[UnlearningMethod]]] = {
        "gradient ascent": lambda o: [GradientAscent(e, optimiser=o) for e in (2, 5, 10)],
        "descent-ascent": lambda o: [DescentAscent(s, 20, optimiser=o) for s in (10, 20, 40)],
        "NegGrad+": lambda o: [NegGradPlus(a, 40, 20, optimiser=o) for a in (0.9, 0.99)],
        "SCRUB": lambda o: [Scrub(4, m, forget_batch=20, optimiser=o) for m in (1, 2)],
        "SalUn": lambda o: [SalUn(0.5, s, 20, optimiser=o) for s in (10, 40)],
        "L1-sparse": lambda o: [L1Sparse(g, optimiser=o) for g in (1e-4, 1e-3)],
        "fine-tune": lambda o: [FineTune(e, optimiser=o) for e in (2, 5)],
    }
    dmm: list[UnlearningMethod] = [DMM(fitted.datamodel, MATCHING) for fitted in on.datamodels.values()]
    return {"DMM": dmm, **{name: [m for rate in RATES for m in grid(AdamW(rate))] for name, grid in grids.items()}}


def tuned(on: Setting, kind: str) -> dict[str, Selected]:
    """What the rule chooses on the pilots of this kind."""
    splits = [on.models.split(forget)[0] for forget in on.pilots[kind]]
    return {name: sweep(splits, grid) for name, grid in candidates(on).items()}


def evaluations(run: Run, on: Setting, seeds: int) -> list[Evaluation]:
    found = []
    for kind in KINDS:
        say(f"choosing settings on pilot forget sets: {kind}")
        selected = tuned(on, kind)
        report_choices(run, on, kind, selected)
        for seed in range(seeds):
            split, oracles = on.models.split(forget_set(on.models.bank.train, kind, seed))
            methods = [choice.on(split.request) or choice.candidates[0] for choice in selected.values()]
            dmm = methods[0]
            assert isinstance(dmm, DMM)
            blind = on.datamodels[_settings(on, dmm)].not_seeing(split.request.forget)
            methods[1:1] = [DMDirect(dmm.datamodel), DMDirect(blind, label=BLIND), OracleMatching(oracles, MATCHING)]
            methods += [GradientAscent(10, optimiser=AdamW(1e-2), label="ascent, large rate"), Retrain(seed=50_000)]
            found.append(evaluate(split, methods, title=f"{kind}, seed {seed}"))
    return found


def report_choices(run: Run, on: Setting, kind: str, selected: dict[str, Selected]) -> None:
    """The chosen settings, and every datamodel's result on the pilots."""
    title = f"chosen on {PILOTS} pilot sets, {kind}"
    table = run.table("method", "settings", "forget p95 on the pilots", title=title)
    for name, choice in selected.items():
        every = len(choice.candidates)
        for k, method in enumerate(choice.candidates):
            chosen = method is (choice.method or choice.candidates[0])
            if not chosen and name != "DMM":
                continue
            p95 = ", ".join(f"{row.klom['forget'].p95:.2f}" for row in choice.rows[k::every])
            mark = "" if not chosen else " (chosen)" if choice.method else " (nothing is admissible; the gentlest)"
            table.row(f"{name}{mark}", _settings(on, method), p95)


def _settings(on: Setting, method: UnlearningMethod) -> str:
    """What was varied, as text."""
    if isinstance(method, DMM):
        return next(name for name, fitted in on.datamodels.items() if fitted.datamodel is method.datamodel)
    return ", ".join(
        f"{f.name} {getattr(value := getattr(method, f.name), 'lr', value):g}"
        for f in fields(method)  # type: ignore[arg-type]
        if f.name != "label"
    )


def verdicts(evaluation: Evaluation) -> dict[str, bool]:
    """The protocol's claims on one forget set."""
    f = {row.method: row.klom["forget"].p95 for row in evaluation.rows}

    def mean(method: str) -> float:
        return evaluation[method].klom["forget"].mean

    every = [s.p95 for s in evaluation["ascent, large rate"].klom.values()]
    return {
        "DMM < half of no-op": f["DMM"] < 0.5 * f["no-op"],
        "DMM < half of no-op, mean": mean("DMM") < 0.5 * mean("no-op"),
        "DMM < half of descent-ascent": f["DMM"] < 0.5 * f["descent-ascent"],
        "ascent at a large rate destroys": min(every) > 9,
        "OM < DMM": f["oracle matching"] < f["DMM"],
        "DM-Direct < half of no-op, without masks like it": f[BLIND] < 0.5 * f["no-op"],
    }
